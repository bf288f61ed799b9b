"""JSON that means one thing."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.control import strict_json

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=10,
)


@given(VALUES, st.booleans())
def test_what_is_written_is_read(value: object, escaped: bool) -> None:
    assert strict_json.load(json.dumps(value, ensure_ascii=escaped).encode()) == value


@given(st.binary(max_size=64) | st.text('{}[]"\\ud8:,1e9-NaInfty ', max_size=64).map(str.encode))
def test_whatever_comes_it_is_a_value_or_an_error_and_a_value_is_one_for_every_parser(raw: bytes) -> None:
    try:
        value = strict_json.load(raw)
    except ValueError:
        return
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    assert json.loads(raw) == value


@pytest.mark.parametrize("unique", [True, False])
def test_one_name_twice_among_many_is_found_at_once(unique: bool) -> None:
    names = [str(number) for number in range(100_000)]
    raw = "{" + ",".join(f'"{name}":1' for name in ["0" if not unique else "x", *names]) + "}"
    if unique:
        assert len(strict_json.load(raw.encode())) == len(names) + 1
    else:
        with pytest.raises(ValueError, match="has the name '0' more than once in an object"):
            strict_json.load(raw.encode())


def test_a_long_name_or_number_is_cut_in_the_message() -> None:
    for raw in (b'{"%s":1,"%s":1}' % (b"n" * 9999, b"n" * 9999), b"9" * 9999, b"1e" + b"9" * 9999):
        with pytest.raises(ValueError, match="has the") as caught:
            strict_json.load(raw)
        assert len(str(caught.value)) < 200
