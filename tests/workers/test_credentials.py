"""Declared credentials obey the SDK's rules and become rules of a network policy that the policy engine takes."""

from __future__ import annotations

from typing import Any

import pytest

from hutch.egress import policy
from hutch.workers.checks import problems
from hutch.workers.credentials import overlap, policy_rules, secret_names
from tests.workers.declared import credential, parsed


def messages(*items: dict[str, Any]) -> list[str]:
    return [problem.message for problem in problems(parsed({"credentials": list(items)}))]


@pytest.mark.parametrize(
    "key", ["A", "LINEAR_API_TOKEN", "a" * 64, "NOTION_API_TOKEN", "NOTION_API_BASE_URL", "Notion_Api_Token"]
)
def test_good_keys(key: str) -> None:
    assert messages(credential(key, "api.example.com")) == []


@pytest.mark.parametrize("key", ["1A", "_A", "A-B", "a" * 65, "NOTION_SECRET", "notion_x", "ключ"])
def test_bad_keys(key: str) -> None:
    assert len(messages(credential(key, "api.example.com"))) == 1


@pytest.mark.parametrize(
    "domain", ["api.example.com", " API.Example.com. ", "*.example.com", "a.b", "x-1.example", "a" * 63 + ".b"]
)
def test_good_domains(domain: str) -> None:
    assert messages(credential("A", domain)) == []


@pytest.mark.parametrize(
    "domain",
    [
        *("localhost", "*", "*.com", "https://a.b", "a.b:443", "a.b/x", "[::1]", "10.0.0.1", "-a.b", "a-.b", "a..b", "*.*.a.b"),
        *("a" * 64 + ".b", ".".join(["a" * 50] * 6), "", "a_b.c", "exämple.com", "a.b..", "a.b\nc.d"),
    ],
)
def test_bad_domains(domain: str) -> None:
    found = messages(credential("A", domain))
    assert any("is no domain" in message for message in found), found


@pytest.mark.parametrize(
    ("header", "template", "expected"),
    [
        ("Authorization", "Bearer", "exactly once"),
        ("Authorization", "{{credential}}{{credential}}", "exactly once"),
        ("Authorization", "a\n{{credential}}", "control characters"),
        ("Authorization", "a" * 8192 + "{{credential}}", "more than 8192 bytes"),
        ("Authorization", "{} {{credential}}", "stand for the value"),
        ("Authorization", "{base64} {{credential}}", "stand for the value"),
        ("Bad Name", "{{credential}}", "no name of a header"),
        ("", "{{credential}}", "no name of a header"),
        ("h" * 257, "{{credential}}", "no name of a header"),
    ],
)
def test_bad_headers(header: str, template: str, expected: str) -> None:
    found = messages(credential("A", "api.example.com", header=header, template=template))
    assert any(expected in message for message in found), found


@pytest.mark.parametrize("header", ["Host", "Content-Length", "Transfer-Encoding", "Connection"])
def test_headers_of_the_connection_are_refused(header: str) -> None:
    found = messages(credential("A", "api.example.com", header=header))
    assert len(found) == 1
    assert "no network policy can have it" in found[0]
    assert header.lower() in found[0]


@pytest.mark.parametrize("domain", ["*.co.uk", "*.github.io", "a.1", "xn--a.com"])
def test_domains_of_strangers_and_of_nobody_are_refused(domain: str) -> None:
    found = messages(credential("A", domain))
    assert len(found) == 1
    assert domain in found[0]


