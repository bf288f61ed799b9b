//! The closed list of reason codes.

use std::collections::HashSet;

use hutch_policy::Reason;

#[test]
fn every_reason_and_every_warning_is_documented_once() {
    let page = include_str!("../../../../docs/network.md");
    let maintainers = include_str!("../../../../docs/policy-engine.md");
    let documented: Vec<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` |").map(|(code, _)| code))
        .collect();
    let known: Vec<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    let codes: Vec<&str> = documented.iter().copied().filter(|code| known.contains(code)).collect();
    assert_eq!(
        codes, known,
        "the table of docs/network.md lists the codes in the order of the enum"
    );
    for reason in Reason::ALL {
        let row = format!("| `{reason}` | ");
        let meaning = page.lines().find_map(|line| line.strip_prefix(&row)).unwrap();
        let meaning = meaning.trim_start_matches("no refusal: ").trim_end_matches(" |");
        assert_eq!(meaning, reason.description(), "{reason}");
    }
    assert_eq!(known.iter().collect::<HashSet<_>>().len(), known.len());
    assert!(
        known
            .iter()
            .all(|code| code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'))
    );
    let sources = [
        include_str!("../../src/compile.rs"),
        include_str!("../../src/rule_grammar.rs"),
    ]
    .concat();
    for warning in sources.split("self.warn(").skip(1) {
        let code = warning.split('"').nth(1).unwrap();
        assert!(maintainers.contains(&format!("`{code}`")), "{code}");
    }
}
