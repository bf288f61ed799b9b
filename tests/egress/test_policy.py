"""The typed face of the policy engine. What policies mean is tested in crates/policy; here is what Python sees of it."""

from __future__ import annotations

import ipaddress
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.egress import hutch_native
from hutch.egress.policy import (
    MAX_OUTSIDE_WARNINGS,
    Boundaries,
    CheckedPolicy,
    Policy,
    Question,
    check,
    closed_ranges,
    explain,
    operator_policy,
    outside_warnings,
    within,
)
from hutch.errors import BadRequestError
from hutch.settings import SettingsError, load

SECRET = "CANARY-4d1c9a7e2b"

LABELS = st.sampled_from(["a", "b-1", "api", "example", "xn--bcher-kva"])
DOMAINS = st.lists(LABELS, min_size=1, max_size=3).map(lambda labels: ".".join([*labels, "test"]))
PATTERNS = DOMAINS | DOMAINS.map("*.{}".format) | st.just("*.example.test")
TEXT = st.text(alphabet="abc/{}-_.:", min_size=1, max_size=12)
TESTS = st.sampled_from(["exact", "startsWith"]).flatmap(lambda kind: TEXT.map(lambda text: {kind: text}))
MATCHES = st.fixed_dictionaries(
    {},
    optional={
        "path": TESTS,
        "method": st.lists(st.sampled_from(["GET", "POST", "get"]), min_size=1, max_size=2),
        "headers": st.lists(st.fixed_dictionaries({}, optional={"key": TESTS, "value": TESTS}), max_size=2),
    },
)
VALUES = st.text(alphabet="xyz019 ~", min_size=1, max_size=20).map(lambda text: text + SECRET) | st.fixed_dictionaries(
    {"credential": st.sampled_from(["GITHUB", "npm-1", "a_b"])},
    optional={"format": st.sampled_from(["Bearer {}", "{base64}"])},
)
HEADERS = st.dictionaries(st.sampled_from(["authorization", "X-Key", "x-other"]), VALUES, max_size=2)
ACTIONS = st.one_of(
    st.lists(st.fixed_dictionaries({}, optional={"headers": HEADERS, "queryString": HEADERS}), max_size=2).map(
        lambda transforms: {"transform": transforms}
    ),
    st.sampled_from(["https://p.test", "https://p.test:8443/x/"]).map(lambda url: {"forwardURL": url}),
    st.integers(200, 599).map(lambda status: {"response": {"statusCode": status}}),
)
RULES = st.tuples(ACTIONS, st.fixed_dictionaries({}, optional={"match": MATCHES})).map(lambda parts: parts[0] | parts[1])
RANGES = st.lists(st.sampled_from(["203.0.113.0/24", "198.51.100.7/32", "2001:db8::/32"]), max_size=2)
CUSTOM = st.fixed_dictionaries(
    {},
    optional={
        "allow": st.lists(PATTERNS, max_size=4) | st.dictionaries(PATTERNS, st.lists(RULES, max_size=3), max_size=4),
        "subnets": st.fixed_dictionaries({}, optional={"allow": RANGES, "deny": RANGES}),
        "defaults": st.fixed_dictionaries({}, optional={"unmatched": st.just("deny"), "ports": st.just([443, 8443])}),
        "limits": st.fixed_dictionaries({}, optional={"upBytes": st.integers(0, 2**53 - 1)}),
    },
)
WHOLE = st.sampled_from(["allow-all", "deny-all", {"mode": "allow-all"}, {"mode": "deny-all"}])
POLICIES = (CUSTOM | WHOLE).map(json.dumps)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


def refused(policy: Policy, **more: Any) -> BadRequestError:
    with pytest.raises(BadRequestError) as caught:
        check(policy, **more)
    assert caught.value.code == "invalid_network_policy"
    return caught.value


# -- checking ---------------------------------------------------------------------------------------


