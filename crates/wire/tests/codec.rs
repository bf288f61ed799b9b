//! Properties of the codec: any split of any bytes means the same, what one end says the other hears, and whatever
//! breaks the rules is a violation, never a panic, and costs no memory. `HUTCH_CAMPAIGN=full` tries much more.

use std::sync::Arc;

use hutch_wire::{
    Decoder, ErrorMessage, Event, HEADER_BYTES, Header, Hello, Kind, MAX_NESTING, MAX_PAYLOAD_BYTES, Mux, Outgoing,
    Side, Violation, check_message, encode,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

const WINDOW: u32 = 16 * 1024;

fn is_full() -> bool {
    std::env::var("HUTCH_CAMPAIGN").is_ok_and(|campaign| campaign == "full")
}

/// Check a property, with the same cases each time unless the campaign is a full one.
fn check<S: Strategy>(cases: u32, strategy: &S, test: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let config = Config {
        cases: if is_full() { cases * 50 } else { cases },
        failure_persistence: None,
        ..Config::default()
    };
    let mut runner = if is_full() {
        TestRunner::new(config)
    } else {
        TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]))
    };
    if let Err(error) = runner.run(strategy, test) {
        panic!("{error}");
    }
}

fn kinds() -> impl Strategy<Value = Kind> {
    prop::sample::select(vec![
        Kind::Hello,
        Kind::Open,
        Kind::Reply,
        Kind::Event,
        Kind::Data,
        Kind::Credit,
        Kind::End,
        Kind::Error,
        Kind::Cancel,
        Kind::Ping,
        Kind::Pong,
    ])
}

fn encoded(kind: Kind, stream: u32, payload: &[u8], channel: u8) -> Vec<u8> {
    let header = Header {
        length: payload.len() as u32,
        kind,
        channel: if kind == Kind::Data { channel } else { 0 },
        stream: match kind {
            Kind::Hello | Kind::Ping | Kind::Pong => 0,
            _ => stream.max(1),
        },
    };
    [header.to_bytes().as_slice(), payload].concat()
}

/// A frame that may be sent, in its bytes.
fn frames() -> impl Strategy<Value = Vec<u8>> {
    (
        kinds(),
        any::<u32>(),
        prop::collection::vec(any::<u8>(), 1..300),
        0..3_u8,
    )
        .prop_map(|(kind, stream, mut payload, channel)| {
            match kind {
                Kind::End | Kind::Cancel => payload.clear(),
                Kind::Credit => payload.resize(4, 1),
                Kind::Ping | Kind::Pong => payload.resize(8, 1),
                _ => {}
            }
            encoded(kind, stream, &payload, channel)
        })
}

fn decode(chunks: &[&[u8]]) -> (Vec<(Header, Vec<u8>)>, Option<Violation>) {
    let (mut decoder, mut found) = (Decoder::default(), Vec::new());
    for chunk in chunks {
        decoder.feed(chunk);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => found.push((frame.header, frame.payload.to_vec())),
                Ok(None) => break,
                Err(violation) => return (found, Some(violation)),
            }
        }
    }
    (found, None)
}

fn split<'a>(bytes: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    cuts.extend([0, bytes.len()]);
    cuts.sort_unstable();
    cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
}

#[test]
fn any_split_of_any_bytes_decodes_the_same() {
    let strategy = (
        prop::collection::vec(frames(), 0..6),
        prop::collection::vec(any::<u8>(), 0..60),
        prop::collection::vec(any::<prop::sample::Index>(), 0..10),
    );
    check(300, &strategy, |(frames, rest, cuts)| {
        let bytes = [frames.concat(), rest].concat();
        let whole = decode(&[&bytes]);
        prop_assert_eq!(&decode(&split(&bytes, &cuts)), &whole);
        prop_assert_eq!(&decode(&bytes.chunks(1).collect::<Vec<_>>()), &whole);
        prop_assert!(whole.0.len() >= frames.len());
        let again: Vec<Vec<u8>> = whole
            .0
            .iter()
            .map(|(header, payload)| [header.to_bytes().as_slice(), payload].concat())
            .collect();
        prop_assert!(bytes.starts_with(&again.concat()));
        Ok(())
    });
}

#[test]
fn a_decoder_holds_one_frame_and_one_chunk() {
    let frame = encoded(Kind::Data, 1, &vec![7; MAX_PAYLOAD_BYTES], 1);
    let mut decoder = Decoder::default();
    for _ in 0..20 {
        for chunk in frame.chunks(5000) {
            decoder.feed(chunk);
            while decoder.next_frame().unwrap().is_some() {}
            assert!(decoder.capacity() <= 2 * (MAX_PAYLOAD_BYTES + HEADER_BYTES + 5000));
        }
    }
    decoder.release();
    assert_eq!(decoder.capacity(), 0);
}

