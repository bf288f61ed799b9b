//! Questions to an effective policy, by what is asked about.

pub(crate) mod connection;
pub(crate) mod dns;
pub(crate) mod http;
pub(crate) mod path;
mod query;