@given(POLICIES)
def test_what_is_read_back_is_the_same_policy_again_values_and_all(policy: str) -> None:
    try:
        first = check(policy)
    except BadRequestError as error:
        assert error.code == "invalid_network_policy"
        return
    again = check(first.read_back, previous=first.text)
    assert (again.hash, again.text, again.read_back) == (first.hash, first.text, first.read_back)
    stored = check(first.text)
    assert (stored.hash, stored.text, stored.read_back) == (first.hash, first.text, first.read_back)


@given(POLICIES)
def test_values_never_leave_but_in_the_stored_form(policy: str) -> None:
    try:
        checked = check(policy)
    except BadRequestError as error:
        assert SECRET not in error.message + json.dumps(error.details)
        return
    shown = [checked.read_back, checked.hash, *checked.warnings, *checked.credentials, *checked.intercepted]
    assert SECRET not in str(shown)


@given(st.binary(max_size=200) | st.text(max_size=200) | JSON.map(json.dumps))
def test_whatever_comes_is_a_policy_or_one_sentence_with_a_pointer(junk: str | bytes) -> None:
    try:
        assert isinstance(check(junk), CheckedPolicy)
    except BadRequestError as error:
        assert error.code == "invalid_network_policy"
        assert error.message.startswith("Invalid request: the network policy")
        assert error.message.endswith(".")
        pointer = error.details["pointer"]
        assert pointer == "" or str(pointer).startswith("/")


@pytest.mark.parametrize(
    ("policy", "pointer", "said"),
    [
        ("5", "", "the network policy should be an object"),
        ("{", "", "should be JSON"),
        ({"mode": "open"}, "/mode", "/mode should be"),
        ({"allow": ["api*.test"]}, "/allow/0", "/allow/0 has a `*`"),
        ({"allow": {"a/b~c": []}}, "/allow/a~1b~0c", ""),
        ({"allow": {"a.test": [{}]}}, "/allow/a.test/0", "exactly one of"),
        ({"subnets": {"allow": ["10.0.0.0/8"]}}, "/subnets/allow/0", "closed to every sandbox"),
        ('{"allow": [], "allow": []}', "/allow", "repeated"),
        ("[" * 100_000, "", "should be JSON"),
        ({"allow": {"a.test": [{"transform": [{"headers": {"x": "<redacted>"}}]}]}}, "/allow/a.test/0", "values again"),
        ({"allow": {"a.test": [{"transform": [{"headers": {"x": {"credential": "a.b"}}}]}]}}, None, "name of a credential"),
        ({"allow": {"a.test": [{"match": {"path": {"regex": "(" * 500}}, "response": {"statusCode": 403}}]}}, None, ""),
        (json.dumps({"allow": ["x" * 2**20]}), "", "should NOT have more than 1048576 bytes"),
        ('"\ud800"', "", "should be JSON"),
    ],
)
def test_what_is_wrong_is_said_with_where(policy: Policy, pointer: str | None, said: str) -> None:
    error = refused(policy)
    if pointer is not None:
        assert error.details == {"pointer": pointer}
    assert said in error.message


def test_a_checked_policy_says_what_a_host_and_a_client_need() -> None:
    token = {"credential": "GITHUB", "format": "Bearer {}", "placeholder": "TOKEN"}
    rule = {"match": {"path": {"startsWith": "/repos"}}, "transform": [{"headers": {"authorization": token}}]}
    checked = check({"allow": {"b.test": [], "a.test": [rule]}})
    assert checked.mode == "custom"
    assert checked.credentials == ("GITHUB",)
    assert checked.placeholders == (("TOKEN", "GITHUB"),)
    assert checked.intercepted == ("a.test",)
    assert [warning.code for warning in checked.warnings] == ["prefix_without_slash"]
    assert checked.warnings[0].pointer == "/allow/a.test/0/match/path"
    # In the order of the request, which a client shows.
    assert checked.read_back["allowedDomains"] == ["b.test", "a.test"]
    assert list(checked.read_back["hutch"]["policy"]["allow"]) == ["b.test", "a.test"]
    assert check("{}").empty
    assert not check('"deny-all"').empty


