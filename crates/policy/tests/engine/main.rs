//! What the engine decides. Tests named `t…` are threats of the catalogue in so far as they are decided here.

mod addresses;
mod compiling;
mod connections;
mod dns;
mod http;
mod intersection;
mod names;
mod patterns;
mod properties;
mod reading_back;
mod reasons;
mod support;
mod sweeping;
