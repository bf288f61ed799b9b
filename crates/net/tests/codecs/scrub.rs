//! What comes back from servers is masked in every form that is promised, byte for byte, however it arrives.

use std::sync::Arc;

use bytes::BytesMut;
use hutch_net::scrub::{Form, Hit, Needles, Scrubber, SecretForms};
use proptest::prelude::*;

use super::encoders::{self, base64};
use super::support::{any_cuts, check, pieces};

const SECRET: &str = "CANARY-7f3aQ9+/z=Lk0";
/// With everything that encoders escape.
const ODD: &str = "k\u{e9}y 1/2+3=4&5\"6'7<8>9\\0~%#?:@;,!*()[]{}|^`$\u{1f511}";

fn secret(value: &str) -> SecretForms<'_> {
    SecretForms {
        id: 7,
        value,
        rendered: None,
        basic: false,
    }
}

fn needles(value: &str) -> Arc<Needles> {
    Arc::new(Needles::new(&[secret(value)]))
}

/// What comes out of a scrubber for text in these pieces.
fn scrubbed(scrubber: &mut Scrubber, parts: &[&[u8]]) -> Vec<u8> {
    let mut out = BytesMut::new();
    for part in parts {
        scrubber.push(part, &mut out);
    }
    scrubber.finish(&mut out);
    out.to_vec()
}

fn scrub(value: &str, text: &[u8]) -> Vec<u8> {
    let needles = needles(value);
    let out = scrubbed(&mut needles.scrubber(), &[text]);
    let masked = needles.scrub_value(text);
    assert_eq!(masked.is_some(), out != text);
    assert_eq!(masked.unwrap_or(text.to_vec()), out);
    out
}

fn stars(length: usize) -> Vec<u8> {
    vec![b'*'; length]
}

#[test]
fn t76_every_form_is_masked_wherever_it_is_cut() {
    for value in [SECRET, ODD] {
        let needles = needles(value);
        for (what, form) in encoders::all(value) {
            let text = [b"{\"error\": \"", &form[..], b"\"}\r\n"].concat();
            let expected = [b"{\"error\": \"", &stars(form.len())[..], b"\"}\r\n"].concat();
            for cut in 0..text.len() {
                let mut scrubber = needles.scrubber();
                let out = scrubbed(&mut scrubber, &[&text[..cut], &text[cut..]]);
                assert_eq!(
                    out,
                    expected,
                    "{what}, cut at {cut}: {:?}",
                    String::from_utf8_lossy(&out)
                );
                assert_eq!(scrubber.total(), 1, "{what}, cut at {cut}");
            }
            let bytes: Vec<&[u8]> = text.chunks(1).collect();
            assert_eq!(
                scrubbed(&mut needles.scrubber(), &bytes),
                expected,
                "{what}, byte by byte"
            );
        }
    }
}

#[test]
fn t76_base64_is_masked_at_every_alignment() {
    for value in [SECRET, ODD] {
        for is_for_urls in [false, true] {
            for before in 0..7 {
                for after in 0..4 {
                    let whole = [&b"user:ab"[..before], value.as_bytes(), &b"\xff\xfe\xfd"[..after]].concat();
                    let text = base64(&whole, is_for_urls);
                    let out = String::from_utf8(scrub(value, text.as_bytes())).expect("text");
                    assert_eq!(out.len(), text.len());
                    // What is left tells less than one byte of the secret at each end.
                    let first = out.find('*').expect("it is masked");
                    let last = out.rfind('*').expect("it is masked");
                    assert!(first * 6 < before * 8 + 6, "{out}");
                    assert!((last + 1) * 6 + 6 > (before + value.len()) * 8, "{out}");
                    assert!(out[first..=last].bytes().all(|byte| byte == b'*'), "{out}");
                }
            }
        }
    }
}