def test_a_redacted_value_comes_back_from_the_policy_that_is_replaced_only() -> None:
    rule = {"transform": [{"headers": {"x-key": SECRET}}]}
    first = check({"allow": {"a.test": [rule]}})
    read = first.read_back["hutch"]["policy"]
    assert SECRET not in json.dumps(read)
    assert check(read, previous=first.text).text == first.text
    assert refused(read).details["pointer"] == "/allow/a.test/0"
    moved = {"allow": {"evil.test": read["allow"]["a.test"]}}
    assert SECRET not in refused(moved, previous=first.text).message


def test_an_old_policy_gives_its_values_although_the_operator_has_closed_its_ranges() -> None:
    open_then = Boundaries(allow_private=("10.0.0.0/8",))
    rule = {"transform": [{"headers": {"x-key": SECRET}}]}
    first = check({"allow": {"a.test": [rule]}, "subnets": {"allow": ["10.1.0.0/16"]}}, settings=open_then)
    read = first.read_back["hutch"]["policy"]
    del read["subnets"]
    assert SECRET in check(read, previous=first.text).text
    assert refused(first.text).details["pointer"] == "/subnets/allow/0"


def test_bounds_have_a_grammar_of_their_own_and_say_what_lies_beyond() -> None:
    bounds = {"allow": ["*.corp.test"], "subnets": {"allow": ["203.0.113.0/24"]}, "block": ["bad.corp.test"]}
    assert check(bounds, role="bounds").mode == "custom"
    refused(bounds)
    refused({"allow": {"a.test": [{"forwardURL": "https://p.test"}]}}, role="bounds")
    within = Boundaries(bounds=(bounds,))
    assert check({"allow": ["a.corp.test"]}, settings=within).outside == ()
    beyond = check({"allow": ["a.test"], "subnets": {"allow": ["198.51.100.0/24"]}}, settings=within).outside
    assert beyond == ({"pattern": "a.test"}, {"range": "198.51.100.0/24"})
    assert check('"allow-all"', settings=within).outside == ({"mode": "allow-all"},)


def test_the_engine_runs_beside_python() -> None:
    policy = json.dumps(
        {
            "allow": {
                f"h{n}.test": [{"match": {"path": {"regex": f"^/{n}/.*x+y+z+$"}}, "response": {"statusCode": 403}}]
                for n in range(300)
            }
        }
    )
    turns = 0
    worker = threading.Thread(target=check, args=(policy,))
    worker.start()
    while worker.is_alive():
        turns += 1
    # With the interpreter's lock held, this thread would have stood still all the while.
    assert turns > 1000


# -- what the operator says -------------------------------------------------------------------------


def test_ranges_are_opened_by_the_operator_within_what_can_be_opened(tmp_path: Any) -> None:
    (tmp_path / "hutch.toml").write_text('[egress]\nallow_private = ["10.20.0.0/16"]')
    settings = Boundaries.of(load(tmp_path / "hutch.toml", environment={}))
    policy = {"subnets": {"allow": ["10.20.1.0/24"]}}
    assert check(policy, settings=settings).mode == "custom"
    refused(policy)
    refused({"subnets": {"allow": ["10.21.0.0/16"]}}, settings=settings)


@pytest.mark.parametrize("value", ["127.0.0.0/8", "169.254.169.254/32", "::1/128", "100.64.0.0/10", "100.80.0.0/16", "fe80::/10"])
def test_what_can_never_be_opened_stops_the_server(value: str) -> None:
    settings = load(environment={"HUTCH_EGRESS__ALLOW_PRIVATE": f"10.0.0.0/8,{value}"})
    with pytest.raises(SettingsError, match=r"allow_private.*" + value.replace(".", r"\.")):
        Boundaries.of(settings)