#[test]
fn queued_bytes_leave_in_order_however_they_are_written() {
    let strategy = (
        prop::collection::vec((frames(), any::<bool>()), 1..12),
        prop::collection::vec(1..4000_usize, 1..30),
    );
    check(200, &strategy, |(frames, writes)| {
        let (mut outgoing, mut expected, mut written) = (Outgoing::default(), Vec::new(), Vec::new());
        for (index, (bytes, shared)) in frames.iter().enumerate() {
            // Large enough not to be copied, with a part of the buffer left out.
            let payload = bytes.repeat(if *shared { 1 + 3000 / bytes.len() } else { 1 });
            let header = Header {
                length: payload.len() as u32 - 1,
                kind: Kind::Data,
                channel: 1,
                stream: index as u32 + 1,
            };
            expected.extend_from_slice(&header.to_bytes());
            expected.extend_from_slice(&payload[1..]);
            if *shared {
                outgoing.push_shared(header, &Arc::new(payload), 1);
            } else {
                outgoing.push(header, &payload[1..]);
            }
            if let Some(size) = writes.get(index) {
                take(&mut outgoing, &mut written, *size);
            }
            prop_assert_eq!(written.len() + outgoing.len(), expected.len());
        }
        for size in writes.iter().cycle() {
            if outgoing.is_empty() {
                break;
            }
            take(&mut outgoing, &mut written, *size);
        }
        prop_assert_eq!(written, expected);
        Ok(())
    });
}

fn take(outgoing: &mut Outgoing, written: &mut Vec<u8>, size: usize) {
    let mut slices = Vec::new();
    outgoing.slices(&mut slices, 3);
    let bytes: Vec<u8> = slices
        .iter()
        .flat_map(|slice| slice.iter().copied())
        .take(size)
        .collect();
    written.extend_from_slice(&bytes);
    outgoing.consume(bytes.len());
}

/// A value as JSON has it, at most five deep.
fn values() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f32>().prop_map(Into::into),
        ".{0,40}".prop_map(Into::into),
    ];
    leaf.prop_recursive(5, 60, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..20).prop_map(Into::into),
            prop::collection::btree_map(".{0,5}", inner, 0..20)
                .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
        ]
    })
}

#[test]
fn values_are_taken_whole_or_not_at_all() {
    check(300, &(values(), any::<prop::sample::Index>()), |(value, cut)| {
        let bytes = encode(&serde_json::json!({ "a": value }));
        prop_assert!(check_message(&bytes).is_ok());
        prop_assert!(check_message(&bytes[..cut.index(bytes.len())]).is_err());
        prop_assert!(check_message(&[bytes.as_slice(), b"\x80"].concat()).is_err());
        let decoded: serde_json::Value = hutch_wire::decode(&bytes).unwrap();
        prop_assert_eq!(encode(&decoded), bytes);
        Ok(())
    });
    check(2000, &prop::collection::vec(any::<u8>(), 0..200), |bytes| {
        if check_message(&bytes).is_ok() {
            let decoded = hutch_wire::decode::<serde::de::IgnoredAny>(&bytes);
            prop_assert!(decoded.is_ok() || std::str::from_utf8(&bytes).is_err());
        }
        Ok(())
    });
    let nested = |depth: usize| [b"\x81\xa1a".repeat(depth - 1), b"\x80".to_vec()].concat();
    assert!(check_message(&nested(MAX_NESTING)).is_ok());
    assert!(check_message(&nested(MAX_NESTING + 1)).is_err());
    for huge in [
        b"\x81\xa1a\xdd\xff\xff\xff\xff".as_slice(),
        b"\x81\xa1a\xdb\xff\xff\xff\xff",
        b"\x81\xa1a\xc9\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
    ] {
        assert!(check_message(huge).is_err());
    }
}

// -- a peer that is not honest -----------------------------------------------------------------------------------

fn hello(role: &str) -> Hello {
    Hello {
        version: 1,
        role: role.to_owned(),
        window: WINDOW,
        max_streams: 16,
        boot: String::new(),
        token: String::new(),
        agent: String::new(),
    }
}

