"""A run's environment has secrets and tokens, and nothing that the gateway adds or the runner needs."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.egress.policy import Explanation, Question, check, explain
from hutch.workers.destinations import Destinations
from hutch.workers.environment import (
    MAX_VALUE_BYTES,
    RESERVED,
    Placed,
    environment,
    is_token_name,
    too_large,
    wrong_secret,
)
from hutch.workers.environment import policy as policy_of
from hutch.workers.oauth import variable
from tests.workers.declared import credential, parsed


def test_credentials_are_not_in_it_and_tokens_are() -> None:
    token = variable("github-oauth")
    secrets = {"A": "1", "LINEAR": "secret", token: "stale"}
    assert environment(secrets, {"LINEAR"}, {token: "fresh"}) == {"A": "1", token: "fresh"}


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_variables_of_the_runner_are_refused_and_never_set(name: str) -> None:
    assert wrong_secret(name, "x") is not None
    assert environment({name: "x"}, (), {}) == {}


@pytest.mark.parametrize("name", ["A", "a.b", "MY-NAME", "ключ", "NOTION_API_TOKEN", "OAUTH_67_ACCESS_TOKEN"])
def test_good_names(name: str) -> None:
    assert wrong_secret(name, "value\nwith lines") is None


@pytest.mark.parametrize("name", ["", "A=B", "A B", "A\n", "A\x00", "a" * 257])
def test_bad_names(name: str) -> None:
    assert wrong_secret(name, "x") is not None


def test_a_value_is_bounded_and_never_shown() -> None:
    for value in ("a" * (MAX_VALUE_BYTES + 1), "é" * MAX_VALUE_BYTES, "a\x00b"):
        wrong = wrong_secret("A", value)
        assert wrong is not None
        assert value[:10] not in wrong
    assert not too_large({"A": "1"})
    assert too_large({f"A{number}": "a" * MAX_VALUE_BYTES for number in range(17)})


@given(st.text(max_size=20))
def test_the_name_of_a_token_is_recognised(name: str) -> None:
    assert is_token_name(variable(name))


def test_what_is_good_starts_a_program() -> None:
    made = environment({"ключ": "é\n", "MY-NAME": "a" * MAX_VALUE_BYTES}, (), {})
    code = "import os; print(len(os.environ['MY-NAME']), os.environ['ключ'] == 'é\\n')"
    ran = subprocess.run([sys.executable, "-X", "utf8", "-c", code], env=os.environ | made, capture_output=True, check=True)
    assert ran.stdout.split() == [b"65536", b"True"]


# -- the network policy ------------------------------------------------------------------------------

PLACED = Placed(variable="OAUTH_61_ACCESS_TOKEN", credential="worker-oauth-1", token="t0ken", hosts=("*.api.test", "other.test"))


def asked(policy: Any, url: str) -> Explanation:
    return explain([policy], Question(url))


def test_without_a_declaration_everything_is_open_and_credentials_are_added() -> None:
    manifest = parsed({"credentials": [credential("KEY", "api.test")]})
    policy = policy_of({"KEY": "v"}, manifest)
    assert asked(policy, "https://api.test/").decision == "inject"
    assert asked(policy, "https://any.test/").decision == "allow"


def test_what_is_declared_is_open_and_nothing_else() -> None:
    manifest = parsed({"credentials": [credential("KEY", "*.api.test")]})
    allowed = Destinations(allow=("*.api.test", "a.api.test", "plain.test"))
    policy = policy_of({"KEY": "v"}, manifest, allowed)
    # A declared name that is narrower than a credential's rule has its header all the same.
    for name in ("a.api.test", "b.api.test"):
        assert asked(policy, f"https://{name}/").injected == ("authorization",)
    assert asked(policy, "https://plain.test/").injected == ()
    assert asked(policy, "https://any.test/").decision == "deny"
    assert policy_of({}, parsed({}), Destinations()) == {"mode": "deny-all"}


def test_rules_beyond_what_is_declared_open_nothing() -> None:
    manifest = parsed({"credentials": [credential("KEY", "*.api.test")]})
    policy = policy_of({"KEY": "v"}, manifest, Destinations(allow=("a.api.test",)), [PLACED])
    assert set(policy["allow"]) == {"a.api.test"}
    assert asked(policy, "https://b.api.test/").decision == "deny"
    assert asked(policy, "https://other.test/").decision == "deny"
    # … and where part of a rule is declared, it holds there.
    headers = policy["allow"]["a.api.test"][0]["transform"][0]["headers"]
    assert headers["x-worker-token-0"] == {"credential": "worker-oauth-1", "placeholder": "OAUTH_61_ACCESS_TOKEN"}
    assert "authorization" in headers


def test_a_policy_has_no_token_but_the_name_of_one() -> None:
    policy = policy_of({}, parsed({}), placed=[PLACED])
    found = check(policy)
    assert found.placeholders == (("OAUTH_61_ACCESS_TOKEN", "worker-oauth-1"),)
    assert "t0ken" not in found.text
    assert "t0ken" not in repr(PLACED)


def test_two_tokens_at_one_host_and_a_credential_too() -> None:
    manifest = parsed({"credentials": [credential("KEY", "other.test")]})
    second = msgspec.structs.replace(PLACED, variable="OAUTH_62_ACCESS_TOKEN", credential="worker-oauth-2")
    policy = policy_of({"KEY": "v"}, manifest, placed=[PLACED, second])
    headers = policy["allow"]["other.test"][0]["transform"][0]["headers"]
    assert set(headers) == {"authorization", "x-worker-token-0", "x-worker-token-1"}
    assert len(check(policy).placeholders) == 2