def test_a_packet_filter_is_given_what_the_engine_closes() -> None:
    settings = Boundaries(allow_private=("10.20.0.0/16",), own=("203.0.113.7", "2001:db8::7", "127.0.0.1"))
    ranges = [ipaddress.ip_network(text) for text in closed_ranges(settings)]
    for text, closed in (
        ("127.0.0.1", True),
        ("169.254.169.254", True),
        ("100.64.0.1", True),
        ("203.0.113.7", True),
        ("2001:db8::7", True),
        ("10.19.0.1", True),
        ("10.20.0.1", False),
        ("10.21.0.1", True),
        ("203.0.113.8", False),
        ("2001:db8::8", False),
    ):
        address = ipaddress.ip_address(text)
        assert any(address in one for one in ranges) is closed, text
        decision = explain(['"allow-all"'], Question(f"tcp://{f'[{text}]' if ':' in text else text}:99"), settings).decision
        assert (decision == "deny") is closed, text


# -- explaining -------------------------------------------------------------------------------------

POLICY = {
    "allow": {
        "api.test": [
            {
                "match": {"path": {"startsWith": "/v1/"}},
                "transform": [{"headers": {"Authorization": {"credential": "KEY", "format": "Bearer {}"}, "x-lit": SECRET}}],
            },
            {"match": {"method": ["PUT"]}, "forwardURL": "https://p.test"},
            {"match": {"path": {"startsWith": "/no/"}}, "response": {"statusCode": 418}},
        ],
        "plain.test": [],
    },
    "subnets": {"allow": ["203.0.113.0/24"], "deny": ["198.51.100.0/24"]},
}


def asked(url: str, **more: Any) -> tuple[str, str, str]:
    found = explain([POLICY], Question(url, **more))
    return found.decision, found.reason, found.stage


@pytest.mark.parametrize(
    ("url", "more", "expected"),
    [
        ("https://api.test/v1/x", {}, ("inject", "inject", "request")),
        ("https://api.test/v1/x", {"credentials": {"KEY": False}}, ("deny", "credential_missing", "request")),
        ("https://api.test/x", {"method": "PUT"}, ("forward", "forward", "request")),
        ("https://api.test/no/x", {}, ("respond", "respond", "request")),
        ("https://api.test/x", {}, ("pass_unmatched", "pass_unmatched", "request")),
        ("https://api.test/v1/%2e%2e/x", {}, ("deny", "ambiguous_path", "request")),
        ("https://api.test/v1/x", {"headers": [("host", "evil.test")]}, ("deny", "name_mismatch", "request")),
        ("https://api.test/", {"method": "TRACE"}, ("deny", "method_deny", "request")),
        ("https://api.test:8443/", {}, ("deny", "port_deny", "connection")),
        ("https://plain.test", {}, ("allow", "domain", "connection")),
        ("postgresql://plain.test", {}, ("allow", "domain", "connection")),
        ("http://plain.test", {}, ("deny", "plaintext_http", "connection")),
        ("https://evil.test", {}, ("deny", "domain_deny", "dns")),
        ("https://evil.test", {"address": "192.0.2.1"}, ("deny", "domain_deny", "connection")),
        ("https://plain.test", {"address": "198.51.100.1"}, ("deny", "subnet_deny", "connection")),
        ("https://plain.test", {"address": "10.0.0.1"}, ("deny", "hard_deny", "connection")),
        ("ssh://203.0.113.9", {}, ("allow", "cidr", "connection")),
        ("tcp://[2001:db8::1]:99", {}, ("deny", "no_name", "connection")),
        ("tcp://203.0.113.9:25", {}, ("deny", "smtp", "connection")),
    ],
)
def test_every_decision_is_explained(url: str, more: dict[str, Any], expected: tuple[str, str, str]) -> None:
    assert asked(url, **more) == expected


