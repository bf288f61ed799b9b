"""Sealed columns and private key files."""

from __future__ import annotations

import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.errors import InternalError
from hutch.storage.sealing import KeyFile, Sealer, load_or_create_key, read_or_create

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


def test_of_several_keys_the_last_one_seals_and_every_one_opens() -> None:
    old, new = b"o" * 32, b"n" * 32
    both = Sealer(old + new)
    assert both.open(Sealer(old).seal("x", "r"), "r") == "x"
    sealed = both.seal("y", "r")
    assert Sealer(new).open(sealed, "r") == "y"
    with pytest.raises(InternalError):
        Sealer(old).open(sealed, "r")


def test_a_key_that_is_appended_seals_from_then_on(tmp_path: Path) -> None:
    path = tmp_path / "secrets.key"
    sealer = Sealer(KeyFile(path))
    first = sealer.seal("x", "r")
    old = path.read_bytes()
    with path.open("ab") as file:
        file.write(b"n" * 32)
    second = sealer.seal("y", "r")
    assert Sealer(b"n" * 32).open(second, "r") == "y"
    assert [sealer.open(sealed, "r") for sealed in (first, second)] == ["x", "y"]
    # What another process has sealed with a key that is newer still.
    path.write_bytes(old + b"n" * 32 + b"m" * 32)
    assert sealer.open(Sealer(b"m" * 32).seal("z", "r"), "r") == "z"


@pytest.mark.parametrize("content", [b"", b"short", b"k" * 33, None])
def test_a_key_file_that_is_of_no_use_leaves_the_keys_of_before(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "secrets.key"
    sealer = Sealer(KeyFile(path))
    sealed, good = sealer.seal("x", "r"), path.read_bytes()
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    assert sealer.open(sealed, "r") == "x"
    assert sealer.open(sealer.seal("y", "r"), "r") == "y"
    path.write_bytes(good + b"n" * 32)
    assert Sealer(b"n" * 32).open(sealer.seal("z", "r"), "r") == "z"


@pytest.mark.parametrize("content", [b"", b"short"])
def test_a_server_does_not_start_with_what_is_no_key(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "secrets.key").write_bytes(content)
    with pytest.raises(InternalError) as refused:
        KeyFile(tmp_path / "secrets.key")
    assert refused.value.code == "sealing_key_unusable"
