//! Streams over frames: the state of each stream, credit, and the rules of who may send what.

use std::collections::HashMap;
use std::sync::Arc;

use crate::frame::{Decoder, Frame, Header, Kind, MAX_PAYLOAD_BYTES, Violation};
use crate::message::{ErrorMessage, Hello, check_message, decode, encode, split_open};
use crate::outgoing::Outgoing;

/// The version of the protocol that this crate speaks.
pub const VERSION: u32 = 1;
/// A receiver may have granted at most this many unspent bytes on one stream.
pub const MAX_OUTSTANDING_CREDIT: u64 = 16 * 1024 * 1024;
/// The smallest window that a HELLO may name.
pub const MIN_WINDOW_BYTES: u32 = 16 * 1024;
/// The largest window that a HELLO may name.
pub const MAX_WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// Which end of the channel this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Opens streams.
    Client,
    /// Answers them.
    Server,
}

/// What the peer said.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Event {
    Hello(Hello),
    Open {
        stream: u32,
        method: String,
        params: Vec<u8>,
    },
    Reply {
        stream: u32,
        payload: Vec<u8>,
    },
    Event {
        stream: u32,
        payload: Vec<u8>,
    },
    Data {
        stream: u32,
        channel: u8,
        data: Vec<u8>,
    },
    Credit {
        stream: u32,
        bytes: u32,
    },
    End {
        stream: u32,
    },
    Error {
        stream: u32,
        error: ErrorMessage,
    },
    Cancel {
        stream: u32,
    },
    Pong([u8; 8]),
}

#[derive(Debug)]
struct StreamState {
    send_credit: u64,
    receive_credit: u64,
    replied: bool,
    sent_end: bool,
    received_end: bool,
}

/// One end of a channel.
#[derive(Debug)]
pub struct Mux {
    side: Side,
    hello: Hello,
    peer: Option<Hello>,
    streams: HashMap<u32, StreamState>,
    /// The highest stream id that was opened, by this end or by the peer.
    last_stream: u32,
    /// Where received bytes go in.
    pub decoder: Decoder,
    /// Where bytes to send come out.
    pub outgoing: Outgoing,
    /// Control frames sent so far; the host's side of a channel limits their rate.
    pub control_frames: u64,
}

impl Mux {
    /// A channel that has sent its HELLO and waits for the peer's.
    pub fn new(side: Side, hello: Hello) -> Self {
        let mut mux = Self {
            side,
            hello,
            peer: None,
            streams: HashMap::new(),
            last_stream: 0,
            decoder: Decoder::default(),
            outgoing: Outgoing::default(),
            control_frames: 0,
        };
        let payload = encode(&mux.hello);
        mux.push(Kind::Hello, 0, &payload);
        mux
    }

    /// The peer's HELLO, once it has arrived.
    pub fn peer(&self) -> Option<&Hello> {
        self.peer.as_ref()
    }

    /// Whether anything may still be sent or received on `stream`.
    pub fn is_open(&self, stream: u32) -> bool {
        self.streams.contains_key(&stream)
    }

    /// Streams that are open.
    pub fn open_streams(&self) -> usize {
        self.streams.len()
    }

    // -- receiving -----------------------------------------------------------------------------------------------

    /// The next thing that the bytes in `decoder` say. After a violation the channel must be closed.
    pub fn next_event(&mut self) -> Result<Option<Event>, Violation> {
        loop {
            let mut decoder = std::mem::take(&mut self.decoder);
            let outcome = match decoder.next_frame() {
                Ok(Some(frame)) => self.receive(frame).map(Some),
                Ok(None) => Ok(None),
                Err(violation) => Err(violation),
            };
            self.decoder = decoder;
            match outcome? {
                None => return Ok(None),
                Some(Some(event)) => return Ok(Some(event)),
                Some(None) => {}
            }
        }
    }

