"""The shape of network policies."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.control.network_policy import PolicyInvalid, check_policy, response_form

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(
    [
        "mode",
        "allow",
        "subnets",
        "deny",
        "allowedDomains",
        "allowedCIDRs",
        "deniedCIDRs",
        "injectionRules",
        "domain",
        "headers",
        "match",
        "path",
        "method",
        "queryString",
        "transform",
        "forwardURL",
        "response",
        "statusCode",
        "body",
        "contentType",
        "exact",
        "regex",
        "custom",
        "a.com",
        "*",
    ]
)
POLICY_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 600) | KEYS | st.sampled_from(["10.0.0.0/8", "http://x.test/", "allow-all"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=25,
)


@given(st.dictionaries(st.text(max_size=10) | KEYS, JSON | POLICY_LIKE, max_size=5))
def test_any_object_is_refused_or_has_a_response_form_that_clients_take(policy: dict[str, Any]) -> None:
    try:
        checked = check_policy(policy)
    except PolicyInvalid as error:
        assert str(error)
        return
    form = response_form(checked)
    assert form["mode"] in ("allow-all", "deny-all", "custom")
    assert set(form) <= {
        "mode",
        "allowedDomains",
        "allowedCIDRs",
        "deniedCIDRs",
        "injectionRules",
        "forwardRules",
        "responseRules",
    }
    assert check_policy(checked) == checked


@given(st.text(alphabet="abcdefghij0123456789", min_size=12))
def test_values_of_headers_never_come_back(secret: str) -> None:
    rules = {"a.com": [{"transform": [{"headers": {"authorization": secret}}]}]}
    assert secret not in str(response_form(check_policy({"allow": rules})))
    legacy = {"mode": "custom", "injectionRules": [{"domain": "a.com", "headers": {"x": secret}}]}
    assert secret not in str(response_form(check_policy(legacy)))


@pytest.mark.parametrize(
    ("policy", "form"),
    [
        ({"mode": "allow-all"}, {"mode": "allow-all"}),
        ({"mode": "deny-all", "allow": ["x"]}, {"mode": "deny-all"}),
        ({}, {"mode": "custom"}),
        ({"allow": {}}, {"mode": "custom"}),
        ({"allow": ["b.com", "a.com"]}, {"mode": "custom", "allowedDomains": ["b.com", "a.com"]}),
        ({"allow": {"*": []}}, {"mode": "custom", "allowedDomains": ["*"]}),
        (
            {"subnets": {"allow": ["10.0.0.0/8"], "deny": ["::/0"]}},
            {"mode": "custom", "allowedCIDRs": ["10.0.0.0/8"], "deniedCIDRs": ["::/0"]},
        ),
        (
            {
                "allow": {
                    "a.com": [{"match": {"method": ["GET"]}, "forwardURL": "http://p.test/x"}, {"response": {"statusCode": 403}}]
                }
            },
            {
                "mode": "custom",
                "allowedDomains": ["a.com"],
                "forwardRules": [{"domain": "a.com", "forwardURL": "http://p.test/x", "match": {"method": ["GET"]}}],
                "responseRules": [{"domain": "a.com", "statusCode": 403}],
            },
        ),
        (
            {"mode": "default-deny", "allowedDomains": ["a.com"], "injectionRules": [{"domain": "a.com", "headers": {"X": "1"}}]},
            {"mode": "custom", "allowedDomains": ["a.com"], "injectionRules": [{"domain": "a.com", "headerNames": ["X"]}]},
        ),
    ],
)
def test_the_response_form(policy: dict[str, Any], form: dict[str, Any]) -> None:
    assert response_form(check_policy(policy)) == form


def rule(**content: object) -> dict[str, Any]:
    return {"allow": {"a.com": [content]}}


@pytest.mark.parametrize(
    "policy",
    [
        {"mode": "open"},
        {"mode": 5},
        {"allow": "a.com"},
        {"allow": ["api*.x"]},
        {"allow": [""]},
        {"allow": ["a..b"]},
        {"allow": ["a" * 300]},
        {"allow": ["a.com"] * 1001},
        {"subnets": ["10.0.0.0/8"]},
        {"subnets": {"allow": ["10.0.0.0/33"]}},
        {"subnets": {"deny": [5]}},
        rule(),
        rule(transform=[], forwardURL="http://x.test"),
        rule(forwardURL="ftp://x.test"),
        rule(forwardURL="http://u:p@x.test"),
        rule(forwardURL="http://x.test/?q"),
        rule(forwardURL="http://[::1"),
        rule(forwardURL="http://x.test:99999"),
        rule(response={"statusCode": 99}),
        rule(response={"statusCode": True}),
        rule(response={"statusCode": 200, "body": "x"}),
        rule(response={"statusCode": 204, "body": "x", "contentType": "text/plain"}),
        rule(response={"statusCode": 200, "headers": {"A": "1", "a": "2"}}),
        rule(response={"statusCode": 200, "headers": {"Connection": "x"}}),
        rule(transform=[{"headers": {"bad name": "x"}}]),
        rule(transform=[{"headers": {"x": "a\r\nb"}}]),
        rule(transform=[{"headers": {"x": 5}}]),
        rule(transform=[], match={"path": {}}),
        rule(transform=[], match={"path": {"exact": "a", "regex": "b"}}),
        rule(transform=[], match={"method": "GET"}),
        rule(transform=[], match={"headers": [{"key": {"exact": 5}}]}),
    ],
)
def test_invalid_policies_are_refused(policy: dict[str, Any]) -> None:
    with pytest.raises(PolicyInvalid):
        check_policy(policy)