#[test]
fn t76_the_whole_header_value_is_masked() {
    let rendered = format!("Bearer {SECRET}");
    let bearer = SecretForms {
        rendered: Some(&rendered),
        ..secret(SECRET)
    };
    let needles = Arc::new(Needles::new(&[bearer]));
    let text = format!("Authorization: {rendered}, {SECRET}");
    let expected = format!(
        "Authorization: {}, {}",
        "*".repeat(rendered.len()),
        "*".repeat(SECRET.len())
    );
    let mut scrubber = needles.scrubber();
    assert_eq!(scrubbed(&mut scrubber, &[text.as_bytes()]), expected.as_bytes());
    assert_eq!(
        scrubber.hits(),
        [
            Hit {
                id: 7,
                form: Form::Rendered
            },
            Hit {
                id: 7,
                form: Form::Value
            }
        ]
    );
    assert_eq!(scrubber.totals().collect::<Vec<_>>(), [(7, 2)]);
}

#[test]
fn t76_basic_credentials_are_masked_in_all_forms_of_their_own() {
    let value = "user:correct horse battery";
    let credentials = base64(value.as_bytes(), false);
    let rendered = format!("Basic {credentials}");
    let basic = SecretForms {
        rendered: Some(&rendered),
        basic: true,
        ..secret(value)
    };
    let needles = Needles::new(&[basic]);
    let masks = |text: &[u8]| needles.scrub_value(text);
    assert_eq!(masks(rendered.as_bytes()), Some(stars(rendered.len())));
    for text in [value, &credentials, "correct horse battery"] {
        for (what, form) in encoders::all(text) {
            assert_eq!(masks(&form), Some(stars(form.len())), "{what} of {text}");
        }
    }
    assert_eq!(masks(b"user: Basic"), None);
}

#[test]
fn what_overlaps_is_masked_as_a_whole() {
    let value = "aabaaaabaabaaaab";
    for overlap in 1..value.len() {
        let (before, after) = value.split_at(value.len() - overlap);
        if value.starts_with(after) {
            let text = format!("x{before}{value}x");
            let masked = format!("x{}x", "*".repeat(before.len() + value.len()));
            assert_eq!(scrub(value, text.as_bytes()), masked.as_bytes());
        }
    }
    let twice = Needles::new(&[
        secret("0123456789abcdef"),
        SecretForms {
            id: 8,
            ..secret("cdefghijklmnopqr")
        },
    ]);
    assert_eq!(
        twice.scrub_value(b"<0123456789abcdefghijklmnopqr>"),
        Some(b"<****************************>".to_vec())
    );
}

#[test]
fn two_secrets_of_the_same_value_are_both_counted() {
    let needles = Arc::new(Needles::new(&[
        secret(SECRET),
        SecretForms {
            id: 3,
            ..secret(SECRET)
        },
    ]));
    let mut scrubber = needles.scrubber();
    scrubbed(&mut scrubber, &[SECRET.as_bytes()]);
    assert_eq!(scrubber.totals().collect::<Vec<_>>(), [(7, 1), (3, 1)]);
}

#[test]
fn all_occurrences_are_counted_and_few_remembered() {
    let needles = needles(SECRET);
    let mut scrubber = needles.scrubber();
    let text = SECRET.repeat(1000);
    assert_eq!(scrubbed(&mut scrubber, &[text.as_bytes()]), stars(text.len()));
    assert_eq!(scrubber.total(), 1000);
    assert!(scrubber.hits().len() < 100);
    assert!(scrubber.hits().iter().all(|hit| *hit
        == Hit {
            id: 7,
            form: Form::Value
        }));
}

