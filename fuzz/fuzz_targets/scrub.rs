//! A secret does not get through however a response is cut, and masking changes no length. What is decoded stays bounded.

#![no_main]

use std::sync::Arc;

use bytes::BytesMut;
use hutch_fuzz::pieces;
use hutch_net::decode::{Decoder, Encoding};
use hutch_net::scrub::{Needles, SecretForms};
use libfuzzer_sys::fuzz_target;

const SECRET: &str = "sk-4f9a1c7e2b8d";
/// `egress.md` §3.13, with what one step may add before anybody counts.
const FREE_BYTES: usize = (64 << 10) + (512 << 10) + 1024;

fuzz_target!(|data: &[u8]| {
    let Some((&how, data)) = data.split_first() else { return };
    let encoding = match how % 4 {
        0 => Encoding::Gzip,
        1 => Encoding::Deflate,
        _ => return search(how, data),
    };
    let mut decoder = Decoder::new(encoding);
    let mut given = 0;
    for piece in pieces(data, &[how, 255]) {
        match decoder.push(piece) {
            Ok(bytes) => given += bytes.len(),
            Err(_) => break,
        }
        assert!(
            given <= FREE_BYTES.max(data.len() * 20),
            "{given} bytes of {}",
            data.len()
        );
    }
});

fn search(how: u8, data: &[u8]) {
    let forms = SecretForms {
        id: 0,
        value: SECRET,
        rendered: Some("Bearer sk-4f9a1c7e2b8d"),
        basic: false,
    };
    let needles = Arc::new(Needles::new(&[forms]));
    let whole = scrubbed(&needles, &[data]);
    assert_eq!(whole.len(), data.len(), "a length changed");
    let found = |text: &[u8]| {
        text.windows(SECRET.len())
            .any(|window| window.eq_ignore_ascii_case(SECRET.as_bytes()))
    };
    assert!(!found(&whole), "the secret got through");
    assert_eq!(
        scrubbed(&needles, &pieces(data, &[how])),
        whole,
        "cut in pieces it is something else"
    );
    // What has none of its letters in a row is left alone.
    if !data.iter().any(u8::is_ascii_alphanumeric) {
        assert_eq!(whole, data, "something else was masked");
    }
}

fn scrubbed(needles: &Arc<Needles>, pieces: &[&[u8]]) -> Vec<u8> {
    let (mut scrubber, mut out) = (needles.scrubber(), BytesMut::new());
    for piece in pieces {
        scrubber.push(piece, &mut out);
    }
    scrubber.finish(&mut out);
    out.to_vec()
}