    fn receive(&mut self, frame: Frame<'_>) -> Result<Option<Event>, Violation> {
        let (kind, stream, payload) = (frame.header.kind, frame.header.stream, frame.payload);
        if self.peer.is_none() && kind != Kind::Hello {
            return Err(Violation(format!("{kind:?} before HELLO")));
        }
        match kind {
            Kind::Hello => self.receive_hello(payload).map(Some),
            Kind::Open => self.receive_open(stream, payload),
            Kind::Data => Ok(self.spend(stream, kind, payload.len())?.then(|| Event::Data {
                stream,
                channel: frame.header.channel,
                data: payload.to_vec(),
            })),
            Kind::Event => {
                check_message(payload)?;
                Ok(self.spend(stream, kind, payload.len())?.then(|| Event::Event {
                    stream,
                    payload: payload.to_vec(),
                }))
            }
            Kind::Credit => self.receive_credit(stream, payload),
            Kind::End => self.receive_end(stream),
            Kind::Reply => {
                check_message(payload)?;
                let Some(state) = self.answered(stream, kind)? else {
                    return Ok(None);
                };
                if std::mem::replace(&mut state.replied, true) {
                    return Err(Violation(format!("second REPLY on stream {stream}")));
                }
                Ok(Some(Event::Reply {
                    stream,
                    payload: payload.to_vec(),
                }))
            }
            Kind::Error => {
                check_message(payload)?;
                if self.answered(stream, kind)?.is_none() {
                    return Ok(None);
                }
                self.streams.remove(&stream);
                let error = decode(payload).map_err(|error| Violation(format!("malformed ERROR: {error}")))?;
                Ok(Some(Event::Error { stream, error }))
            }
            Kind::Cancel => {
                if self.side == Side::Client {
                    return Err(Violation("CANCEL from a server".to_owned()));
                }
                Ok(self.live(stream, kind)?.is_some().then(|| {
                    self.streams.remove(&stream);
                    Event::Cancel { stream }
                }))
            }
            Kind::Ping => {
                self.push(Kind::Pong, 0, payload);
                Ok(None)
            }
            Kind::Pong => {
                let mut bytes = [0; 8];
                bytes.copy_from_slice(payload);
                Ok(Some(Event::Pong(bytes)))
            }
        }
    }

    fn receive_hello(&mut self, payload: &[u8]) -> Result<Event, Violation> {
        if self.peer.is_some() {
            return Err(Violation("second HELLO".to_owned()));
        }
        check_message(payload)?;
        let peer: Hello = decode(payload).map_err(|error| Violation(format!("malformed HELLO: {error}")))?;
        if peer.version != VERSION {
            return Err(Violation(format!(
                "the peer speaks version {}, this end {VERSION}",
                peer.version
            )));
        }
        if !(MIN_WINDOW_BYTES..=MAX_WINDOW_BYTES).contains(&peer.window) {
            return Err(Violation(format!("window of {} bytes", peer.window)));
        }
        if !matches!(peer.role.as_str(), "host" | "agent" | "control") {
            return Err(Violation("unknown role in HELLO".to_owned()));
        }
        if peer.boot.len() > 64 || peer.token.len() > 256 || peer.agent.len() > 64 {
            return Err(Violation("oversized field in HELLO".to_owned()));
        }
        self.peer = Some(peer.clone());
        Ok(Event::Hello(peer))
    }

    fn receive_open(&mut self, stream: u32, payload: &[u8]) -> Result<Option<Event>, Violation> {
        if self.side == Side::Client {
            return Err(Violation("OPEN from a server".to_owned()));
        }
        if stream <= self.last_stream {
            return Err(Violation(format!("stream {stream} opened after {}", self.last_stream)));
        }
        if self.streams.len() >= self.hello.max_streams as usize {
            return Err(Violation(format!("more than {} streams", self.hello.max_streams)));
        }
        let (method, params) = split_open(payload)?;
        self.last_stream = stream;
        self.add_stream(stream);
        if let (Some(method), Some(params)) = (method, params) {
            return Ok(Some(Event::Open {
                stream,
                method: method.to_owned(),
                params: params.to_vec(),
            }));
        }
        self.error(
            stream,
            &ErrorMessage::new(
                400,
                "bad_request",
                "Invalid request: OPEN needs a method and parameters",
            ),
        );
        Ok(None)
    }