/// An end with streams in different states.
fn prepared(side: Side) -> Mux {
    let mut mux = Mux::new(side, hello("host"));
    mux.decoder.feed(&encoded(Kind::Hello, 0, &encode(&hello("agent")), 0));
    mux.next_event().unwrap();
    if side == Side::Client {
        for _ in 0..3 {
            mux.open("m", b"\x80").unwrap();
        }
        mux.decoder.feed(&encoded(Kind::Reply, 1, b"\x80", 0));
        mux.decoder.feed(&encoded(Kind::Reply, 2, b"\x80", 0));
        while mux.next_event().unwrap().is_some() {}
        mux.end(1);
        mux.cancel(3);
    } else {
        for stream in 1..=3 {
            mux.decoder
                .feed(&encoded(Kind::Open, stream, b"\x82\xa1m\xa1m\xa1p\x80", 0));
        }
        while mux.next_event().unwrap().is_some() {}
        mux.reply(1, b"\x80");
        mux.end(1);
        mux.error(3, &ErrorMessage::new(400, "c", "m"));
    }
    mux.outgoing.take();
    mux
}

/// Only a violation may stop it, and what it holds stays within its bounds.
fn survive(mux: &mut Mux, bytes: &[u8], chunk: usize) -> Result<(), TestCaseError> {
    for chunk in bytes.chunks(chunk.max(1)) {
        mux.decoder.feed(chunk);
        loop {
            match mux.next_event() {
                Ok(Some(Event::Data { data, .. })) => prop_assert!((1..=WINDOW as usize).contains(&data.len())),
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return Ok(()),
            }
            prop_assert!(mux.open_streams() <= 16);
        }
    }
    prop_assert!(mux.outgoing.len() <= 200 + 12 * bytes.len());
    Ok(())
}

fn sides() -> impl Strategy<Value = Side> {
    prop::sample::select(vec![Side::Client, Side::Server])
}

fn payloads() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(b"\x80".to_vec()),
        Just(b"\x82\xa1m\xa1x\xa1p\x80".to_vec()),
        Just(b"\x81\xa1m\x05".to_vec()),
        Just(b"\x83\xa1s\xcd\x01\x90\xa1c\xa1c\xa1m\xa1m".to_vec()),
        Just(b"\xdf\xff\xff\xff\xff".to_vec()),
        Just([b"\x81\xa1a".as_slice(), &[0x91; 5000]].concat()),
        prop::collection::vec(any::<u8>(), 1..80),
        (1..20_000_usize).prop_map(|length| vec![0x61; length]),
    ]
}

#[test]
fn hostile_frames_are_violations_at_worst() {
    let stream = prop_oneof![1..5_u32, any::<u32>()];
    let hostile = (kinds(), stream, payloads(), 0..3_u8).prop_map(|(kind, stream, mut payload, channel)| {
        match kind {
            Kind::End | Kind::Cancel => payload.clear(),
            Kind::Credit => payload.resize(4, 0xff),
            Kind::Ping | Kind::Pong => payload.resize(8, 0),
            _ => {}
        }
        encoded(kind, stream, &payload, channel)
    });
    let strategy = (sides(), prop::collection::vec(hostile, 1..20), 1..5000_usize);
    check(1000, &strategy, |(side, frames, chunk)| {
        survive(&mut prepared(side), &frames.concat(), chunk)
    });
}

#[test]
fn random_and_mutated_bytes_are_violations_at_worst() {
    let strategy = (
        sides(),
        prop::collection::vec(frames(), 0..6),
        prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        prop::collection::vec(any::<u8>(), 1..200),
        1..300_usize,
    );
    check(1000, &strategy, |(side, frames, changes, rest, chunk)| {
        let mut bytes = [frames.concat(), rest].concat();
        for (place, value) in changes {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        survive(&mut prepared(side), &bytes, chunk)
    });
}

// -- two honest ends -----------------------------------------------------------------------------------------------

#[derive(Debug, Clone, Copy)]
enum Act {
    Open,
    Reply(prop::sample::Index),
    Send(bool, prop::sample::Index, usize),
    Event(bool, prop::sample::Index),
    End(bool, prop::sample::Index),
    Fail(prop::sample::Index),
    Cancel(prop::sample::Index),
    Deliver(bool, usize),
}

fn acts() -> impl Strategy<Value = Act> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        2 => Just(Act::Open),
        2 => index().prop_map(Act::Reply),
        4 => (any::<bool>(), index(), 1..WINDOW as usize).prop_map(|(client, stream, size)| Act::Send(client, stream, size)),
        2 => (any::<bool>(), index()).prop_map(|(client, stream)| Act::Event(client, stream)),
        1 => (any::<bool>(), index()).prop_map(|(client, stream)| Act::End(client, stream)),
        1 => index().prop_map(Act::Fail),
        1 => index().prop_map(Act::Cancel),
        6 => (any::<bool>(), 1..40_000_usize).prop_map(|(client, size)| Act::Deliver(client, size)),
    ]
}

