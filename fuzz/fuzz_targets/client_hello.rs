//! What a client speaks does not depend on how its bytes arrive, nor on how TLS cut its greeting into records.

#![no_main]

use hutch_net::hello::{Look, MAX_BYTES, sniff};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let whole = sniff(data);
    assert!(
        data.len() < MAX_BYTES || whole != Look::NeedMore,
        "waits for more than it ever needs"
    );
    for end in 0..data.len() {
        match sniff(&data[..end]) {
            Look::NeedMore => {}
            // After these the client must wait, and what follows at once is refused.
            Look::PostgresTls | Look::PostgresGss => {}
            early => assert_eq!(early, whole, "another verdict after {end} bytes"),
        }
    }
    let Look::Tls(hello) = &whole else { return };
    let message = handshake(data);
    for size in [1, 7, 100, 16384] {
        let cut: Vec<u8> = message
            .chunks(size)
            .flat_map(|piece| {
                let length = u16::try_from(piece.len()).expect("a piece fits into a record");
                [&[22, 3, 1], length.to_be_bytes().as_slice(), piece].concat()
            })
            .collect();
        match sniff(&cut) {
            Look::Tls(again) => assert_eq!(&again, hello, "another reading in records of {size}"),
            Look::Broken(_) if message.len() / size > 4000 => {}
            other => panic!("{other:?} in records of {size}"),
        }
    }
});

/// The first message, taken out of its records.
fn handshake(mut data: &[u8]) -> Vec<u8> {
    let mut message: Vec<u8> = Vec::new();
    loop {
        if let Some(&[_, a, b, c]) = message.first_chunk::<4>() {
            let length = 4 + usize::from(a) * 65536 + usize::from(b) * 256 + usize::from(c);
            if message.len() >= length {
                message.truncate(length);
                return message;
            }
        }
        let length = usize::from(u16::from_be_bytes([data[3], data[4]]));
        message.extend_from_slice(&data[5..5 + length]);
        data = &data[5 + length..];
    }
}
