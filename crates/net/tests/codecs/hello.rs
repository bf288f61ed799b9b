//! What the first bytes of a client are taken for.

use std::sync::Arc;

use hutch_net::hello::{ClientHello, Look, MAX_BYTES, sniff};
use proptest::prelude::*;

use super::support::{any_cuts, check, pieces};

/// A `ClientHello` to be written, field by field, so that each can be wrong.
#[derive(Clone)]
struct Draft {
    legacy_version: u16,
    session: Vec<u8>,
    ciphers: Vec<u8>,
    compressions: Vec<u8>,
    extensions: Vec<(u16, Vec<u8>)>,
    /// Added to the length of the extensions.
    lie: i32,
    after: Vec<u8>,
}

impl Draft {
    fn new(extensions: Vec<(u16, Vec<u8>)>) -> Self {
        Self {
            legacy_version: 0x0303,
            session: vec![7; 32],
            ciphers: vec![0x13, 0x01, 0x13, 0x02],
            compressions: vec![0],
            extensions,
            lie: 0,
            after: Vec::new(),
        }
    }

    /// The handshake message with its header.
    fn message(&self) -> Vec<u8> {
        let mut body = self.legacy_version.to_be_bytes().to_vec();
        body.extend([9; 32]);
        body.push(self.session.len() as u8);
        body.extend(&self.session);
        body.extend(vector16(&self.ciphers));
        body.push(self.compressions.len() as u8);
        body.extend(&self.compressions);
        let mut extensions = Vec::new();
        for (kind, content) in &self.extensions {
            extensions.extend(kind.to_be_bytes());
            extensions.extend(vector16(content));
        }
        body.extend(((extensions.len() as i32 + self.lie) as u16).to_be_bytes());
        body.extend(extensions);
        body.extend(&self.after);
        framed(1, &body)
    }

    fn look(&self) -> Look {
        sniff(&record(&self.message()))
    }
}

fn framed(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut message = (body.len() as u32).to_be_bytes().to_vec();
    message[0] = kind;
    message.extend(body);
    message
}

fn vector16(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()
}

fn record(fragment: &[u8]) -> Vec<u8> {
    [&[22, 3, 1][..], &vector16(fragment)].concat()
}

/// Records of these lengths, the last one of what is left.
fn records(message: &[u8], cuts: &[usize]) -> Vec<u8> {
    let parts = pieces(message, cuts).into_iter().filter(|part| !part.is_empty());
    parts.flat_map(record).collect()
}

fn server_names(names: &[(u8, &[u8])]) -> (u16, Vec<u8>) {
    let list: Vec<u8> = names
        .iter()
        .flat_map(|(kind, name)| [&[*kind][..], &vector16(name)].concat())
        .collect();
    (0, vector16(&list))
}

fn server_name(name: &[u8]) -> (u16, Vec<u8>) {
    server_names(&[(0, name)])
}

fn alpn(names: &[&str]) -> (u16, Vec<u8>) {
    let list: Vec<u8> = names
        .iter()
        .flat_map(|name| [&[name.len() as u8][..], name.as_bytes()].concat())
        .collect();
    (16, vector16(&list))
}

fn versions(versions: &[u16]) -> (u16, Vec<u8>) {
    let list: Vec<u8> = versions.iter().flat_map(|version| version.to_be_bytes()).collect();
    (43, [&[list.len() as u8][..], &list].concat())
}

fn usual() -> Draft {
    Draft::new(vec![
        (0x1a1a, Vec::new()),
        server_name(b"api.test"),
        alpn(&["h2", "http/1.1"]),
        versions(&[0x0a0a, 0x0304, 0x0303]),
        (51, vec![5; 1200]),
        (0x2a2a, vec![0]),
    ])
}

fn hello() -> ClientHello {
    ClientHello {
        server_name: Some(b"api.test".to_vec()),
        alpn: vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        ech: false,
        newest_version: 0x0304,
    }
}

fn is_broken(look: &Look) -> bool {
    matches!(look, Look::Broken(_))
}

