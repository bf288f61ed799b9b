//! The parts of the gateway that turn bytes into values and back, without sockets. Tests named `t…` are threats of the
//! catalogue in so far as they are decided here. `HUTCH_CAMPAIGN=full` tries many more random cases.

mod audit;
mod encoders;
mod hello;
mod http1;
mod matrix;
mod scrub;
mod support;