#[test]
fn headers_and_trailers_are_counted_with_the_body() {
    let needles = needles(SECRET);
    let mut scrubber = needles.scrubber();
    let mut out = BytesMut::new();
    let (start, end) = SECRET.split_at(5);
    scrubber.push(start.as_bytes(), &mut out);
    let header = format!("v={SECRET}");
    let masked = scrubber.scrub_value(header.as_bytes());
    assert_eq!(masked, Some([b"v=", &stars(SECRET.len())[..]].concat()));
    assert_eq!(scrubber.scrub_value(b"clean"), None);
    scrubber.push(end.as_bytes(), &mut out);
    scrubber.finish(&mut out);
    assert_eq!(out, stars(SECRET.len()));
    assert_eq!(scrubber.total(), 2);
}

#[test]
fn a_header_in_the_middle_of_an_occurrence_does_not_make_it_two() {
    let rendered = format!("token {SECRET};");
    let needles = Arc::new(Needles::new(&[SecretForms {
        rendered: Some(&rendered),
        ..secret(SECRET)
    }]));
    let mut scrubber = needles.scrubber();
    let mut out = BytesMut::new();
    scrubber.push(format!("{:100}token {SECRET}", "").as_bytes(), &mut out);
    assert!(scrubber.scrub_value(SECRET.as_bytes()).is_some());
    scrubber.push(b";", &mut out);
    scrubber.finish(&mut out);
    assert_eq!(out[100..], stars(rendered.len()));
    assert_eq!(scrubber.total(), 2);
}

#[test]
fn text_that_begins_no_secret_is_not_delayed() {
    let needles = needles(SECRET);
    let mut scrubber = needles.scrubber();
    let mut push = |text: &[u8]| {
        let mut out = BytesMut::new();
        scrubber.push(text, &mut out);
        out.to_vec()
    };
    assert_eq!(push(b"data: {\"a\": 1}\n\n"), b"data: {\"a\": 1}\n\n");
    assert_eq!(push(b"data: CANA"), b"data: ");
    assert_eq!(push(b"DA\n\n"), b"CANADA\n\n");
    assert_eq!(
        push(SECRET.as_bytes()),
        stars(SECRET.len()),
        "a whole one is out at once"
    );
    assert_eq!(push(b"xCANARY-7f3aQ9+/z=Lk"), b"x");
    assert_eq!(push(b""), b"");
    assert_eq!(push(b"0x"), [&stars(SECRET.len())[..], b"x"].concat());
}

#[test]
fn what_nobody_can_tell_apart_is_not_looked_for() {
    let needles = Arc::new(Needles::new(&[secret("short")]));
    assert_eq!(needles.scrub_value(b"a short text"), None);
    let none = Arc::new(Needles::new(&[]));
    assert_eq!(none.scrub_value(SECRET.as_bytes()), None);
    assert_eq!(scrubbed(&mut none.scrubber(), &[b"ab", b"c"]), b"abc");
    assert!(!format!("{needles:?} {none:?}").contains("short"));
}

#[test]
fn t77_what_is_computed_in_another_way_is_not_found() {
    // Documented limits: if this changes, so must the documentation.
    let reversed: String = SECRET.chars().rev().collect();
    let spaced: String = SECRET.chars().flat_map(|char| [char, ' ']).collect();
    for text in [
        reversed,
        spaced,
        base64(base64(SECRET.as_bytes(), false).as_bytes(), false),
    ] {
        assert_eq!(needles(SECRET).scrub_value(text.as_bytes()), None);
    }
}

/// Which bytes are in an occurrence, by looking everywhere.
fn occurrences(secrets: &[String], text: &[u8]) -> Vec<bool> {
    let mut masked = vec![false; text.len()];
    for secret in secrets {
        for (at, window) in text.windows(secret.len()).enumerate() {
            if window.eq_ignore_ascii_case(secret.as_bytes()) {
                masked[at..at + secret.len()].fill(true);
            }
        }
    }
    masked
}