def test_an_explanation_names_pattern_rule_and_what_is_injected_without_values() -> None:
    found = explain([POLICY], Question("https://api.test/v1/x", address="192.0.2.1"))
    assert (found.mode, found.pattern, found.status) == ("intercept", "api.test", None)
    assert found.rule is not None
    assert (found.rule.index, found.rule.of) == (0, "tenant")
    assert found.injected == ("Authorization", "x-lit")
    assert found.credentials == ("KEY",)
    assert found.message.endswith(".")
    assert found.address is not None
    assert not found.address.assumed
    assert SECRET not in str(found)


def test_a_placeholder_is_written_as_its_variable() -> None:
    token = {"credential": "KEY", "placeholder": "TOKEN"}
    policy = {"allow": {"api.test": [{"transform": [{"headers": {"authorization": token}}]}], "b.test": [{"transform": []}]}}
    header = [("authorization", "Bearer $TOKEN")]
    assert explain([policy], Question("https://api.test", headers=header)).credentials == ("KEY",)
    assert explain([policy], Question("https://api.test")).injected == ()
    assert explain([policy], Question("https://b.test", headers=header)).reason == "placeholder_misuse"


def test_bounds_come_first_and_the_strictest_answer_counts() -> None:
    bounds = {"allow": {"*.corp.test": [{"match": {"method": ["DELETE"]}, "response": {"statusCode": 403}}]}}
    tenant = {"mode": "allow-all"}
    assert explain([bounds, tenant], Question("https://a.test")).reason == "domain_deny"
    found = explain([bounds, tenant], Question("https://a.corp.test", method="DELETE"))
    assert (found.decision, found.status) == ("respond", 403)
    assert found.rule is not None
    assert found.rule.of == "bounds"


@pytest.mark.parametrize(
    ("policies", "question", "code"),
    [
        ([], Question("https://a.test"), "bad_request"),
        (["{"], Question("https://a.test"), "invalid_network_policy"),
        (["{}"], Question(""), "bad_request"),
        (["{}"], Question("a.test"), "bad_request"),
        (["{}"], Question("gopher://a.test"), "bad_request"),
        (["{}"], Question("tcp://a.test"), "bad_request"),
        (["{}"], Question("https://u:p@a.test"), "bad_request"),
        (["{}"], Question("https://a.test:99999"), "bad_request"),
        (["{}"], Question("https://"), "bad_request"),
        (["{}"], Question("https://a.test", address="nowhere"), "bad_request"),
        (['{"allow": ["a.test"]}}, "x": {'], Question("https://a.test"), "invalid_network_policy"),
    ],
)
def test_questions_that_can_not_be_meant_are_refused(policies: list[str], question: Question, code: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        explain(policies, question)
    assert caught.value.code == code
    assert caught.value.message.endswith(".")


@given(st.text(max_size=40), st.text(max_size=8), st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8)), max_size=3))
def test_any_question_has_an_answer_or_is_refused(rest: str, method: str, headers: list[tuple[str, str]]) -> None:
    try:
        found = explain([POLICY], Question(f"https://api.test/{rest}", method, headers))
    except BadRequestError as error:
        assert error.code == "bad_request"
        return
    assert found.decision in ("allow", "deny", "inject", "forward", "respond", "pass_unmatched")


@given(st.binary(max_size=100) | JSON.map(lambda value: json.dumps(value).encode()))
def test_the_native_functions_take_any_bytes(junk: bytes) -> None:
    for call in (
        lambda: hutch_native.explain(junk),
        lambda: hutch_native.check_settings(junk),
        lambda: hutch_native.compile_policy(b"{}", junk, "tenant", b"{}"),
        lambda: hutch_native.compile_policy(b"{}", None, "tenant", junk),
        lambda: hutch_native.compile_policy(b"{}", None, junk.decode("latin-1"), b"{}"),
    ):
        try:
            call()
        except hutch_native.PolicyError as error:
            assert len(error.args) == 3