    fn receive_credit(&mut self, stream: u32, payload: &[u8]) -> Result<Option<Event>, Violation> {
        let bytes = payload
            .iter()
            .rev()
            .fold(0, |number: u32, byte| number << 8 | u32::from(*byte));
        let Some(state) = self.live(stream, Kind::Credit)? else {
            return Ok(None);
        };
        let credit = state.send_credit + u64::from(bytes);
        if credit > MAX_OUTSTANDING_CREDIT {
            let text = format!("stream {stream} was given more than {MAX_OUTSTANDING_CREDIT} bytes of credit");
            return Err(Violation(text));
        }
        state.send_credit = credit;
        Ok(Some(Event::Credit { stream, bytes }))
    }

    fn receive_end(&mut self, stream: u32) -> Result<Option<Event>, Violation> {
        let client = self.side == Side::Client;
        let Some(state) = self.live(stream, Kind::End)? else {
            return Ok(None);
        };
        if client && !state.replied {
            return Err(Violation(format!("END before the reply on stream {stream}")));
        }
        if std::mem::replace(&mut state.received_end, true) {
            return Err(Violation(format!("second END on stream {stream}")));
        }
        if state.sent_end {
            self.streams.remove(&stream);
        }
        Ok(Some(Event::End { stream }))
    }

    /// The state of an open stream; `None` for one that is over; a violation for one that never was.
    fn live(&mut self, stream: u32, kind: Kind) -> Result<Option<&mut StreamState>, Violation> {
        if stream > self.last_stream {
            return Err(Violation(format!(
                "{kind:?} on stream {stream}, which was never opened"
            )));
        }
        Ok(self.streams.get_mut(&stream))
    }

    fn answered(&mut self, stream: u32, kind: Kind) -> Result<Option<&mut StreamState>, Violation> {
        if self.side == Side::Server {
            return Err(Violation(format!("{kind:?} from a client")));
        }
        self.live(stream, kind)
    }

    /// Charge received EVENT or DATA; false when the stream is over and the frame is to be ignored.
    fn spend(&mut self, stream: u32, kind: Kind, size: usize) -> Result<bool, Violation> {
        let client = self.side == Side::Client;
        let Some(state) = self.live(stream, kind)? else {
            return Ok(false);
        };
        if state.received_end {
            return Err(Violation(format!("{kind:?} after END on stream {stream}")));
        }
        if client && !state.replied {
            return Err(Violation(format!("{kind:?} before the reply on stream {stream}")));
        }
        let Some(rest) = state.receive_credit.checked_sub(size as u64) else {
            let credit = state.receive_credit;
            return Err(Violation(format!(
                "stream {stream} sent {size} bytes with {credit} bytes of credit"
            )));
        };
        state.receive_credit = rest;
        Ok(true)
    }

    // -- sending -------------------------------------------------------------------------------------------------

    /// Open a stream (client). `None` before the peer's HELLO, beyond its `max_streams` or when all ids are used up.
    pub fn open(&mut self, method: &str, params: &[u8]) -> Option<u32> {
        if self.streams.len() >= self.peer.as_ref()?.max_streams as usize || self.last_stream == u32::MAX {
            return None;
        }
        let mut payload = vec![0x82, 0xa1, b'm'];
        payload.extend_from_slice(&encode(&method));
        payload.extend_from_slice(&[0xa1, b'p']);
        payload.extend_from_slice(params);
        self.last_stream += 1;
        self.push(Kind::Open, self.last_stream, &payload);
        self.add_stream(self.last_stream);
        Some(self.last_stream)
    }

