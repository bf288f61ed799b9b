//! A head of HTTP/1 has one reading: however much of it is there, written again, and by another strict parser. What goes to
//! the server is such a head, for the flow's name and without the client's framing, and would go there the same again. A
//! body is the same however it is cut.

#![no_main]

use std::sync::{Arc, LazyLock};

use bytes::{Bytes, BytesMut};
use hutch_fuzz::{admitted, pieces, runtime, sandbox};
use hutch_net::head::{self, Parts};
use hutch_net::http1::{BodyDecoder, BodyKind, Decoded, Head, HeadLimits, Version, read_head};
use hutch_net::sandbox::Current;
use hutch_policy::{Admission, CredentialState, Facts, Outcome, Request};
use libfuzzer_sys::fuzz_target;

/// A name whose requests pass.
const NAME: &str = "x.wild.test";

static FLOW: LazyLock<(Arc<Current>, Admission)> = LazyLock::new(|| {
    let current = runtime().block_on(async { sandbox().await.current() });
    let (_, admission) = admitted(&current, NAME);
    (current, admission)
});

fuzz_target!(|data: &[u8]| {
    let limits = HeadLimits::default();
    let Ok(Some((head, length))) = read_head(data, &limits) else {
        return;
    };
    for end in [1, length / 2, length - 1] {
        assert!(
            matches!(read_head(&data[..end], &limits), Ok(None)),
            "a verdict before the end"
        );
    }
    let again = written(&head);
    let (second, _) = read_head(&again, &limits)
        .expect("what was read is a head")
        .expect("all of it");
    assert_eq!(
        parts(&head),
        parts(&second),
        "another reading of what was written again"
    );
    other_parser(data, length, &head);
    sent_on(&head);
    let rest = &data[length..];
    let whole = decoded(&head, &[rest]);
    if let Some((&size, _)) = rest.split_last() {
        let cut = decoded(&head, &pieces(rest, &[size % 7, size % 31]));
        // An error may be noticed before all is there; what was given until then is the same.
        let common = whole.0.len().min(cut.0.len());
        assert_eq!(whole.0[..common], cut.0[..common], "another body when it is cut");
        assert_eq!(whole.1, cut.1, "another end when it is cut");
    }
});

type Reading = (Vec<u8>, Vec<u8>, Vec<(Vec<u8>, Vec<u8>)>);

fn parts(head: &Head) -> Reading {
    let lines = head.headers().map(|(name, value)| (name.to_vec(), value.to_vec()));
    (head.method().to_vec(), head.target().to_vec(), lines.collect())
}

fn written(head: &Head) -> Vec<u8> {
    let version: &[u8] = if head.version == Version::Http11 {
        b"HTTP/1.1"
    } else {
        b"HTTP/1.0"
    };
    let mut out = [head.method(), b" ", head.target(), b" ", version, b"\r\n"].concat();
    for (name, value) in head.headers() {
        out.extend_from_slice(&[name, b": ", value, b"\r\n"].concat());
    }
    out.extend_from_slice(b"\r\n");
    out
}

fn sent_on(head: &Head) {
    let Some(sent) = rebuilt(head) else { return };
    let (server, length) = read_head(&sent, &HeadLimits::default())
        .expect("what is sent is a head")
        .expect("all of it");
    assert_eq!(length, sent.len(), "bytes behind the head");
    assert_eq!(server.body, BodyKind::None, "the client's framing got through");
    let hosts: Vec<&[u8]> = server.values(b"host").collect();
    assert_eq!(hosts, [NAME.as_bytes()], "for another host");
    assert_eq!(rebuilt(&server), Some(sent), "another request when it is sent on again");
}

/// The head for the server, if the request is not refused.
fn rebuilt(head: &Head) -> Option<Vec<u8>> {
    let (current, admission) = &*FLOW;
    let lines: Vec<(&[u8], &[u8])> = head.headers().collect();
    let request = Request {
        method: head.method(),
        target: head.target(),
        authority: None,
        headers: &lines,
    };
    let facts = Facts {
        placeholders: &current.placeholders,
        credential: &|_| CredentialState::Missing,
    };
    let Outcome::Pass(plan) = current.policy.judge(admission, &request, &facts).outcome else {
        return None;
    };
    let lines: Vec<(Bytes, Bytes)> = lines
        .iter()
        .map(|(name, value)| (Bytes::copy_from_slice(name), Bytes::copy_from_slice(value)))
        .collect();
    let parts = Parts {
        method: head.method(),
        headers: &lines,
    };
    let built = head::build(&parts, &plan, None, current).ok()?;
    let mut out = [built.method.as_str().as_bytes(), b" ", &built.target, b" HTTP/1.1\r\n"].concat();
    for (name, value) in &built.headers {
        out.extend_from_slice(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    out.extend_from_slice(b"\r\n");
    Some(out)
}

/// What we take, hyper's parser takes too, and reads the same in it.
fn other_parser(data: &[u8], length: usize, head: &Head) {
    let mut lines = [httparse::EMPTY_HEADER; 256];
    let mut request = httparse::Request::new(&mut lines);
    let Ok(httparse::Status::Complete(read)) = request.parse(data) else {
        panic!("another parser refuses what ours takes");
    };
    assert_eq!(read, length, "another parser sees another end");
    assert_eq!(request.method.map(str::as_bytes), Some(head.method()));
    assert_eq!(request.path.map(str::as_bytes), Some(head.target()));
    let theirs: Vec<(&[u8], &[u8])> = request
        .headers
        .iter()
        .map(|line| (line.name.as_bytes(), line.value))
        .collect();
    let ours: Vec<(&[u8], &[u8])> = head.headers().collect();
    assert_eq!(theirs, ours);
}

/// The body's bytes, and whether it ended, was refused, or goes on.
fn decoded(head: &Head, pieces: &[&[u8]]) -> (Vec<u8>, &'static str) {
    let mut decoder = BodyDecoder::from(head.body.clone());
    let (mut buffer, mut body) = (BytesMut::new(), Vec::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            if decoder.is_finished() {
                return (body, "ended");
            }
            match decoder.decode(&mut buffer) {
                Err(_) => return (body, "refused"),
                Ok(Decoded::Data(data)) => body.extend_from_slice(&data),
                Ok(Decoded::End(_)) => return (body, "ended"),
                Ok(Decoded::NeedMore) => break,
            }
        }
    }
    (body, "open")
}
