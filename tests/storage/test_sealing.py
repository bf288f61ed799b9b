"""Sealed columns and private key files."""

from __future__ import annotations

import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.errors import InternalError
from hutch.storage.sealing import Sealer, load_or_create_key, read_or_create

SEALER = Sealer(b"k" * 32)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON, st.text(alphabet="abc_", min_size=1))
def test_what_is_sealed_opens_again_for_its_row_only(value: object, row: str) -> None:
    sealed = SEALER.seal(value, row)
    assert SEALER.open(sealed, row) == value
    with pytest.raises(InternalError):
        SEALER.open(sealed, row + "x")


@given(st.binary(max_size=64))
def test_junk_does_not_open(junk: bytes) -> None:
    with pytest.raises(InternalError):
        SEALER.open(junk, "row")


def test_two_seals_of_one_value_differ() -> None:
    assert SEALER.seal("x", "r") != SEALER.seal("x", "r")


def test_a_key_is_made_once_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "key"
    key = load_or_create_key(path)
    assert len(key) == 32
    assert load_or_create_key(path) == key
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["key"]


def test_a_race_for_the_first_key_has_one_winner(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda _: read_or_create(tmp_path / "key", lambda: secrets.token_bytes(32)), range(32)))
    assert len(set(keys)) == 1