/// Both ends, what is on its way between them, and how many bytes each has said and heard.
struct Pair {
    client: Mux,
    server: Mux,
    wires: [Vec<u8>; 2],
    opened: u32,
    replied: Vec<u32>,
    said: [u64; 2],
    heard: [u64; 2],
    cut: bool,
}

impl Pair {
    fn new() -> Self {
        let mut pair = Self {
            client: Mux::new(Side::Client, hello("host")),
            server: Mux::new(Side::Server, hello("agent")),
            wires: [Vec::new(), Vec::new()],
            opened: 0,
            replied: Vec::new(),
            said: [0; 2],
            heard: [0; 2],
            cut: false,
        };
        pair.deliver(true, usize::MAX);
        pair.deliver(false, usize::MAX);
        pair
    }

    fn end(&mut self, client: bool) -> &mut Mux {
        if client { &mut self.client } else { &mut self.server }
    }

    fn deliver(&mut self, client: bool, size: usize) {
        let wire = usize::from(client);
        let sent = self.end(client).outgoing.take();
        self.wires[wire].extend(sent);
        let size = size.min(self.wires[wire].len());
        let bytes: Vec<u8> = self.wires[wire].drain(..size).collect();
        self.end(!client).decoder.feed(&bytes);
        while let Some(event) = self.end(!client).next_event().expect("both ends are honest") {
            let (stream, heard) = match event {
                Event::Data { stream, data, .. } => (stream, data.len()),
                Event::Event { stream, payload } => (stream, payload.len()),
                _ => continue,
            };
            self.heard[wire] += heard as u64;
            self.end(!client).grant(stream, heard as u32);
        }
    }

    /// A stream that `client`'s end may send on.
    fn sendable(&mut self, client: bool, index: prop::sample::Index) -> Option<u32> {
        let stream = 1 + index.index(self.opened.max(1) as usize) as u32;
        let replied = client || self.replied.contains(&stream);
        (replied && self.end(client).send_credit(stream) > 0).then_some(stream)
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Open => {
                if let Some(stream) = self.client.open("m", b"\x80") {
                    self.opened = stream;
                }
            }
            Act::Reply(index) => {
                let stream = 1 + index.index(self.opened.max(1) as usize) as u32;
                if self.server.is_open(stream) && !self.replied.contains(&stream) {
                    self.server.reply(stream, b"\x80");
                    self.replied.push(stream);
                }
            }
            Act::Send(client, index, size) => {
                if let Some(stream) = self.sendable(client, index) {
                    let size = size.min(self.end(client).send_credit(stream));
                    self.end(client).data(stream, 1, &Arc::new(vec![1; size]), 0, size);
                    self.said[usize::from(client)] += size as u64;
                }
            }
            Act::Event(client, index) => {
                if let Some(stream) = self.sendable(client, index) {
                    self.end(client).event(stream, b"\x80");
                    self.said[usize::from(client)] += 1;
                }
            }
            Act::End(client, index) => {
                if let Some(stream) = self.sendable(client, index) {
                    self.end(client).end(stream);
                }
            }
            Act::Fail(index) => {
                let stream = 1 + index.index(self.opened.max(1) as usize) as u32;
                self.cut |= self.server.is_open(stream);
                self.server.error(stream, &ErrorMessage::new(404, "c", "m"));
            }
            Act::Cancel(index) => {
                let stream = 1 + index.index(self.opened.max(1) as usize) as u32;
                self.cut |= self.client.is_open(stream);
                self.client.cancel(stream);
            }
            Act::Deliver(client, size) => self.deliver(client, size),
        }
    }
}

#[test]
fn honest_ends_never_see_a_violation_and_lose_nothing() {
    check(300, &prop::collection::vec(acts(), 1..120), |acts| {
        let mut pair = Pair::new();
        for act in acts {
            pair.act(act);
        }
        for _ in 0..2 {
            pair.deliver(true, usize::MAX);
            pair.deliver(false, usize::MAX);
        }
        if !pair.cut {
            prop_assert_eq!(pair.said, pair.heard);
        }
        prop_assert!(pair.client.open_streams() <= 16 && pair.server.open_streams() <= 16);
        Ok(())
    });
}
