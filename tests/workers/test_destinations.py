"""What projects declare about destinations is read with care, and compared as it is enforced."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.egress.policy import Boundaries, Question, explain
from hutch.workers import destinations
from hutch.workers.destinations import (
    EVERYTHING,
    NOTHING,
    Declared,
    Destinations,
    Difference,
    compare,
    declared,
    meet,
    seen,
    together,
)

LABELS = ("a", "b", "api")
HOSTS = tuple(
    ".".join(labels) for labels in (("b", "test"), ("a", "b", "test"), ("api", "a", "b", "test"), ("a", "test"), ("x", "org"))
)
PATTERNS = (*HOSTS, "*.b.test", "*.test", "*.a.b.test", "a.*.test", "*")
RANGES = ("203.0.113.0/24", "203.0.113.64/26", "203.0.113.65/32", "198.51.100.0/24")
SETS = st.builds(
    Destinations,
    allow=st.lists(st.sampled_from(PATTERNS), unique=True, max_size=4).map(tuple),
    subnets=st.lists(st.sampled_from(RANGES), unique=True, max_size=2).map(tuple),
    plaintext_http=st.booleans(),
)


def reaches(found: Destinations, host: str, *, plain: bool = False) -> bool:
    question = Question(f"{'http' if plain else 'https'}://{host}/", address="203.0.113.200")
    return explain([found.policy()], question).decision in ("allow", "pass_unmatched")


@given(SETS, SETS)
def test_a_difference_is_empty_exactly_when_nothing_more_is_reached(old: Destinations, new: Destinations) -> None:
    found = compare(old, new)
    for host in HOSTS:
        for plain in (False, True):
            more = reaches(new, host, plain=plain) and not reaches(old, host, plain=plain)
            assert not more or found.added, (host, plain)
            less = reaches(old, host, plain=plain) and not reaches(new, host, plain=plain)
            assert not less or found.removed, (host, plain)
    assert set(found.added) <= set(new.items())
    assert set(found.removed) <= set(old.items())
    assert compare(new, old) == Difference(found.removed, found.added)
    assert compare(new, new) == Difference()


@given(SETS, SETS)
def test_what_two_sets_reach_both_is_no_more_than_either(one: Destinations, other: Destinations) -> None:
    both = meet(one, other)
    assert compare(one, both).added == ()
    assert compare(other, both).added == ()
    assert meet(one, one) == together([one])


@given(st.lists(SETS, max_size=4))
def test_a_union_reaches_what_each_does(sets: list[Destinations]) -> None:
    union = together(sets)
    for one in sets:
        assert compare(union, one).added == ()


def test_what_a_deployment_shows() -> None:
    old = Destinations(allow=("api.a.test", "*.b.test"), subnets=("203.0.113.0/24",))
    new = Destinations(allow=("api.a.test", "x.b.test", "c.test"), subnets=("203.0.113.0/25",), plaintext_http=True)
    assert compare(old, new) == Difference(("c.test", "plaintextHttp"), ("*.b.test", "203.0.113.0/24"))
    assert compare(old, new).lines()[0] == "network  + c.test"
    assert compare(NOTHING, EVERYTHING) == Difference(("*",))
    assert compare(EVERYTHING, old).removed == ("*",)


# -- files -------------------------------------------------------------------------------------------


def worker_json(value: Any) -> dict[str, bytes]:
    return {destinations.FILE: json.dumps(value).encode()}


def test_a_set_is_declared_in_one_of_three_places() -> None:
    wanted = Declared(network=Destinations(allow=("api.test",), subnets=("203.0.113.0/24",), plaintext_http=True))
    section = {"network": {"allow": ["API.test."], "subnets": ["203.0.113.0/24"], "plaintextHttp": True}}
    package = b"\xef\xbb\xbf" + json.dumps({"name": "x", "hutch": section}).encode()
    toml = b'[tool.hutch.network]\nallow = ["api.test"]\nsubnets = ["203.0.113.0/24"]\nplaintextHttp = true\n'
    for files in (worker_json(section), {"package.json": package}, {"pyproject.toml": toml}):
        assert declared(files) == wanted
    with pytest.raises(ValueError, match=r"hutch.worker.json and package.json both say"):
        declared({**worker_json(section), "package.json": package})
    assert declared({"package.json": b"{}", "pyproject.toml": b"[tool.ruff]\n", **worker_json({})}) == Declared()
    assert declared({}) == Declared()


def test_an_empty_set_is_closed_and_none_is_open() -> None:
    assert declared(worker_json({"network": {}})).network == NOTHING
    assert NOTHING.policy() == {"mode": "deny-all"}
    assert declared(worker_json({"network": None})).network is None


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[]", "should be an object"),
        (b"{", "is no JSON"),
        (b"\xff\xfe", "is not UTF-8"),
        (b'{"network": {"allow": ["a.test"]}, "network": {"allow": ["*"]}}', "more than once"),
        (b"[" * 100_000, "nested|no JSON"),
        (b'{"__proto__": {"network": {}}}', "__proto__"),
        (b'{"network": ["a.test"]}', "should be an object such as"),
        (b'{"network": {"alow": ["a.test"]}}', "unknown field"),
        (b'{"network": {"allow": "a.test"}}', "should be a list"),
        (b'{"network": {"allow": [7]}}', "should be a string"),
        (b'{"network": {"allow": ["10.0.0.1"]}}', "is an IP address"),
        (b'{"network": {"allow": ["http://a.test"]}}', "network"),
        (b'{"network": {"allow": ["a*.test"]}}', "not a whole label"),
        (b'{"network": {"subnets": ["10.0.0.0/8"]}}', "closed to every sandbox"),
        (b'{"network": {"subnets": ["169.254.169.254/32"]}}', "closed to every sandbox"),
        (b'{"network": {"subnets": ["127.0.0.1/32"]}}', "closed to every sandbox"),
        (json.dumps({"network": {"allow": [f"n{n}.test" for n in range(1001)]}}).encode(), "1000 names"),
        (b'{"oauth": []}', "oauth"),
        (b'{"oauth": {"k": ["*"]}}', "is no host"),
        (b'{"oauth": {"k": ["*.com"]}}', "is no host"),
        (b'{"oauth": {"k": ["*.github.io"]}}', "no network policy can have"),
        (json.dumps({"oauth": {"k": ["a.test"] * 51}}).encode(), "50 hosts"),
        (b" " * (destinations.MAX_FILE_BYTES + 1), "bytes"),
    ],
)
def test_hostile_and_mistaken_declarations_are_refused_with_what_to_fix(content: bytes, expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as error:
        declared({destinations.FILE: content})
    assert str(error.value).startswith(destinations.FILE)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    "content", [b"x = [" * 5000, b"\xff", b"tool = 7", b"[tool]\nhutch = 7", b"#" * (1024 * 1024 + 1), b"a = 1\na = 2"]
)
def test_hostile_toml(content: bytes) -> None:
    if content == b"tool = 7":
        assert declared({"pyproject.toml": content}) == Declared()
        return
    with pytest.raises(ValueError, match=r"^pyproject.toml"):
        declared({"pyproject.toml": content})


def test_what_the_operator_opened_may_be_declared() -> None:
    files = worker_json({"network": {"subnets": ["10.1.0.0/16"]}})
    opened = Boundaries(allow_private=("10.1.0.0/16",))
    assert declared(files, opened).network == Destinations(subnets=("10.1.0.0/16",))


# -- what was seen -----------------------------------------------------------------------------------


def test_runs_are_summed_up() -> None:
    records = [
        {"kind": "dns", "decision": "allow", "name": "api.test"},
        {"kind": "tls", "decision": "allow", "reason": "domain", "name": "api.test", "mode": "splice"},
        {"kind": "dns", "decision": "deny", "reason": "domain_deny", "name": "evil.test"},
        {"kind": "dns", "decision": "deny", "reason": "domain_deny", "name": "evil.test"},
        {"kind": "tcp", "decision": "deny", "reason": "hard_deny", "origDst": "169.254.169.254:80"},
        {"kind": "tcp", "decision": "allow", "reason": "cidr", "dst": "203.0.113.9:5432"},
    ]
    found = seen(records)
    assert found.used == Destinations(allow=("api.test",), subnets=("203.0.113.9/32",))
    assert [(item.name, item.reason, item.count) for item in found.refused] == [
        ("169.254.169.254:80", "hard_deny", 1),
        ("evil.test", "domain_deny", 2),
    ]
    assert destinations.refusals([found, found])[0].count == 4


def test_names_of_a_hostile_guest_are_not_learned_and_not_kept_for_ever() -> None:
    odd = ["*.com", "a\x00b.test", "x" * 10_000, "\x1b[2J.test", "localhost", "10.0.0.1", "", 7, None, {"a": 1}]
    records: list[dict[str, Any]] = [{"kind": "tls", "decision": "allow", "reason": "no_name", "name": name} for name in odd]
    records += [{"kind": "dns", "decision": "deny", "reason": "domain_deny", "name": name} for name in odd]
    records += [{"kind": "dns", "decision": "deny", "reason": "domain_deny", "name": f"n{n}.test"} for n in range(500)]
    records += [{}, {"kind": 7, "decision": []}]
    found = seen(records)
    assert found.used.allow == ()
    assert found.partial
    assert len(found.refused) <= destinations.MAX_REFUSED
    for item in found.refused:
        assert item.name.isascii()
        assert item.name.isprintable()
        assert len(item.name) <= destinations.MAX_NAME


def test_more_names_than_a_policy_holds_are_partly_learned() -> None:
    records = [{"kind": "tls", "decision": "allow", "name": f"n{n}.test", "mode": "splice"} for n in range(1200)]
    found = seen(records)
    assert len(found.used.allow) == destinations.MAX_NAMES
    assert found.partial