def test_counts_are_bounded() -> None:
    rule = {"domain": "a.example", "transform": [{"headers": {"X": "{{credential}}"}}]}
    header = {"X": "{{credential}}"}
    many = {f"X-{number}": "{{credential}}" for number in range(21)}
    assert any("1 to 20 network rules, not 0" in message for message in messages({"key": "A", "network": []}))
    rules = [rule | {"domain": f"a{number}.example"} for number in range(21)]
    assert any("not 21" in message for message in messages({"key": "A", "network": rules}))
    assert any("two rules" in message for message in messages({"key": "A", "network": [rule, rule | {"domain": "A.example."}]}))
    for transform, expected in (
        ([], "1 to 20 transforms"),
        ([{"headers": {}}], "sets no header"),
        ([{"headers": many}], "sets 21 headers"),
        ([{"headers": header}, {"headers": {"x": "{{credential}}"}}], "twice"),
    ):
        found = messages({"key": "A", "network": [rule | {"transform": transform}]})
        assert any(expected in message for message in found), found
    hundred = [credential(f"A{number}", f"a{number}.example") for number in range(100)]
    assert messages(*hundred) == []
    assert any("100 credentials, not 101" in message for message in messages(*hundred, credential("B", "b.example")))
    large = [credential(f"A{number}", f"a{number}.example", template="a" * 8000 + "{{credential}}") for number in range(40)]
    assert any("together" in message for message in messages(*large))


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("a.b", "a.b", True),
        ("a.b", "c.b", False),
        ("*.x.com", "a.x.com", True),
        ("*.x.com", "x.com", False),
        ("*.x.com", "ax.com", False),
        ("*.x.com", "*.a.x.com", True),
        ("*.x.com", "*.ax.com", False),
        ("*.x.com", "*.x.com", True),
    ],
)
def test_domains_overlap_when_they_share_a_host(one: str, other: str, expected: bool) -> None:
    assert overlap(one, other) is expected
    assert overlap(other, one) is expected


def test_two_credentials_do_not_set_one_header_of_one_host() -> None:
    found = messages(credential("A", "*.x.com"), credential("B", "api.x.com", header="authorization"))
    assert found == [
        'Credential "B" conflicts with credential "A" for header "authorization" on overlapping domains "api.x.com" and "*.x.com"'
    ]
    assert messages(credential("A", "*.x.com"), credential("B", "api.x.com", header="X-Key")) == []
    assert messages(credential("A", "*.x.com"), credential("B", "x.com")) == []


def test_one_credential_may_have_an_exact_and_a_wildcard_rule_and_the_exact_one_counts() -> None:
    item = credential("A", "*.x.com", "api.x.com")
    item["network"][1]["transform"][0]["headers"]["Authorization"] = "Token {{credential}}"
    assert messages(item) == []
    rules = policy_rules(parsed({"credentials": [item]}).credentials)
    assert rules["api.x.com"][0]["transform"][0]["headers"]["authorization"]["format"] == "Token {}"
    assert rules["*.x.com"][0]["transform"][0]["headers"]["authorization"]["format"] == "Bearer {}"


def test_rules_are_taken_by_the_policy_engine_and_inject_what_all_declarations_add() -> None:
    found = parsed(
        {"credentials": [credential("WIDE", "*.example.com"), credential("EXACT", "api.example.com", header="X-Key")]}
    ).credentials
    rules = policy_rules(found, lambda key: f"w1-{key}")
    allow = {"allow": rules}
    checked = policy.check(allow)
    assert set(checked.credentials) == {"w1-WIDE", "w1-EXACT"}
    both = policy.explain([allow], policy.Question(url="https://api.example.com/v1", address="93.184.216.34"))
    one = policy.explain([allow], policy.Question(url="https://other.example.com/v1", address="93.184.216.34"))
    assert (both.decision, set(both.credentials)) == ("inject", {"w1-WIDE", "w1-EXACT"})
    assert (one.decision, set(one.credentials)) == ("inject", {"w1-WIDE"})


def test_the_secrets_of_credentials_are_kept_out_of_the_environment() -> None:
    found = parsed({"credentials": [credential("A", "a.example"), credential("B", "b.example")]}).credentials
    assert secret_names(found) == {"A", "B"}


def test_a_domain_with_more_headers_than_a_rule_may_set_is_refused() -> None:
    items = []
    for number in range(6):
        headers = {f"X-{number}-{index}": "{{credential}}" for index in range(20)}
        items.append({"key": f"A{number}", "network": [{"domain": "a.example", "transform": [{"headers": headers}]}]})
    found = parsed({"credentials": items})
    assert ["120 headers" in problem.message for problem in problems(found)] == [True]
    with pytest.raises(ValueError, match="120 headers"):
        policy_rules(found.credentials)
