//! Requests of the host on a private socket: streams of the wire protocol (`docs/agent-protocol.md`), the method, and JSON as data.
//!
//! Of both processes, the gateway and the ingress. Secrets come in here.

use std::collections::{HashMap, VecDeque};
use std::io;

use hutch_wire::{ErrorMessage, Event, Hello, Mux, Side};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use zeroize::Zeroizing;

const WINDOW_BYTES: u32 = 1 << 20;
const MAX_STREAMS: u32 = 4096;
const READ_BYTES: usize = 64 * 1024;
/// An empty map.
pub const NOTHING: [u8; 1] = [0x80];

/// What a request is answered with.
pub type Outcome = Result<Vec<u8>, ErrorMessage>;

/// The error of a request that can't be meant.
pub fn bad(message: impl Into<String>) -> ErrorMessage {
    ErrorMessage::new(400, "bad_request", message)
}

/// What a request says.
pub fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, ErrorMessage> {
    serde_json::from_slice(body).map_err(|error| bad(format!("Invalid request: {error}")))
}

/// One that is here as a whole.
pub struct Request {
    /// On which it is answered.
    pub stream: u32,
    /// What is to be done.
    pub method: String,
    /// With what.
    pub body: Zeroizing<Vec<u8>>,
}

/// A connection of the host. One of its requests may be answered with events, for ever.
pub struct Connection {
    stream: UnixStream,
    mux: Mux,
    buffer: Vec<u8>,
    max_body_bytes: usize,
    pending: HashMap<u32, (String, Zeroizing<Vec<u8>>)>,
    follower: Option<u32>,
    events: VecDeque<Vec<u8>>,
}

impl Connection {
    /// On an accepted connection.
    pub fn new(stream: UnixStream, max_body_bytes: usize) -> Self {
        let hello = Hello {
            version: hutch_wire::VERSION,
            role: "agent".to_owned(),
            window: WINDOW_BYTES,
            max_streams: MAX_STREAMS,
            boot: String::new(),
            token: String::new(),
            agent: env!("CARGO_PKG_VERSION").to_owned(),
        };
        Self {
            stream,
            mux: Mux::new(Side::Server, hello),
            buffer: vec![0; READ_BYTES],
            max_body_bytes,
            pending: HashMap::new(),
            follower: None,
            events: VecDeque::new(),
        }
    }

    /// Answer a request with events from now on. A former one gets none any more.
    pub fn follow(&mut self, stream: u32) {
        self.mux.reply(stream, &NOTHING);
        self.follower = Some(stream);
    }

    /// Whether there is somebody for events.
    pub fn is_followed(&self) -> bool {
        self.follower.is_some()
    }

    /// Whether events wait to be sent.
    pub fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// Forget events that wait.
    pub fn clear_events(&mut self) {
        self.events.clear();
    }

    /// Send an event when there is credit.
    pub fn push(&mut self, event: Vec<u8>) {
        self.events.push_back(event);
    }

    /// Answer a request.
    pub fn answer(&mut self, stream: u32, outcome: Outcome) {
        match outcome {
            Ok(payload) => {
                self.mux.reply(stream, &payload);
                self.mux.end(stream);
            }
            Err(error) => self.mux.error(stream, &error),
        }
    }

    /// Write what can be written; false if that was nothing.
    pub async fn flush(&mut self) -> io::Result<bool> {
        self.pump();
        let bytes = self.mux.outgoing.take();
        if bytes.is_empty() {
            return Ok(false);
        }
        self.stream.write_all(&bytes).await?;
        Ok(true)
    }

    fn pump(&mut self) {
        let Some(stream) = self.follower else { return };
        while let Some(event) = self.events.front() {
            if self.mux.send_credit(stream) < event.len() {
                return;
            }
            if let Some(event) = self.events.pop_front() {
                self.mux.event(stream, &event);
            }
        }
    }

    /// Read once: the requests that are whole then. `None` at the end of the connection. Nothing is lost when it is not waited for.
    pub async fn requests(&mut self) -> io::Result<Option<Vec<Request>>> {
        let count = self.stream.read(&mut self.buffer).await?;
        if count == 0 {
            return Ok(None);
        }
        self.mux.decoder.feed(&self.buffer[..count]);
        let mut whole = Vec::new();
        loop {
            let event = self
                .mux
                .next_event()
                .map_err(|violation| io::Error::new(io::ErrorKind::InvalidData, violation.0))?;
            match event {
                None => return Ok(Some(whole)),
                Some(Event::Open { stream, method, .. }) => {
                    self.pending.insert(stream, (method, Zeroizing::default()));
                }
                Some(Event::Data { stream, data, .. }) => self.data(stream, &data),
                Some(Event::End { stream }) => {
                    if let Some((method, body)) = self.pending.remove(&stream) {
                        whole.push(Request { stream, method, body });
                    }
                }
                Some(Event::Cancel { stream }) => {
                    self.pending.remove(&stream);
                    if self.follower == Some(stream) {
                        self.follower = None;
                    }
                }
                Some(_) => {}
            }
        }
    }

    fn data(&mut self, stream: u32, data: &[u8]) {
        let Some((_, body)) = self.pending.get_mut(&stream) else {
            return;
        };
        if body.len() + data.len() > self.max_body_bytes {
            self.pending.remove(&stream);
            self.mux.error(stream, &bad("Invalid request: too large"));
            return;
        }
        body.extend_from_slice(data);
        self.mux.grant(stream, u32::try_from(data.len()).unwrap_or(0));
    }
}
