"""Bodies of requests."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.control.requests import (
    Body,
    CreateSandbox,
    CreateToken,
    ForkSandbox,
    KillCommand,
    MakeDirectory,
    PtyStart,
    ReadFile,
    StartCommand,
    UpdateSandbox,
    WriteStdin,
    clamp_size,
    parse,
)
from hutch.errors import BadRequestError

MODELS: list[type[Body]] = [
    CreateSandbox,
    CreateToken,
    ForkSandbox,
    KillCommand,
    MakeDirectory,
    PtyStart,
    ReadFile,
    StartCommand,
    UpdateSandbox,
    WriteStdin,
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)


@pytest.mark.parametrize("model", MODELS)
@given(data=st.data())
def test_whatever_comes_it_is_a_model_or_one_sentence(model: type[Body], data: st.DataObject) -> None:
    fields = st.dictionaries(st.sampled_from(list(model.model_fields)), JSON, max_size=6)
    raw = data.draw(st.binary(max_size=64) | (fields | JSON).map(lambda value: json.dumps(value).encode()))
    try:
        assert isinstance(parse(model, raw), model)
    except BadRequestError as error:
        assert error.code == "bad_request"
        assert error.message.startswith("Invalid request: ")
        assert error.message.endswith(".")
        assert len(error.message) < 2000


def test_null_is_absent_except_where_it_clears() -> None:
    assert parse(CreateSandbox, b'{"name": null, "ports": null}').model_fields_set == set()
    assert "keepLastSnapshots" in parse(UpdateSandbox, b'{"keepLastSnapshots": null}').model_fields_set
    assert parse(StartCommand, b"").command == ""


def test_types_are_not_guessed() -> None:
    for raw in (b'{"timeout": "5000"}', b'{"timeout": 5000.5}', b'{"persistent": 1}', b'{"ports": {"0": 3000}}'):
        with pytest.raises(BadRequestError):
            parse(CreateSandbox, raw)


def test_the_environment_of_a_terminal_drops_what_is_no_variable() -> None:
    start = PtyStart(type="start", command="sh", env=["A=1", "B=x=y", "nothing", "=z", "C="])
    assert start.environment() == {"A": "1", "B": "x=y", "C": ""}


@given(st.integers())
def test_terminal_sizes_are_clamped(value: int) -> None:
    assert 1 <= clamp_size(value, 80) <= 10_000
