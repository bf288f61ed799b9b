"""Unix sockets whose paths are longer than an address may be, and those at the bound."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from hutch.wire import Hello, Role, connect_unix, serve_unix
from hutch.wire.connection import Stream
from hutch.wire.sockets import MAX_ADDRESS_BYTES, address, bind_unix

HELLO = Hello(version=1, role=Role.HOST, window=65536, max_streams=8)


def of_length(directory: Path, size: int, name: str = "s.sock") -> Path:
    """A path of exactly `size` bytes below `directory`, in directories that are made."""
    left = size - len(os.fsencode(directory)) - len(f"//{name}")
    assert left > 0
    path = directory
    while left > 255:
        path, left = path / ("d" * 200), left - 201
    path /= "d" * left
    path.mkdir(parents=True)
    assert len(os.fsencode(path / name)) == size
    return path / name


@pytest.mark.parametrize("size", [MAX_ADDRESS_BYTES - 1, MAX_ADDRESS_BYTES, MAX_ADDRESS_BYTES + 1, 300, 2000])
async def test_a_path_may_have_any_length(tmp_path_factory: pytest.TempPathFactory, size: int) -> None:
    # Not the test's own directory, whose name is long.
    path = of_length(tmp_path_factory.mktemp("s"), size)

    async def answer(stream: Stream) -> None:
        stream.send_reply({"size": size})

    server = await serve_unix(path, HELLO, answer, mode=0o660)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    connection = await connect_unix(path, HELLO)
    assert await connection.call("any", {}) == {"size": size}
    connection.close("done")
    server.close()
    # One for the connection and one for its other end, and none for the directory.
    assert len(list(Path("/proc/self/fd").iterdir())) <= open_before + 2


def test_what_fits_is_taken_as_it_is_and_needs_no_proc(tmp_path_factory: pytest.TempPathFactory) -> None:
    base = tmp_path_factory.mktemp("s")
    with address(of_length(base, MAX_ADDRESS_BYTES)) as short:
        assert not short.startswith("/proc/")
    with address(of_length(base / "more", MAX_ADDRESS_BYTES + 1)) as short:
        assert len(os.fsencode(short)) < MAX_ADDRESS_BYTES


async def test_what_is_missing_is_said_to_be_whatever_its_length(tmp_path: Path) -> None:
    for path in (tmp_path / "none" / "s.sock", tmp_path / ("d" * 200) / "s.sock"):
        with pytest.raises(FileNotFoundError):
            await connect_unix(path, HELLO)
        with pytest.raises(FileNotFoundError):
            bind_unix(path)