#[test]
fn exactly_the_occurrences_are_masked_however_they_arrive() {
    // Two letters, so that everything overlaps with everything.
    let secrets = prop::collection::vec("[ab]{8,12}", 1..4);
    let parts = prop::collection::vec((any::<prop::sample::Index>(), "[abAB]{0,9}"), 0..30);
    check(3000, &(secrets, parts, any_cuts()), |(secrets, parts, cuts)| {
        let text: Vec<u8> = parts
            .iter()
            .flat_map(|(index, letters)| {
                [secrets[index.index(secrets.len())].as_str(), letters]
                    .concat()
                    .into_bytes()
            })
            .collect();
        let forms: Vec<SecretForms> = secrets.iter().map(|value| secret(value)).collect();
        let needles = Arc::new(Needles::new(&forms));
        let masked = occurrences(&secrets, &text);
        let expected: Vec<u8> = text
            .iter()
            .zip(&masked)
            .map(|(&byte, &masked)| if masked { b'*' } else { byte })
            .collect();

        let mut whole = needles.scrubber();
        prop_assert_eq!(&scrubbed(&mut whole, &[&text]), &expected);
        let mut in_parts = needles.scrubber();
        let mut out = BytesMut::new();
        let mut given = 0;
        for part in pieces(&text, &cuts) {
            in_parts.push(part, &mut out);
            given += part.len();
            // What is held back is the longest end that a secret begins with, and that is not all of it.
            let begins = |length: &usize| {
                let end = &text[given - length..given];
                secrets.iter().any(|secret| {
                    let start = secret.as_bytes().get(..*length);
                    secret.len() > *length && start.is_some_and(|start| start.eq_ignore_ascii_case(end))
                })
            };
            let held = (0..=given.min(12)).rev().find(begins).unwrap_or(0);
            prop_assert_eq!(given - out.len(), held);
            prop_assert_eq!(&out[..], &expected[..out.len()]);
        }
        in_parts.finish(&mut out);
        prop_assert_eq!(&out[..], &expected[..]);
        prop_assert_eq!(in_parts.hits(), whole.hits());
        prop_assert!(in_parts.totals().eq(whole.totals()));
        prop_assert_eq!(needles.scrub_value(&text), masked.contains(&true).then_some(expected));
        Ok(())
    });
}

#[test]
fn no_form_of_a_secret_is_left_and_nothing_else_is_touched() {
    let value = prop_oneof![3 => "[!-~]{12,40}", 1 => "[!-~\u{a1}-\u{ff}\u{4e00}-\u{4e20}][ -~]{11,60}"];
    // No needle begins or goes on with these.
    let other = prop_oneof![
        Just(b"\n\n".to_vec()),
        prop::collection::vec(0x01..0x09u8, 0..200),
        Just(vec![0xff; 40])
    ];
    let part = (any::<prop::sample::Index>(), other);
    check(
        300,
        &(value, prop::collection::vec(part, 1..8), any_cuts()),
        |(value, parts, cuts)| {
            let forms = encoders::all(&value);
            let (mut text, mut expected) = (Vec::new(), Vec::new());
            for (index, other) in &parts {
                let (_, form) = &forms[index.index(forms.len())];
                text.extend([&form[..], b"\x01", other, b"\x01"].concat());
                expected.extend([&stars(form.len())[..], b"\x01", other, b"\x01"].concat());
            }
            let needles = needles(&value);
            prop_assert_eq!(scrubbed(&mut needles.scrubber(), &pieces(&text, &cuts)), expected);
            Ok(())
        },
    );
}

#[test]
fn any_bytes_keep_their_length_and_their_answer() {
    let text = prop::collection::vec(
        prop_oneof![any::<u8>(), prop::sample::select(SECRET.as_bytes().to_vec())],
        0..2000,
    );
    check(500, &(text, any_cuts()), |(text, cuts)| {
        let needles = needles(SECRET);
        let whole = scrubbed(&mut needles.scrubber(), &[&text]);
        prop_assert_eq!(whole.len(), text.len());
        prop_assert_eq!(scrubbed(&mut needles.scrubber(), &pieces(&text, &cuts)), whole);
        Ok(())
    });
}
