//! Ingress: requests of anybody to the ports that sandboxes expose.
//!
//! ```text
//! client ──TCP──▶ serve ─ TLS? ─ HTTP/1.1 or 2 ─▶ proxy ─ Host → route → target ─▶ guest's program (HTTP/1.1; 2 for gRPC)
//!                                                       └ webhooks ─▶ server, on the loopback interface
//! host ──Unix──▶ control: routes (what may be asked for), targets (which sandbox runs where), what a request wakes
//! ```
//!
//! A process of its own with a user of its own: it reads public bytes and has no secrets but a TLS key. The kernel lets that user
//! begin connections with sandboxes of this instance, with the server's webhooks, and with nobody else.
//!
//! * without I/O: `headers`, `name`, `token`, `answer`
//! * state: `registry`, `counts`
//! * sockets: `serve`, `stream`, `http2`, `informational`, `proxy`, `guest`, `control`

pub mod answer;
pub mod control;
pub mod counts;
pub mod guest;
pub mod headers;
pub mod http2;
pub mod informational;
pub mod name;
pub mod proxy;
pub mod registry;
pub mod serve;
pub mod stream;
pub mod token;

pub use registry::Ingress;
