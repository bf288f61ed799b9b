"""Output of commands: stored up to a cap, every attached reader gets everything, memory stays bounded."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hutch.host.logs import HEADER, RECENT_BYTES, STDERR, Output, Reader

Piece = tuple[int, bytes]
PIECES = st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(min_size=1, max_size=600)), max_size=40)


def by_channel(pieces: list[Piece]) -> dict[int, bytes]:
    return {channel: b"".join(data for own, data in pieces if own == channel) for channel in (1, 2)}


async def read_all(reader: Reader) -> list[Piece]:
    pieces = []
    while (piece := await reader.next()) is not None:
        pieces.append(piece)
    reader.close()
    return pieces


async def written(path: Path, pieces: list[Piece], cap: int = 1 << 20) -> Output:
    output = Output(path, cap)
    for channel, data in pieces:
        await output.append(channel, data)
    return output


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(pieces=PIECES)
async def test_a_late_reader_gets_everything_in_order(tmp_path: Path, pieces: list[Piece]) -> None:
    path = tmp_path / "log"
    path.unlink(missing_ok=True)
    output = await written(path, pieces)
    output.close()
    found = await read_all(output.reader())
    assert b"".join(data for _, data in found) == b"".join(data for _, data in pieces)
    assert by_channel(found) == by_channel(pieces)
    assert output.end == sum(len(data) for _, data in pieces)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=60)
@given(pieces=PIECES, cap=st.integers(1, 3000), turns=st.lists(st.integers(0, 5), min_size=1, max_size=40))
async def test_an_attached_reader_gets_everything_past_the_cap(
    tmp_path: Path, pieces: list[Piece], cap: int, turns: list[int]
) -> None:
    path = tmp_path / "log"
    path.unlink(missing_ok=True)
    output = Output(path, cap)
    reader = output.reader()
    found: list[Piece] = []

    async def produce() -> None:
        for channel, data in pieces:
            await output.append(channel, data)
        output.close()

    producing = asyncio.ensure_future(produce())
    for turn in turns:
        for _ in range(turn):
            await asyncio.sleep(0)
    while (piece := await reader.next()) is not None:
        found.append(piece)
    await producing
    reader.close()
    assert b"".join(data for _, data in found) == b"".join(data for _, data in pieces)
    assert not path.exists() or path.stat().st_size <= cap


async def test_a_late_reader_is_told_what_was_not_stored(tmp_path: Path) -> None:
    output = await written(tmp_path / "log", [(1, b"x" * 1000)] * 10, cap=2500)
    output.close()
    found = await read_all(output.reader())
    assert b"".join(data for channel, data in found if channel == 1) == b"x" * (2500 - 3 * HEADER.size)
    assert [data for channel, data in found if channel == STDERR] == [
        b"\n[hutch: output beyond the 2500 bytes that are stored was dropped]\n"
    ]


async def test_the_producer_waits_for_the_slowest_reader_past_the_cap(tmp_path: Path) -> None:
    output = Output(tmp_path / "log", 1024)
    reader, fast = output.reader(), output.reader()
    chunk, total = b"y" * 65536, 4 * RECENT_BYTES

    async def produce() -> None:
        for _ in range(total // len(chunk)):
            await output.append(1, chunk)
        output.close()

    producing = asyncio.ensure_future(produce())
    following = asyncio.ensure_future(read_all(fast))
    for _ in range(1000):
        await asyncio.sleep(0)
    assert not producing.done()
    assert output.end <= RECENT_BYTES + 4 * len(chunk)
    slow = await read_all(reader)
    await producing
    for found in (slow, await following):
        assert sum(len(data) for _, data in found) == total


async def test_a_reader_that_leaves_frees_the_producer(tmp_path: Path) -> None:
    output = Output(tmp_path / "log", 1024)
    reader = output.reader()
    producing = asyncio.ensure_future(output.append(1, b"z" * (3 * RECENT_BYTES)))
    more = asyncio.ensure_future(output.append(1, b"z" * 10))
    await asyncio.sleep(0)
    reader.close()
    await asyncio.wait_for(asyncio.gather(producing, more), 5)
    assert not output.wanted


async def test_single_bytes_do_not_grow_memory(tmp_path: Path) -> None:
    output = Output(tmp_path / "log", 1 << 20)
    reader = output.reader()
    for _ in range(100_000):
        await output.append(1, b"b")
    assert len(output._recent) <= RECENT_BYTES // 100
    output.close()
    found = await read_all(reader)
    assert b"".join(data for _, data in found) == b"b" * 100_000
    assert len(found) < 20_000


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(pieces=PIECES, cut=st.integers(0, 30))
async def test_a_file_that_was_cut_off_is_recovered_at_a_whole_piece(tmp_path: Path, pieces: list[Piece], cut: int) -> None:
    path = tmp_path / "log"
    path.unlink(missing_ok=True)
    (await written(path, pieces)).close()
    if path.exists():
        with path.open("r+b") as file:
            file.truncate(max(0, path.stat().st_size - cut))
    output = Output.recover(path, 1 << 20)
    whole, end = [], 0
    left = path.stat().st_size if path.exists() else 0
    for channel, data in pieces:
        if end + HEADER.size + len(data) > left:
            break
        whole.append((channel, data))
        end += HEADER.size + len(data)
    assert left == end
    await output.append(2, b"more")
    output.close()
    found = await read_all(output.reader())
    assert by_channel(found) == by_channel([*whole, (2, b"more")])


async def test_a_full_disk_ends_storing_and_not_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = await written(tmp_path / "log", [(1, b"kept")])

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hutch.host.logs.os.writev", full)
    reader = output.reader()
    await output.append(1, b"lost to late readers")
    output.close()
    assert b"".join(data for _, data in await read_all(reader)) == b"keptlost to late readers"
    late = await read_all(output.reader())
    assert late[0] == (1, b"kept")
    assert b"dropped" in late[1][1]
