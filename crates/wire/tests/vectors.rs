//! Both codecs make the same of the same bytes; `tests/wire/test_vectors.py` is the other half of this file.

use hutch_wire::{Decoder, ErrorMessage, Event, Header, Hello, Kind, Mux, Side, Violation};
use serde_json::{Value, json};

fn vectors() -> Value {
    serde_json::from_str(include_str!("../../../tests/wire/vectors.json")).unwrap()
}

fn bytes(hexadecimal: &Value) -> Vec<u8> {
    let text = hexadecimal.as_str().unwrap();
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

const KINDS: [(&str, Kind); 11] = [
    ("HELLO", Kind::Hello),
    ("OPEN", Kind::Open),
    ("REPLY", Kind::Reply),
    ("EVENT", Kind::Event),
    ("DATA", Kind::Data),
    ("CREDIT", Kind::Credit),
    ("END", Kind::End),
    ("ERROR", Kind::Error),
    ("CANCEL", Kind::Cancel),
    ("PING", Kind::Ping),
    ("PONG", Kind::Pong),
];

fn encoded(frame: &Value) -> Vec<u8> {
    let payload = bytes(&frame[2]);
    let header = Header {
        length: payload.len() as u32,
        kind: KINDS.iter().find(|(name, _)| frame[0] == *name).unwrap().1,
        channel: frame[3].as_u64().unwrap_or(0) as u8,
        stream: frame[1].as_u64().unwrap() as u32,
    };
    [header.to_bytes().as_slice(), &payload].concat()
}

fn all_encoded(frames: &Value) -> Vec<u8> {
    frames.as_array().unwrap().iter().flat_map(encoded).collect()
}

fn decode(data: &[u8], size: usize) -> Result<Vec<Value>, Violation> {
    let (mut decoder, mut frames) = (Decoder::default(), Vec::new());
    for chunk in data.chunks(size) {
        decoder.feed(chunk);
        while let Some(frame) = decoder.next_frame()? {
            let Header {
                kind, channel, stream, ..
            } = frame.header;
            let name = KINDS.iter().find(|(_, other)| *other == kind).unwrap().0;
            frames.push(json!([name, stream, hexadecimal(frame.payload), channel]));
        }
    }
    Ok(frames)
}

#[test]
fn frames() {
    for vector in vectors()["frames"].as_array().unwrap() {
        for size in [1, 7, 1_000_000] {
            let outcome = decode(&bytes(&vector["bytes"]), size);
            if vector["violation"] == true {
                assert!(outcome.is_err(), "{}", vector["name"]);
                continue;
            }
            let mut expected = vector["frames"].as_array().unwrap().clone();
            for frame in expected.iter_mut().filter_map(Value::as_array_mut) {
                frame.resize(4, json!(0));
            }
            assert_eq!(outcome.unwrap(), expected, "{}", vector["name"]);
        }
    }
}

fn described(event: Event) -> Value {
    match event {
        Event::Hello(hello) => json!(["hello", hello.role, hello.window, hello.max_streams]),
        Event::Open { stream, method, params } => json!(["open", stream, method, hexadecimal(&params)]),
        Event::Reply { stream, payload } => json!(["reply", stream, hexadecimal(&payload)]),
        Event::Event { stream, payload } => json!(["event", stream, hexadecimal(&payload)]),
        Event::Data { stream, channel, data } => json!(["data", stream, channel, hexadecimal(&data)]),
        Event::Credit { stream, .. } => json!(["credit", stream]),
        Event::End { stream } => json!(["end", stream]),
        Event::Error { stream, error } => json!(["error", stream, error.status, error.code, error.message]),
        Event::Cancel { stream } => json!(["cancel", stream]),
        Event::Pong(payload) => json!(["pong", hexadecimal(&payload)]),
    }
}

/// What a session says and sends.
fn run(session: &Value, size: usize) -> Result<(Vec<Value>, Vec<u8>), Violation> {
    let side = if session["side"] == "client" {
        Side::Client
    } else {
        Side::Server
    };
    let hello = Hello {
        version: 1,
        role: "host".to_owned(),
        window: 64,
        max_streams: 4,
        boot: String::new(),
        token: String::new(),
        agent: String::new(),
    };
    let mut mux = Mux::new(side, hello);
    mux.outgoing.take();
    let mut events = Vec::new();
    for step in session["steps"].as_array().unwrap() {
        let (action, operand) = step.as_object().unwrap().iter().next().unwrap();
        let stream = operand.as_u64().unwrap_or(0) as u32;
        match action.as_str() {
            "receive" => {
                for chunk in all_encoded(operand).chunks(size) {
                    mux.decoder.feed(chunk);
                    while let Some(event) = mux.next_event()? {
                        events.push(described(event));
                    }
                }
            }
            "open" => drop(mux.open(operand.as_str().unwrap(), b"\x80")),
            "reply" => mux.reply(stream, b"\x80"),
            "end" => mux.end(stream),
            "error" => mux.error(stream, &ErrorMessage::new(404, "not_found", "No.")),
            "cancel" => mux.cancel(stream),
            "grant" => mux.grant(operand[0].as_u64().unwrap() as u32, operand[1].as_u64().unwrap() as u32),
            other => panic!("{other}"),
        }
    }
    Ok((events, mux.outgoing.take()))
}

#[test]
fn sessions() {
    for session in vectors()["sessions"].as_array().unwrap() {
        for size in [1, 1_000_000] {
            let outcome = run(session, size);
            if session["violation"] == true {
                assert!(outcome.is_err(), "{}", session["name"]);
                continue;
            }
            let (events, sent) = outcome.unwrap_or_else(|violation| panic!("{}: {violation}", session["name"]));
            assert_eq!(&Value::from(events), &session["events"], "{}", session["name"]);
            assert_eq!(sent, all_encoded(&session["sent"]), "{}", session["name"]);
        }
    }
}
