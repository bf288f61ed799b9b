//! Canonical names.

use hutch_policy::{Host, Name, NameError, parse_authority, parse_host};
use proptest::prelude::*;

#[test]
fn t03_odd_spellings_of_addresses_are_never_names() {
    for text in [
        "0x7f.1",
        "2130706433",
        "0177.0.0.1",
        "127.1",
        "0x7f000001",
        "1.2.3.4.5",
        "example.0x",
        "a.1",
        "017700000001",
    ] {
        assert!(Name::host(text.as_bytes()).is_err(), "{text}");
        assert!(parse_host(text.as_bytes()).is_err(), "{text}");
    }
    for text in [
        "[::ffff:10.0.0.1",
        "[fe80::1%25eth0]",
        "[fe80::1%eth0]",
        "[0:0:0:0:0:0:0:1]",
        "[::10.0.0.1]x",
        "::1",
        "[]",
    ] {
        assert!(parse_authority(text.as_bytes()).is_err(), "{text}");
    }
    assert_eq!(Name::host(b"127.0.0.1"), Err(NameError::Address));
    assert_eq!(
        parse_host(b"[::ffff:10.0.0.1]"),
        Ok(Host::Address("10.0.0.1".parse().unwrap()))
    );
}

#[test]
fn t36_search_domains_single_labels_and_lengths() {
    for special in [
        "localhost",
        "localhost.",
        "printer",
        "x.local",
        "a.localhost",
        "metadata.google.internal",
        "4.3.2.1.in-addr.arpa",
    ] {
        assert!(Name::question(special.as_bytes()).unwrap().is_special(), "{special}");
    }
    assert!(!Name::host(b"api.test").unwrap().is_special());
    let long_label = format!("{}.test", "a".repeat(64));
    let long_name = vec!["a".repeat(61); 5].join(".");
    assert_eq!(Name::host(long_label.as_bytes()), Err(NameError::LabelTooLong));
    assert_eq!(Name::host(long_name.as_bytes()), Err(NameError::TooLong));
    assert_eq!(
        Name::host(&long_name.as_bytes()[..253]).map(|name| name.as_str().len()),
        Ok(253)
    );
    assert_eq!(Name::host(b"a..test"), Err(NameError::EmptyLabel));
    assert_eq!(Name::host(b".test"), Err(NameError::EmptyLabel));
    assert_eq!(Name::host(b"."), Err(NameError::Empty));
}

#[test]
fn t38_server_names_are_canonical_or_refused() {
    assert_eq!(Name::host(b"API.Test.").unwrap().as_str(), "api.test");
    for bad in [
        &b""[..],
        b"api.test..",
        b"api\0.test",
        b"api .test",
        b"api_x.test",
        b"-a.test",
        b"a-.test",
        "ä.test".as_bytes(),
        b"a%2e.test",
        b"a@b.test",
        b"api.test\n",
    ] {
        assert!(Name::host(bad).is_err(), "{bad:?}");
    }
    assert_eq!(Name::question(b"_dmarc.API.test").unwrap().as_str(), "_dmarc.api.test");
}

#[test]
fn t52_authorities_have_one_grammar() {
    let name = |text: &str| Host::Name(Name::host(text.as_bytes()).unwrap());
    assert_eq!(parse_authority(b"api.test:443"), Ok((name("api.test"), Some(443))));
    assert_eq!(parse_authority(b"API.test."), Ok((name("api.test"), None)));
    assert_eq!(
        parse_authority(b"[2001:db8::1]:8443"),
        Ok((Host::Address("2001:db8::1".parse().unwrap()), Some(8443)))
    );
    for bad in [
        "a@api.test",
        "api.test/",
        "api.test:",
        "api.test:0",
        "api.test:0443",
        "api.test:65536",
        "api.test:+1",
        "api.test:443:443",
        "api.test\t",
        "[api.test]",
        "api%2etest",
    ] {
        assert!(parse_authority(bad.as_bytes()).is_err(), "{bad}");
    }
}

proptest! {
    #[test]
    fn canonicalisation_is_idempotent(raw in prop_oneof![prop::collection::vec(any::<u8>(), 0..40), "[a-zA-Z0-9._-]{0,80}".prop_map(String::into_bytes)]) {
        if let Ok(name) = Name::question(&raw) {
            prop_assert_eq!(Name::question(name.as_str().as_bytes()).unwrap(), name.clone());
            prop_assert!(name.as_str().len() <= 253);
            prop_assert!(name.as_str().bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte)));
            prop_assert!(name.as_str().parse::<std::net::IpAddr>().is_err());
        }
        if let Ok((Host::Name(name), _)) = parse_authority(&raw) {
            prop_assert_eq!(parse_host(name.as_str().as_bytes()), Ok(Host::Name(name)));
        }
    }

    #[test]
    fn case_and_one_trailing_dot_do_not_matter(name in super::support::any_name()) {
        let upper = format!("{}.", name.to_ascii_uppercase());
        prop_assert_eq!(Name::host(upper.as_bytes()), Name::host(name.as_bytes()));
    }
}
