//! Patterns, and the lookup of the most specific one.

use hutch_policy::{Name, NameError, Pattern, PatternError, PatternMap};
use proptest::prelude::*;

use super::support::{any_name, any_pattern};

fn pattern(text: &str) -> Pattern {
    Pattern::parse(text).unwrap()
}

fn name(text: &str) -> Name {
    Name::host(text.as_bytes()).unwrap()
}

#[test]
fn a_second_dot_at_the_end_is_an_empty_label() {
    assert_eq!(Pattern::parse("evil.test.").unwrap().as_str(), "evil.test");
    for text in ["evil.test..", "*.evil.test.."] {
        assert_eq!(
            Pattern::parse(text),
            Err(PatternError::Name(NameError::EmptyLabel)),
            "{text}"
        );
    }
    assert!(Pattern::parse("evil.test.\u{3002}").is_err());
}

#[test]
fn wildcards_cover_what_the_vendor_says() {
    for (text, host, expected) in [
        ("api.test", "api.test", true),
        ("api.test", "x.api.test", false),
        ("*.test", "a.b.test", true),
        ("*.api.test", "api.test", false),
        ("www.*.com", "www.example.com", true),
        ("www.*.com", "www.api.example.com", false),
        ("*.a.*.test", "x.y.a.b.test", true),
        ("*.a.*.test", "a.b.test", false),
        ("*", "anything.example", true),
        ("api.test", "xapi.test", false),
        ("*.test", "atest", false),
    ] {
        assert_eq!(pattern(text).covers(&name(host)), expected, "{text} {host}");
    }
}

#[test]
fn t03_patterns_are_names_and_nothing_else() {
    for text in [
        "127.0.0.1",
        "127.1",
        "0x7f.1",
        "2130706433",
        "*.1",
        "[::1]",
        "a_b.test",
        "-a.test",
        "a..test",
        "",
        ".",
        "http://a.test",
        "a.test:443",
        "a.test/",
    ] {
        assert!(Pattern::parse(text).is_err(), "{text}");
    }
    assert_eq!(Pattern::parse("10.0.0.1"), Err(PatternError::Name(NameError::Address)));
    assert_eq!(Pattern::parse("api*.test"), Err(PatternError::PartialWildcard));
    assert_eq!(Pattern::parse("api.*"), Err(PatternError::LastLabel));
    assert_eq!(Pattern::parse("*.*"), Err(PatternError::LastLabel));
}

#[test]
fn international_labels_become_ascii_in_policies() {
    assert_eq!(pattern("Bücher.Example").as_str(), "xn--bcher-kva.example");
    assert_eq!(pattern("*.ÄPFEL.test").as_str(), "*.xn--pfel-koa.test");
    // Straße keeps its sharp s: processing is not transitional.
    assert_eq!(pattern("straße.test").as_str(), "xn--strae-oqa.test");
    for text in [
        "xn--zzzzzz9999999.test",
        "a\u{3002}b.test",
        "\u{ff0a}.test",
        "a\u{200b}.test",
        "xn--.test",
    ] {
        assert!(
            Pattern::parse(text).is_err() || !pattern(text).as_str().contains('\u{3002}'),
            "{text}"
        );
    }
    assert_eq!(Pattern::parse("a\u{3002}b.test"), Err(PatternError::International));
    assert_eq!(pattern("r3---sn-abc.test").as_str(), "r3---sn-abc.test");
}

#[test]
fn public_suffixes_are_broad() {
    for text in [
        "*",
        "*.com",
        "*.co.uk",
        "*.github.io",
        "www.*.com",
        "*.unknown-top-level",
    ] {
        assert!(pattern(text).is_broad(), "{text}");
    }
    for text in [
        "com",
        "*.example.com",
        "*.example.co.uk",
        "*.foo.github.io",
        "api.example.com",
    ] {
        assert!(!pattern(text).is_broad(), "{text}");
    }
}

#[test]
fn the_order_of_specificity_is_that_of_the_reference() {
    let order = [
        "a.b.api.test",
        "*.b.api.test",
        "a.*.api.test",
        "*.*.api.test",
        "*.api.test",
        "*.test",
        "*",
    ];
    let host = name("a.b.api.test");
    for (index, strong) in order.iter().enumerate() {
        assert!(pattern(strong).covers(&host), "{strong}");
        for weak in &order[index + 1..] {
            assert!(
                pattern(strong).compare_specificity(&pattern(weak)).is_gt(),
                "{strong} {weak}"
            );
        }
    }
}

proptest! {
    #[test]
    fn lookup_equals_a_naive_search(patterns in prop::collection::vec(any_pattern(), 0..20), host in any_name()) {
        let host = name(&host);
        let patterns: Vec<Pattern> = patterns.iter().map(|text| pattern(text)).collect();
        let mut map = PatternMap::default();
        for pattern in &patterns {
            map.insert(pattern, pattern.clone());
        }
        let best = patterns.iter().filter(|pattern| pattern.covers(&host)).max_by(|one, other| one.compare_specificity(other));
        prop_assert_eq!(map.get(&host), best);
    }

    #[test]
    fn a_pattern_that_includes_another_covers_all_its_names(one in any_pattern(), other in any_pattern(), host in any_name()) {
        let (one, other, host) = (pattern(&one), pattern(&other), name(&host));
        if one.includes(&other) && other.covers(&host) {
            prop_assert!(one.covers(&host));
        }
        prop_assert!(one.includes(&one));
    }

    #[test]
    fn any_text_is_a_pattern_or_refused_and_patterns_are_idempotent(text in "\\PC{0,40}") {
        if let Ok(pattern) = Pattern::parse(&text) {
            prop_assert_eq!(Pattern::parse(pattern.as_str()), Ok(pattern));
        }
    }
}