#[test]
fn a_hello_is_read_with_its_name_and_protocols() {
    assert_eq!(usual().look(), Look::Tls(hello()));
}

#[test]
fn a_hello_that_rustls_writes_is_read() {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let mut config = config;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let name = rustls::pki_types::ServerName::try_from("api.test").expect("a name");
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).expect("a vector takes everything");
    for end in 0..bytes.len() {
        assert_eq!(sniff(&bytes[..end]), Look::NeedMore, "{end} bytes");
    }
    assert_eq!(sniff(&bytes), Look::Tls(hello()));
}

#[test]
fn a_hello_without_extensions_has_no_name() {
    let mut draft = Draft::new(Vec::new());
    let mut body = draft.message()[4..].to_vec();
    body.truncate(body.len() - 2);
    let expected = Look::Tls(ClientHello {
        server_name: None,
        alpn: Vec::new(),
        ech: false,
        newest_version: 0x0303,
    });
    assert_eq!(sniff(&record(&framed(1, &body))), expected);
    assert_eq!(draft.look(), expected);
    draft.extensions.push((0xfe0d, vec![1, 2, 3]));
    assert!(matches!(draft.look(), Look::Tls(hello) if hello.ech), "T41");
}

#[test]
fn t38_the_bytes_of_a_name_are_handed_on_as_they_are() {
    for name in [
        &b"API.test."[..],
        b"10.0.0.1",
        b"a\0b",
        b"a b",
        b"_x",
        b"\xc3\xa4",
        &[b'a'; 300],
    ] {
        let look = Draft::new(vec![server_name(name)]).look();
        assert!(
            matches!(&look, Look::Tls(hello) if hello.server_name.as_deref() == Some(name)),
            "{look:?}"
        );
    }
}

#[test]
fn t38_a_name_that_two_readers_could_see_differently_is_refused() {
    let drafts = [
        (
            "two extensions",
            vec![server_name(b"api.test"), server_name(b"evil.test")],
        ),
        (
            "two equal extensions",
            vec![server_name(b"api.test"), server_name(b"api.test")],
        ),
        ("two names", vec![server_names(&[(0, b"api.test"), (0, b"evil.test")])]),
        (
            "a name of another type first",
            vec![server_names(&[(1, b"x"), (0, b"api.test")])],
        ),
        (
            "a name of another type after it",
            vec![server_names(&[(0, b"api.test"), (1, b"x")])],
        ),
        ("only a name of another type", vec![server_names(&[(1, b"api.test")])]),
        ("an empty name", vec![server_name(b"")]),
        ("an empty list", vec![server_names(&[])]),
        ("an empty extension", vec![(0, Vec::new())]),
        ("half a length", vec![(0, vec![0])]),
        (
            "a list that is too long",
            vec![(0, [&[0, 12, 0, 0, 8][..], b"api.test"].concat())],
        ),
        (
            "a list that is too short",
            vec![(0, [&[0, 10, 0, 0, 8][..], b"api.test"].concat())],
        ),
        (
            "a name that is too long",
            vec![(0, [&[0, 11, 0, 0, 9][..], b"api.test"].concat())],
        ),
        (
            "a name that is too short",
            vec![(0, [&[0, 11, 0, 0, 7][..], b"api.test"].concat())],
        ),
    ];
    for (what, extensions) in drafts {
        assert!(is_broken(&Draft::new(extensions).look()), "{what}");
    }
}

#[test]
fn any_extension_that_comes_twice_is_refused() {
    for kind in [16, 43, 51, 0x1a1a, 0xfe0d] {
        let mut draft = usual();
        let content = draft.extensions.iter().find(|(other, _)| *other == kind);
        let content = content.map_or(Vec::new(), |(_, content)| content.clone());
        draft.extensions.retain(|(other, _)| *other != kind);
        draft.extensions.push((kind, content.clone()));
        assert!(matches!(draft.look(), Look::Tls(_)), "{kind}");
        draft.extensions.insert(0, (kind, content));
        assert!(is_broken(&draft.look()), "{kind}");
    }
}