# -- bounds ------------------------------------------------------------------------------------------

OPERATORS = {"mode": "allow-all", "block": ["evil.test"]}


def test_the_operators_policy_is_read_in_request_form(tmp_path: Path) -> None:
    assert operator_policy(load(Path(os.devnull), environment={})) is None
    file = tmp_path / "policy.json"
    file.write_text(json.dumps({"block": ["EVIL.test."], "mode": "allow-all"}))
    text = operator_policy(load(Path(os.devnull), environment={"HUTCH_EGRESS__POLICY": str(file)}))
    assert json.loads(text or "") == OPERATORS


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "should be JSON"),
        (b"{", "should be JSON"),
        (b"\xff\xfe\x00", ""),
        (b'{"allow": ["api*.x"]}', "/allow/0 has a `*`"),
        (b'{"allow": {"a.test": [{"forwardURL": "https://p.test"}]}}', "/allow/a.test/0"),
        (b" " * 2_000_000, "1048576 bytes"),
        (None, "can't be read"),
    ],
)
def test_an_operators_policy_that_is_none_is_refused_with_file_and_place(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    file = tmp_path / "policy.json"
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    for path, words in ((file, said), (tmp_path / "none.json", "No such file")):
        with pytest.raises(SettingsError) as refused:
            operator_policy(load(Path(os.devnull), environment={"HUTCH_EGRESS__POLICY": str(path)}))
        assert refused.value.code == "invalid_configuration"
        assert refused.value.message.startswith(f"`egress.policy`: {path} ")
        assert words in refused.value.message


def outside(policy: Policy, *bounds: dict[str, Any]) -> list[str]:
    settings = within(Boundaries(), [json.dumps(bound) for bound in bounds])
    found = outside_warnings(policy, check(policy, settings=settings))
    assert all(warning.code == "outside_bounds" and warning.message for warning in found)
    return [warning.pointer for warning in found]


def test_warnings_point_at_what_lies_outside_in_every_form() -> None:
    only = {"allow": ["a.test", "*.b.test"], "subnets": {"allow": ["203.0.113.0/25"]}}
    assert outside({"allow": ["a.test", "c.test", "*.test", "x.b.test"]}, only) == ["/allow/1", "/allow/2"]
    assert outside({"allow": {"a.test": [], "C.Test": []}}, only) == ["/allow/C.Test"]
    assert outside({"subnets": {"allow": ["203.0.113.0/24", "203.0.113.9", "203.0.113.200"]}}, only) == [
        "/subnets/allow/0",
        "/subnets/allow/2",
    ]
    legacy = {"mode": "custom", "allowedDomains": ["a.test", "c.test"], "allowedCIDRs": ["198.51.100.0/24"]}
    assert outside(legacy, only) == ["/allowedDomains/1", "/allowedCIDRs/0"]
    assert outside('"allow-all"', only) == outside({"mode": "allow-all"}, OPERATORS) == [""]
    assert outside('"deny-all"', only) == outside({}, only) == outside({"allow": ["a.test"]}, only) == []
    read = check({"allow": ["c.test"], "limits": {"upBytes": 5}}).read_back
    assert outside(read, only)[0].startswith("/hutch/policy/allow")
    # Two that bound it say it once.
    assert outside({"allow": ["c.test"]}, only, only) == ["/allow/0"]
    assert outside({"allow": ["bücher.test"]}, only) == [""]


@given(POLICIES, POLICIES)
def test_warnings_are_made_for_every_policy_that_is_one(policy: str, bound: str) -> None:
    try:
        text = check(bound, role="bounds").text
        checked = check(policy, settings=within(Boundaries(), [text]))
    except BadRequestError:
        return
    warnings = outside_warnings(policy, checked)
    assert bool(warnings) == bool(checked.outside)
    assert len(warnings) <= MAX_OUTSIDE_WARNINGS + 1