    /// Answer a stream with an encoded map. Ignored when the stream is over.
    pub fn reply(&mut self, stream: u32, payload: &[u8]) {
        if let Some(state) = self.streams.get_mut(&stream) {
            debug_assert!(!state.replied, "second reply on stream {stream}");
            state.replied = true;
            self.push(Kind::Reply, stream, payload);
        }
    }

    /// Bytes of EVENT and DATA that may be sent on `stream` now; 0 when it is over.
    pub fn send_credit(&self, stream: u32) -> usize {
        self.streams
            .get(&stream)
            .map_or(0, |state| if state.sent_end { 0 } else { state.send_credit as usize })
    }

    /// Send an encoded map; the owner has asked `send_credit` first.
    pub fn event(&mut self, stream: u32, payload: &[u8]) {
        if self.charge(stream, payload.len()) {
            self.push(Kind::Event, stream, payload);
        }
    }

    /// Send `bytes[start..start + length]`; the owner has asked `send_credit` first.
    pub fn data(&mut self, stream: u32, channel: u8, bytes: &Arc<Vec<u8>>, start: usize, length: usize) {
        if self.charge(stream, length) {
            let header = Header {
                length: length as u32,
                kind: Kind::Data,
                channel,
                stream,
            };
            self.outgoing.push_shared(header, bytes, start);
        }
    }

    fn charge(&mut self, stream: u32, size: usize) -> bool {
        let Some(state) = self.streams.get_mut(&stream) else {
            return false;
        };
        debug_assert!(
            !state.sent_end && size as u64 <= state.send_credit,
            "no credit on stream {stream}"
        );
        state.send_credit = state.send_credit.saturating_sub(size as u64);
        true
    }

    /// Allow the peer `bytes` more. Ignored when it can send nothing any more.
    pub fn grant(&mut self, stream: u32, bytes: u32) {
        if let Some(state) = self.streams.get_mut(&stream)
            && bytes > 0
            && !state.received_end
        {
            state.receive_credit += u64::from(bytes);
            self.push(Kind::Credit, stream, &bytes.to_le_bytes());
        }
    }

    /// Say that nothing more is sent on `stream`. Idempotent.
    pub fn end(&mut self, stream: u32) {
        let Some(state) = self.streams.get_mut(&stream) else {
            return;
        };
        if !std::mem::replace(&mut state.sent_end, true) {
            if state.received_end {
                self.streams.remove(&stream);
            }
            self.push(Kind::End, stream, &[]);
        }
    }

    /// End a stream with an error (server). Ignored when it is over.
    pub fn error(&mut self, stream: u32, error: &ErrorMessage) {
        if self.streams.remove(&stream).is_some() {
            self.push(Kind::Error, stream, &encode(error));
        }
    }

    /// Abandon a stream (client). Ignored when it is over.
    pub fn cancel(&mut self, stream: u32) {
        if self.streams.remove(&stream).is_some() {
            self.push(Kind::Cancel, stream, &[]);
        }
    }

    /// Ask for a PONG with the same bytes.
    pub fn ping(&mut self, payload: [u8; 8]) {
        self.push(Kind::Ping, 0, &payload);
    }

    fn add_stream(&mut self, stream: u32) {
        let send_credit = self.peer.as_ref().map_or(0, |peer| u64::from(peer.window));
        let receive_credit = u64::from(self.hello.window);
        let state = StreamState {
            send_credit,
            receive_credit,
            replied: false,
            sent_end: false,
            received_end: false,
        };
        self.streams.insert(stream, state);
    }

    fn push(&mut self, kind: Kind, stream: u32, payload: &[u8]) {
        assert!(
            payload.len() <= MAX_PAYLOAD_BYTES,
            "a frame carries at most {MAX_PAYLOAD_BYTES} bytes"
        );
        self.control_frames += 1;
        self.outgoing.push(
            Header {
                length: payload.len() as u32,
                kind,
                channel: 0,
                stream,
            },
            payload,
        );
    }
}