#[test]
fn lengths_that_disagree_are_refused() {
    let change = |change: &dyn Fn(&mut Draft)| {
        let mut draft = usual();
        change(&mut draft);
        draft.look()
    };
    let looks = [
        change(&|draft| draft.lie = 1),
        change(&|draft| draft.lie = -1),
        change(&|draft| draft.lie = 3000),
        change(&|draft| draft.after = vec![0]),
        change(&|draft| draft.session = vec![0; 33]),
        change(&|draft| draft.ciphers = Vec::new()),
        change(&|draft| draft.ciphers = vec![1, 2, 3]),
        change(&|draft| draft.compressions = Vec::new()),
        change(&|draft| draft.extensions[2] = (16, vec![0, 0])),
        change(&|draft| draft.extensions[2] = (16, vec![0, 1, 0])),
        change(&|draft| draft.extensions[2] = (16, vec![0, 3, 2, b'h', b'2', 0])),
        change(&|draft| draft.extensions[2] = (16, vec![0, 3, 3, b'h', b'2'])),
        change(&|draft| draft.extensions[3] = (43, vec![0])),
        change(&|draft| draft.extensions[3] = (43, vec![3, 3, 4, 3])),
        change(&|draft| draft.extensions[3] = (43, vec![2, 3, 4, 3, 3])),
        change(&|draft| draft.extensions[3] = (43, Vec::new())),
    ];
    for (index, look) in looks.iter().enumerate() {
        assert!(is_broken(look), "{index}");
    }
    // Any cut of the message itself, with a header that agrees.
    let body = usual().message()[4..].to_vec();
    let whole = 2 + 32 + 33 + 6 + 2;
    for end in (0..body.len()).filter(|&end| end != whole) {
        assert!(is_broken(&sniff(&record(&framed(1, &body[..end])))), "{end}");
    }
}

#[test]
fn t40_versions_before_tls_1_2_are_refused() {
    let with = |legacy_version, list: &[u16]| {
        let mut draft = usual();
        draft.legacy_version = legacy_version;
        draft.extensions.retain(|(kind, _)| *kind != 43);
        if !list.is_empty() {
            draft.extensions.push(versions(list));
        }
        match draft.look() {
            Look::Tls(hello) => Some(hello.newest_version),
            look => {
                assert!(is_broken(&look));
                None
            }
        }
    };
    assert_eq!(with(0x0303, &[]), Some(0x0303));
    assert_eq!(with(0x0303, &[0x0303]), Some(0x0303));
    assert_eq!(with(0x0301, &[0x0304]), Some(0x0304));
    assert_eq!(with(0x0303, &[0x0301, 0x0302, 0x0304, 0x0303]), Some(0x0304));
    assert_eq!(with(0x0302, &[]), None);
    assert_eq!(with(0x0300, &[]), None);
    assert_eq!(with(0x0002, &[]), None);
    assert_eq!(with(0x7f12, &[]), None);
    assert_eq!(with(0x0303, &[0x0302, 0x0301]), None);
    assert_eq!(with(0x0303, &[0x1a1a, 0xfafa]), None, "only versions that are none");
}

#[test]
fn t40_the_hello_of_ssl_2_is_refused() {
    for version in [[3, 1], [3, 3], [0, 2]] {
        let bytes = [0x80, 46, 1, version[0], version[1], 0, 21, 0, 0, 0, 16];
        assert_eq!(sniff(&bytes[..3]), Look::NeedMore);
        assert!(is_broken(&sniff(&bytes)));
    }
    assert_eq!(sniff(&[0x80, 46, 2]), Look::Other);
    assert_eq!(sniff(&[0x80, 46, 1, 1]), Look::Other);
    assert_eq!(sniff(&[0xff, 0xfe, 1, 0, 3]), Look::Other);
}

