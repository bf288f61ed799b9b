//! Hutch's gateway: every byte between a sandbox and the world.
//!
//! The kernel hands over whatever a sandbox sends (TPROXY); nothing is ever routed. Which sandbox it is tells the source
//! address, which the kernel has bound to the sandbox's link. What may happen is decided by `hutch-policy`; this crate has
//! sockets, time and secrets.
//!
//! ```text
//! guest ──TCP──▶ tcp ─ sniff (hello, http1) ─▶ policy ─┬─ splice ──▶ relay ───────────▶ server
//!       │                                              └─ intercept ▶ exchange (each request) ─▶ upstream
//!       ├─UDP 53▶ dns ─▶ policy ─▶ resolver
//!       └─UDP───▶ udp ─▶ policy ─▶ relayed, or refused by ICMP
//! host ──Unix──▶ control ─▶ gateway ─▶ sandbox: policy, credentials, authority; flows are judged again
//! ```
//!
//! * without I/O: `hello`, `http1`, `scrub`, `decode`, `audit`, `head`
//! * state: `gateway`, `sandbox`, `flow`, `report`; `cpu`: what the gateway spends on each sandbox
//! * sockets: `tcp`, `udp`, `datagram`, `dns`, `intercept`, `http2`, `exchange`, `upstream`, `relay`, `tunnel`, `control`, `requests`
//! * `tls`: the sandbox's authority, and how servers are verified; `identity`: tokens for `forwardURL`
//! * `ingress`: requests of anybody to sandboxes' ports, a process of its own
//! * `confine`: what the process gives up; `syscalls`: the system calls that it keeps

#![forbid(unsafe_code)]

pub mod audit;
pub mod body;
pub mod clock;
pub mod confine;
pub mod control;
pub mod cpu;
pub mod datagram;
pub mod decode;
pub mod dns;
pub mod exchange;
pub mod flow;
pub mod gateway;
pub mod head;
pub mod hello;
pub mod http1;
pub mod http2;
pub mod identity;
pub mod ingress;
pub mod intercept;
pub mod locks;
pub mod relay;
pub mod report;
pub mod requests;
pub mod sandbox;
pub mod scrub;
pub mod syscalls;
pub mod tcp;
pub mod tls;
pub mod tunnel;
pub mod udp;
pub mod upstream;
