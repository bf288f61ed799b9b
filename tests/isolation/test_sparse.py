"""Files with holes: what is copied is what was written, and no more."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hutch.isolation import sparse

MIB = 1024 * 1024


def test_a_copy_has_the_data_and_the_holes(tmp_path: Path) -> None:
    with (tmp_path / "source").open("w+b") as source, (tmp_path / "sink").open("w+b") as sink:
        os.pwrite(source.fileno(), b"first", 0)
        os.pwrite(source.fileno(), os.urandom(3 * MIB), 10 * MIB)
        source.truncate(64 * MIB)
        assert list(sparse.pieces(source.fileno(), 64 * MIB)) == [(0, 4096), (10 * MIB, 13 * MIB)]
        # Not beyond what is asked for.
        assert list(sparse.pieces(source.fileno(), 11 * MIB)) == [(0, 4096), (10 * MIB, 11 * MIB)]
        assert sparse.copy(source.fileno(), sink.fileno()) == 4096 + 3 * MIB
        assert (tmp_path / "sink").read_bytes() == (tmp_path / "source").read_bytes()
        assert os.fstat(sink.fileno()).st_blocks * 512 < 4 * MIB


def test_nothing_is_a_copy_of_nothing(tmp_path: Path) -> None:
    with (tmp_path / "source").open("w+b") as source, (tmp_path / "sink").open("w+b") as sink:
        assert sparse.copy(source.fileno(), sink.fileno()) == 0
        source.truncate(MIB)
        assert sparse.copy(source.fileno(), sink.fileno()) == 0
        assert (tmp_path / "sink").stat().st_size == MIB


def test_a_file_that_becomes_shorter_is_an_error(tmp_path: Path) -> None:
    with (tmp_path / "source").open("w+b") as source:
        source.write(os.urandom(3 * MIB))
        source.flush()
        blocks = sparse.blocks(source.fileno(), 3 * MIB)
        next(blocks)
        source.truncate(MIB)
        with pytest.raises(OSError, match="became shorter"):
            list(blocks)
