"""A run's environment has secrets and tokens, and nothing that the gateway adds or the runner needs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.workers.environment import MAX_VALUE_BYTES, RESERVED, environment, is_token_name, too_large, wrong_secret
from hutch.workers.oauth import variable


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