#[test]
fn t39_records_of_any_length_do_not_change_the_answer() {
    let message = usual().message();
    let expected = Look::Tls(hello());
    let name = message.windows(8).position(|window| window == b"api.test").expect("it");
    for cuts in [
        vec![1],
        vec![50],
        vec![name],
        vec![name + 3],
        vec![1; 5000],
        vec![4],
        vec![3; 5000],
    ] {
        let bytes = records(&message, &cuts);
        for end in 0..bytes.len() {
            assert_eq!(sniff(&bytes[..end]), Look::NeedMore);
        }
        assert_eq!(sniff(&bytes), expected);
        // What the client sends before it has an answer, such as early data, is no part of the hello.
        assert_eq!(sniff(&[&bytes[..], &[23, 3, 3, 0]].concat()), expected);
    }
}

#[test]
fn t39_a_hello_of_16_kib_is_read_and_none_beyond() {
    let mut draft = usual();
    let padding = 16 * 1024 - (draft.message().len() - 4) - 4;
    draft.extensions.push((21, vec![0; padding]));
    let message = draft.message();
    assert_eq!(message.len(), 4 + 16 * 1024);
    assert_eq!(sniff(&records(&message, &[16_000])), Look::Tls(hello()));
    // In as many records as may be.
    assert_eq!(sniff(&records(&message, &vec![1; 4095])), Look::Tls(hello()));
    assert!(is_broken(&sniff(&records(&message, &vec![1; 4096]))));
    draft.extensions.last_mut().expect("one").1.push(0);
    // Already its header is enough to refuse it.
    assert!(is_broken(&sniff(&record(&draft.message()[..4]))));
}

#[test]
fn t40_records_that_break_the_rules_are_refused_at_once() {
    let message = usual().message();
    let whole = record(&message);
    let first = record(&message[..100]);
    let followed_by = |next: &[u8]| sniff(&[&first[..], next].concat());
    assert!(is_broken(&followed_by(&[22, 3, 1, 0, 0])), "an empty record");
    assert!(is_broken(&followed_by(&[23])), "application data");
    assert!(is_broken(&followed_by(&[20, 3, 3, 0, 1, 1])), "a change of ciphers");
    assert!(is_broken(&followed_by(&[22, 2])), "version 2");
    assert!(
        is_broken(&followed_by(&[22, 3, 1, 0x40, 1])),
        "a record of more than 16 KiB"
    );
    assert!(is_broken(&sniff(&[22, 3, 1, 0, 0])), "an empty record first");
    assert!(
        is_broken(&sniff(&[22, 3, 1, 0x40, 1])),
        "a record of more than 16 KiB first"
    );
    assert_eq!(sniff(&[22, 3, 1, 0x40, 0]), Look::NeedMore);
    assert!(is_broken(&sniff(&[22, 4])), "version 4");
    assert!(is_broken(&sniff(&[22, 3, 1, 0, 200, 2])), "a ServerHello");
    assert!(
        is_broken(&sniff(&record(&[&message[..], &[0]].concat()))),
        "more in the record"
    );
    let mut longer = whole.clone();
    longer[3..5].copy_from_slice(&(message.len() as u16 + 1).to_be_bytes());
    assert!(is_broken(&sniff(&longer)), "more to come in the record");
    assert_eq!(followed_by(&[22, 3]), Look::NeedMore);
    for minor in 0..=4 {
        let mut bytes = whole.clone();
        bytes[2] = minor;
        assert_eq!(sniff(&bytes), Look::Tls(hello()), "3.{minor}");
    }
}

#[test]
fn postgres_is_recognised_by_its_eight_bytes() {
    let tls = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
    let gss = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30];
    for end in 1..8 {
        assert_eq!(sniff(&tls[..end]), Look::NeedMore);
    }
    assert_eq!(sniff(&tls), Look::PostgresTls);
    assert_eq!(sniff(&gss), Look::PostgresGss);
    // Sent before the answer, it would be taken for a part of the protected connection.
    assert!(is_broken(&sniff(&[&tls[..], b"x"].concat())));
    assert!(is_broken(&sniff(&[&gss[..], b"x"].concat())));
    assert_eq!(
        sniff(&[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2e]),
        Look::Other,
        "a request to cancel"
    );
    assert_eq!(sniff(&[0, 0, 0, 9]), Look::Other, "a start without TLS");
}

