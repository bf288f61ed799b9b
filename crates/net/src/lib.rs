//! Hutch's gateway: every byte between a sandbox and the world.

#![forbid(unsafe_code)]

pub mod audit;
pub mod hello;
pub mod http1;
pub mod scrub;
