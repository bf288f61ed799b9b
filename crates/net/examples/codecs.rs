//! How fast bytes become values and back: `cargo run --release -p hutch-net --example codecs`.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;
use hutch_net::http1::{BodyDecoder, BodyKind, Decoded, HeadLimits, read_head, write_chunk, write_last_chunk};
use hutch_net::scrub::{Needles, SecretForms};

const MIB: usize = 1024 * 1024;
const CHUNK_BYTES: usize = 16 * 1024;

/// The best of seven, in seconds each.
fn measure(rounds: u32, mut work: impl FnMut()) -> f64 {
    let round = |work: &mut dyn FnMut()| {
        let begin = Instant::now();
        (0..rounds).for_each(|_| work());
        begin.elapsed().as_secs_f64() / f64::from(rounds)
    };
    (0..7).map(|_| round(&mut work)).fold(f64::INFINITY, f64::min)
}

fn megabytes(bytes: usize) -> f64 {
    f64::from(u32::try_from(bytes).expect("a few megabytes")) / 1e6
}

/// Letters and digits that look random and are the same each time.
fn noise(length: usize, seed: u32) -> Vec<u8> {
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        digits[(state >> 26) as usize]
    };
    (0..length).map(|_| next()).collect()
}

fn secret(length: usize, seed: u32) -> String {
    let tail = noise(length - 3, seed);
    format!("sk-{}", String::from_utf8_lossy(&tail))
}

fn heads() {
    let request = b"POST /v1/chat/completions?stream=true HTTP/1.1\r\nHost: api.example.com\r\nUser-Agent: python-httpx/0.28.1\r\n\
        Accept: application/json\r\nAccept-Encoding: gzip, deflate, br, zstd\r\nConnection: keep-alive\r\n\
        Content-Type: application/json\r\nAuthorization: Bearer placeholder-0123456789abcdef\r\nX-Request-Id: 5f0c1b8e-3b1c\r\n\
        X-Stainless-Lang: python\r\nContent-Length: 1834\r\n\r\n";
    let limits = HeadLimits::default();
    let seconds = measure(100_000, || {
        black_box(read_head(black_box(request), &limits))
            .expect("it is fine")
            .expect("it is complete");
    });
    println!("head of 10 lines: {:.0} ns", seconds * 1e9);

    let data = noise(MIB, 1);
    let mut encoded = BytesMut::new();
    data.chunks(CHUNK_BYTES)
        .for_each(|chunk| write_chunk(&mut encoded, chunk));
    write_last_chunk(&mut encoded, []);
    let seconds = measure(100, || {
        let mut decoder = BodyDecoder::from(BodyKind::Chunked);
        let mut buffer = BytesMut::new();
        let mut rest = encoded.chunks(CHUNK_BYTES);
        loop {
            match decoder.decode(&mut buffer).expect("it is fine") {
                Decoded::Data(data) => drop(black_box(data)),
                Decoded::NeedMore => buffer.extend_from_slice(rest.next().expect("more")),
                Decoded::End(_) => break,
            }
        }
    });
    println!("chunks: {:.0} MB/s", megabytes(MIB) / seconds);
}

fn scrubbing(what: &str, needles: &Arc<Needles>, text: &[u8], chunk_bytes: usize) {
    let mut out = BytesMut::with_capacity(chunk_bytes + 4096);
    let seconds = measure(10, || {
        let mut scrubber = needles.scrubber();
        for chunk in text.chunks(chunk_bytes) {
            out.clear();
            scrubber.push(chunk, &mut out);
            black_box(&out);
        }
    });
    println!("scrub {what}: {:.0} MB/s", megabytes(text.len()) / seconds);
}

fn main() {
    heads();
    let secrets: Vec<String> = (0..8).map(|index| secret(64, index)).collect();
    let rendered: Vec<String> = secrets.iter().map(|secret| format!("Bearer {secret}")).collect();
    let forms: Vec<SecretForms> = secrets
        .iter()
        .zip(&rendered)
        .enumerate()
        .map(|(id, (value, rendered))| SecretForms {
            id,
            value,
            rendered: Some(rendered),
            basic: false,
        })
        .collect();
    for count in [1, 2, 8] {
        let seconds = measure(100, || drop(black_box(Needles::new(black_box(&forms[..count])))));
        println!("needles of {count} secrets of 64 bytes: {:.0} us", seconds * 1e6);
    }
    let long = secret(2048, 9);
    let seconds = measure(10, || {
        drop(black_box(Needles::new(&[SecretForms {
            id: 0,
            value: &long,
            rendered: None,
            basic: false,
        }])));
    });
    println!("needles of a secret of 2048 bytes: {:.0} us", seconds * 1e6);

    let one = Arc::new(Needles::new(&forms[..1]));
    let eight = Arc::new(Needles::new(&forms));
    let words = b"{\"id\": \"chatcmpl-123\", \"choices\": [{\"delta\": {\"content\": \"The quick brown fox &amp; \\u00e4\"}}]}\n\n";
    let json: Vec<u8> = words.iter().copied().cycle().take(8 * MIB).collect();
    scrubbing("JSON, 1 secret", &one, &json, CHUNK_BYTES);
    scrubbing("JSON, 8 secrets", &eight, &json, CHUNK_BYTES);
    scrubbing("JSON, 1 secret, pieces of 100 bytes", &one, &json, 100);
    let random = noise(8 * MIB, 77);
    scrubbing("Base64 of noise, 1 secret", &one, &random, CHUNK_BYTES);
    let starts: Vec<u8> = rendered[0].bytes().take(20).cycle().take(8 * MIB).collect();
    scrubbing("starts of the secret only, 1 secret", &one, &starts, CHUNK_BYTES);
    let hits: Vec<u8> = secrets[0].bytes().cycle().take(8 * MIB).collect();
    scrubbing("the secret only, 1 secret", &one, &hits, CHUNK_BYTES);
}