#[test]
fn a_method_and_a_space_are_http() {
    for (bytes, expected) in [
        (&b"G"[..], Look::NeedMore),
        (b"GET", Look::NeedMore),
        (b"GET ", Look::Http1),
        (b"GET /", Look::Http1),
        (b"CONNECT evil.test:443", Look::Http1),
        (b"M-SEARCH *", Look::Http1),
        (b"ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEF", Look::NeedMore),
        (b"ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEF ", Look::Http1),
        (b"ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFG", Look::Other),
        (b"SSH-2", Look::Other),
        (b"PING\r\n", Look::Other),
        (b"get /", Look::Other),
        (b"*1\r\n", Look::Other),
        (b" GET", Look::Other),
        (b"\r\nGET", Look::Other),
        (b"\x10\x0c", Look::Other),
        (b"", Look::NeedMore),
    ] {
        assert_eq!(sniff(bytes), expected, "{:?}", String::from_utf8_lossy(bytes));
    }
}

#[test]
fn t60_the_preface_of_http_2_is_no_request() {
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for end in 0..preface.len() {
        let expected = if end < 14 { Look::NeedMore } else { Look::Http2Preface };
        assert_eq!(sniff(&preface[..end]), expected, "{end}");
    }
    assert_eq!(sniff(b"PRI /"), Look::Http1);
    assert_eq!(sniff(b"PRI * HTTP/1.1"), Look::Http1);
    assert_eq!(sniff(b"PRINT "), Look::Http1);
}

/// Bytes that are near to something that is known.
fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    let hello = (
        any_cuts(),
        any::<prop::sample::Index>(),
        any::<u8>(),
        prop::bool::weighted(0.7),
    )
        .prop_map(|(cuts, at, byte, is_changed)| {
            let mut bytes = records(&usual().message(), &cuts);
            if is_changed {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes
        });
    let start = prop::sample::select(vec![
        &b"\x16\x03\x01"[..],
        b"\x00\x00\x00\x08\x04\xd2\x16",
        b"PRI * HTTP/2.0",
        b"POST ",
        b"\x80\x2e\x01\x03",
        b"",
    ]);
    let other = (start, prop::collection::vec(any::<u8>(), 0..60)).prop_map(|(start, rest)| [start, &rest].concat());
    prop_oneof![hello, other]
}

#[test]
fn a_verdict_on_some_bytes_holds_for_all_that_begin_with_them() {
    check(2000, &any_bytes(), |bytes| {
        let looks: Vec<Look> = (0..=bytes.len()).map(|end| sniff(&bytes[..end])).collect();
        let first = looks.iter().position(|look| *look != Look::NeedMore);
        let first = first.unwrap_or(bytes.len());
        // Bytes after Postgres's request change what it is; that is the one exception.
        if matches!(looks[first], Look::PostgresTls | Look::PostgresGss) {
            prop_assert!(looks[first + 1..].iter().all(is_broken));
        } else {
            prop_assert!(looks[first..].iter().all(|look| *look == looks[first]));
        }
        Ok(())
    });
}

#[test]
fn fragmentation_never_changes_the_hello() {
    check(500, &any_cuts(), |cuts| {
        prop_assert_eq!(sniff(&records(&usual().message(), &cuts)), Look::Tls(hello()));
        Ok(())
    });
}

#[test]
fn no_client_can_be_listened_to_for_ever() {
    let endless = |fragment: &[u8]| {
        let mut bytes = record(&[&[1, 0, 0x40, 0][..], fragment].concat());
        while sniff(&bytes) == Look::NeedMore {
            bytes.extend(record(fragment));
            assert!(bytes.len() < MAX_BYTES + 2 * (5 + fragment.len()));
        }
    };
    endless(&[0]);
    endless(&[0; 1000]);
    check(300, &prop::collection::vec(any::<u8>(), 0..4000), |bytes| {
        sniff(&bytes);
        sniff(&record(&framed(1, &bytes)));
        Ok(())
    });
}
