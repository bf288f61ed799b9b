//! What the tests share.

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Check a property, with the same cases each time unless the campaign is a full one.
pub(crate) fn check<S: Strategy>(cases: u32, strategy: &S, test: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let is_full = std::env::var("HUTCH_CAMPAIGN").is_ok_and(|campaign| campaign == "full");
    let config = Config {
        cases: if is_full { cases * 50 } else { cases },
        failure_persistence: None,
        ..Config::default()
    };
    let mut runner = if is_full {
        TestRunner::new(config)
    } else {
        TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]))
    };
    if let Err(error) = runner.run(strategy, test) {
        panic!("{error}");
    }
}

/// Cut bytes into pieces: `cuts` are lengths, used in turn; what is left is the last piece.
pub(crate) fn pieces<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut rest = bytes;
    let mut pieces = Vec::new();
    for &cut in cuts {
        let (piece, after) = rest.split_at(cut.min(rest.len()));
        pieces.push(piece);
        rest = after;
    }
    pieces.push(rest);
    pieces
}

/// Lengths for [`pieces`]: many short ones, some long.
pub(crate) fn any_cuts() -> impl Strategy<Value = Vec<usize>> {
    let cut = prop_oneof![4 => 0..4usize, 2 => 4..40usize, 1 => 40..4000usize];
    prop::collection::vec(cut, 0..40)
}
