"""Policies from audits: what is in them, what is not, and records that want to be in them."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.egress.learn import CURABLE, FLOWS, MAX_NAMES, MAX_RANGES, MAX_RULES, PASSED, REFUSED, Learned, learn
from hutch.egress.policy import Question, check, explain
from hutch.errors import BadRequestError
from tests.conftest import CHECKOUT
from tests.egress.world import EVIL, World

OPEN = "203.0.113.9:5432"


def tls(name: str, decision: str = "allow", reason: str = "domain", **more: Any) -> dict[str, Any]:
    return {
        "kind": "tls",
        "decision": decision,
        "reason": reason,
        "name": name,
        "origDst": "203.0.113.1:443",
        "mode": "mitm",
    } | more


def http(name: str, method: Any = "GET", path: Any = "/", decision: str = "allow", **more: Any) -> dict[str, Any]:
    record = {"kind": "http", "decision": decision, "reason": "domain", "name": name, "method": method, "path": path}
    return record | {"mode": "mitm", "origDst": "203.0.113.1:443"} | more


def dns(name: str, decision: str = "allow", reason: str = "domain") -> dict[str, Any]:
    return {"kind": "dns", "decision": decision, "reason": reason, "name": name}


def flow(destination: str = OPEN, decision: str = "allow", reason: str = "allow_all", **more: Any) -> dict[str, Any]:
    return {"kind": "tcp", "decision": decision, "reason": reason, "origDst": destination} | more


def policy(*records: dict[str, Any], **options: bool) -> dict[str, Any]:
    return learn(records, **options).policy


# -- names and ranges -------------------------------------------------------------------------------


def test_names_that_were_dialled_are_allowed_exactly() -> None:
    seen = [dns("b.test"), dns("looked-up.test"), tls("b.test"), tls("a.test"), tls("B.Test."), http("a.test")]
    assert policy(*seen) == {"allow": ["a.test", "b.test"]}
    assert policy(*seen) == policy(*reversed(seen)) == policy(*seen, *seen)


def test_a_flow_without_a_name_is_a_range_of_one_address() -> None:
    seen = [flow(), flow("203.0.113.9:22"), flow("198.51.100.7:22"), flow("[2001:470::1]:53", kind="udp"), tls("", origDst=OPEN)]
    assert policy(*seen) == {"subnets": {"allow": ["198.51.100.7/32", "203.0.113.9/32", "2001:470::1/128"]}}


def test_beside_ranges_names_that_were_looked_up_resolve() -> None:
    learned = learn([dns("git.test"), flow("203.0.113.9:22"), tls("a.test")])
    assert learned.policy == {"allow": ["a.test", "git.test"], "subnets": {"allow": ["203.0.113.9/32"]}}
    assert any("git.test" in note for note in learned.notes)


def test_what_was_refused_comes_in_only_when_asked() -> None:
    seen = [
        tls("a.test"),
        tls("b.test", "deny", "domain_deny"),
        dns("c.test", "deny", "domain_deny"),
        flow(decision="deny", reason="no_name"),
        flow("203.0.113.10:22", "revoked", "deny_all", kind="revoke"),
        http("d.test:8080", decision="deny", reason="plaintext_http", method=None, path=None),
    ]
    learned = learn(seen)
    assert learned.policy == {"allow": ["a.test"]}
    assert learned.notes == ("left out: 5 refusals (--include-denied takes them in)",)
    assert policy(*seen, include_denied=True) == {
        "allow": ["a.test", "b.test", "c.test", "d.test"],
        "subnets": {"allow": ["203.0.113.9/32", "203.0.113.10/32"]},
        "defaults": {"plaintextHttp": True},
    }


@pytest.mark.parametrize(
    "reason", ["hard_deny", "self", "smtp", "name_blocked", "name_mismatch", "address_class", "protocol_violation"]
)
def test_what_no_policy_lifts_is_never_learned(reason: str) -> None:
    learned = learn([flow("169.254.169.254:80", "deny", reason), tls("evil.test", "deny", reason)], include_denied=True)
    assert learned.policy == {"mode": "deny-all"}
    assert "2 refusals that no policy" in learned.notes[0]


def test_reasons_are_those_of_the_gateway() -> None:
    page = (CHECKOUT / "docs" / "network.md").read_text(encoding="utf-8")
    assert all(f"| `{reason}` |" in page for reason in CURABLE)


def test_closed_addresses_are_no_ranges() -> None:
    closed = ["10.0.0.1:80", "169.254.169.254:80", "127.0.0.1:22", "100.64.0.9:1", "[::1]:80", "224.0.0.1:5353", "0.0.0.0:1"]
    refused = [flow(address, "deny", "no_name") for address in closed]
    assert policy(*refused, include_denied=True) == {"mode": "deny-all"}
    # The operator may have opened private ranges: then a flow passed, and it is said as it is.
    assert policy(*(flow(address) for address in closed)) == {"subnets": {"allow": ["10.0.0.1/32"]}}


def test_plain_http_and_names_of_virtual_addresses_bring_what_they_need() -> None:
    assert policy(http("a.test", mode="plain")) == {"allow": ["a.test"], "defaults": {"plaintextHttp": True}}
    assert policy(flow(name="db.test", mode="splice")) == {"allow": ["db.test"], "dns": {"mode": "virtual"}}


@pytest.mark.parametrize("records", [[], [dns("a.test")], [{"kind": "policy", "decision": "allow", "reason": "allow_all"}]])
def test_nothing_needs_nothing(records: list[dict[str, Any]]) -> None:
    assert learn(records).policy == {"mode": "deny-all"}


# -- paths ------------------------------------------------------------------------------------------


def test_paths_become_rules_with_methods_and_the_rest_is_closed() -> None:
    seen = [
        tls("a.test"),
        http("a.test", "GET", "/v1/users?id="),
        http("a.test", "POST", "/v1/"),
        http("a.test", "GET", "/health"),
        http("a.test", "HEAD", "/"),
        tls("b.test", mode="splice"),
    ]

    def rule(kind: str, text: str, *methods: str) -> dict[str, Any]:
        return {"match": {"path": {kind: text}, "method": list(methods)}, "transform": []}

    learned = policy(*seen, paths=True)
    assert learned == {
        "allow": {
            "a.test": [rule("exact", "/", "HEAD"), rule("exact", "/health", "GET"), rule("startsWith", "/v1/", "GET", "POST")],
            "b.test": [],
        },
        "defaults": {"unmatched": "deny"},
    }

    def decision(url: str, method: str = "GET") -> str:
        return explain([learned], Question(url, method)).decision

    assert check(learned).warnings == ()
    assert (
        decision("https://a.test/v1/users", "POST")
        == decision("https://b.test/any")
        == decision("https://a.test/health")
        == "allow"
    )
    for url, method in (
        ("https://a.test/v2/", "GET"),
        ("https://a.test/v1/x", "DELETE"),
        ("https://a.test/healthz", "GET"),
        ("https://c.test/", "GET"),
    ):
        assert decision(url, method) == "deny"


def test_connections_that_nobody_looked_into_keep_their_name_whole() -> None:
    learned = learn([http("a.test", "GET", "/v1/x"), tls("a.test", mode="splice")], paths=True)
    assert learned.policy == {"allow": ["a.test"]}
    assert any("whole" in note for note in learned.notes)


@pytest.mark.parametrize("path", ["/%2e%2e/x", "/..//", "//x", "/a\\xffb/c", "/" + "a" * 300 + "/", "/ü/", "/a b/"])
def test_paths_that_no_rule_can_name_open_the_name_for_the_methods_seen(path: str) -> None:
    learned = learn([http("a.test", "GET", path), http("a.test", "PUT", "/v1/x")], paths=True)
    methods = {method for rule in learned.policy["allow"]["a.test"] for method in rule["match"]["method"]}
    assert methods == {"GET", "PUT"}
    assert any("any path" in note for note in learned.notes)
    check(learned.policy)


def test_more_paths_than_rules_become_any_path() -> None:
    seen = [http("a.test", "GET", f"/p{number}/x") for number in range(MAX_RULES)]
    assert len(policy(*seen, paths=True)["allow"]["a.test"]) == MAX_RULES
    learned = policy(*seen, http("a.test", "POST", "/more/x"), paths=True)
    assert learned["allow"]["a.test"] == [
        {"match": {"path": {"startsWith": "/"}, "method": ["GET", "POST"]}, "transform": []},
    ]


@pytest.mark.parametrize(
    ("method", "path"), [("get", "/"), ("", "/"), ("G T", "/"), ("GET", "*"), ("GET", ""), (5, "/"), ("GET", 5)]
)
def test_requests_that_can_not_be_named_are_counted(method: Any, path: Any) -> None:
    learned = learn([http("a.test", method, path)], paths=True)
    assert learned.policy == {"allow": ["a.test"]}
    assert any("no rule can name" in note for note in learned.notes)


# -- hostile records --------------------------------------------------------------------------------

NO_NAMES = [
    *("*", "*.com", "*.evil.test", "evil*.test", "com", "localhost", "a.local", "metadata.google.internal", "1.2.3.4", "a.1"),
    *("a.0x1f", "a..b", ".a.test", "-a.test", "_a.test", "a.test/", "a.test\n", "a.test\0", "a test", "ä.test", "a.test,b.test"),
    *(
        "[::1]",
        "x" * 64 + ".test",
        ".".join(["a" * 60] * 5),
        "a.test:x",
        '"a.test',
        "\\x2a.test",
        "{}",
        "<redacted>",
        "x" * 100_000,
    ),
    *(5, None, True, ["a.test"], {"a": 1}),
]


@pytest.mark.parametrize("kind", ["tls", "http", "dns"])
@pytest.mark.parametrize("decision", ["allow", "deny"])
@pytest.mark.parametrize("name", NO_NAMES)
def test_what_is_no_name_is_left_out(name: Any, decision: str, kind: str) -> None:
    record = {"kind": kind, "decision": decision, "reason": "domain_deny", "name": name}
    learned = learn([record, tls("a.test")], paths=True, include_denied=True)
    assert learned.policy == {"allow": ["a.test"]}


HOSTILE = st.text(max_size=20) | st.sampled_from([None, True, -1, 10**30, float("nan"), [], ["a.test"], {}, {"a": [1]}])
NAMES = st.sampled_from(["a.test", "b.test", "*.test", "x"]) | HOSTILE
RECORDS = st.fixed_dictionaries(
    {},
    optional={
        "kind": st.sampled_from([*FLOWS, "dns"]) | HOSTILE,
        "decision": st.sampled_from([*PASSED, *REFUSED]) | HOSTILE,
        "reason": st.sampled_from([*CURABLE, "hard_deny"]) | HOSTILE,
        "name": NAMES,
        "origDst": st.sampled_from([OPEN, "10.0.0.1:1", "[2001:470::1]:53"]) | HOSTILE,
        "dst": st.just(OPEN) | HOSTILE,
        "mode": st.sampled_from(["splice", "mitm", "plain"]) | HOSTILE,
        "method": st.sampled_from(["GET", "POST"]) | HOSTILE,
        "path": st.text(alphabet="/ab.%?#*é", max_size=8).map("/{}".format) | HOSTILE,
    },
)


@given(st.lists(RECORDS, max_size=8), st.booleans(), st.booleans())
def test_whatever_records_say_the_policy_is_valid_and_has_no_pattern(
    records: list[dict[str, Any]], paths: bool, include_denied: bool
) -> None:
    learned = learn(records, paths=paths, include_denied=include_denied)
    assert isinstance(learned, Learned)
    assert "*" not in [key for name in learned.policy.get("allow", ()) for key in name]
    json.dumps(learned.policy)


def test_a_huge_audit_is_read_once_and_not_kept() -> None:
    def records() -> Iterator[dict[str, Any]]:
        for number in range(200_000):
            name = f"h{number % 50}.test"
            yield http(name, "GET", f"/p{number}/x") if number % 2 else tls(f"{'x' * 80}{number}.test")

    tracemalloc.start()
    learned = learn(records(), paths=True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8_000_000
    assert len(learned.policy["allow"]) == 25


@pytest.mark.parametrize(
    ("make", "most"),
    [
        (lambda number: tls(f"h{number}.test"), MAX_NAMES),
        (lambda number: flow(f"203.0.{number >> 8}.{number & 255}:1"), MAX_RANGES),
    ],
)
def test_more_than_a_policy_holds_is_said(make: Any, most: int) -> None:
    check(learn(make(number) for number in range(most)).policy)
    with pytest.raises(BadRequestError) as refused:
        learn(make(number) for number in range(most + 1))
    assert refused.value.code == "too_much_to_learn"


# -- the real gateway -------------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.parametrize("paths", [False, True])
async def test_what_ran_while_it_was_learned_runs_under_what_was_learned(outside: World, paths: bool) -> None:
    guest = await outside.guest({"allow": {"*": []}, "defaults": {"inspect": "all"}})

    async def status(url: str, *arguments: str) -> str:
        return (await guest.curl("-o", "/dev/null", *arguments, url)).out[-3:]

    did = (("https://api.test/v1/users", "-d", "x"), ("https://api.test/health",), ("https://a.wild.test/",))
    assert [await status(*request) for request in did] == ["200"] * 3
    assert (await guest.curl("-m", "3", "http://other.test/")).code != 0
    assert (await guest.curl("-m", "8", f"telnet://{EVIL}:5432")).code != 0
    # A record of a request is there when it has been answered.
    await guest.audited(kind="http", name="a.wild.test")
    await guest.audited(kind="tcp", origDst=f"{EVIL}:5432")
    learned = learn(await guest.audit(), paths=paths)
    assert sorted(learned.policy["allow"]) == ["a.wild.test", "api.test"]
    await guest.policy(learned.policy)
    assert [await status(*request) for request in did] == ["200"] * 3
    assert (await guest.curl("https://cdn.test/")).code != 0
    assert await status("https://api.test/v1/users", "-X", "DELETE") == ("403" if paths else "200")
    assert await status("https://api.test/admin") == ("403" if paths else "200")
    # What was refused can be taken in too, and then it is open.
    wider = learn(await guest.audit(), paths=paths, include_denied=True).policy
    assert wider["subnets"] == {"allow": [f"{EVIL}/32"]}
    assert {"other.test", "cdn.test"} <= set(wider["allow"])
    await guest.policy(wider)
    assert (await guest.curl("-m", "8", "http://other.test/")).out[-3:] == "200"
