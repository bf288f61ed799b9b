//! The multiplexed protocol between Hutch's host and its guest agent (`docs/agent-protocol.md`), without I/O.
//!
//! * `frame`: bytes ↔ frames, no state beyond a partial frame
//! * `mux`: frames ↔ streams: who may say what when, credit, limits
//! * `outgoing`: the queue of bytes to write, which shares large payloads instead of copying them
//! * `message`: the MessagePack values that both sides know, and the check that a payload is well formed
//!
//! A *client* opens streams, a *server* answers each with one reply and any number of events and data. Everything
//! that a peer sends is bounded and checked; a breach is a [`Violation`] and the owner closes the channel. Nothing here
//! waits: the owner asks [`Mux::send_credit`] before it sends, and writes [`Mux::outgoing`] to its transport.

#![forbid(unsafe_code)]

mod frame;
mod message;
mod mux;
mod outgoing;

pub use frame::{Decoder, Frame, HEADER_BYTES, Header, Kind, MAX_PAYLOAD_BYTES, Violation};
pub use message::{Bin, ErrorMessage, Hello, MAX_NESTING, check_message, decode, encode};
pub use mux::{Event, MAX_OUTSTANDING_CREDIT, MAX_WINDOW_BYTES, MIN_WINDOW_BYTES, Mux, Side, VERSION};
pub use outgoing::Outgoing;
