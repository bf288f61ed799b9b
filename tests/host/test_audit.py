"""Audit files: whatever a full disk or a kill leaves of a line, records come once, whole, and in the order of their numbers."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from hutch.host.audit import AuditStore
from hutch.host.gateway import AuditEvent


def events(*numbers: int, sandbox: str = "one") -> list[AuditEvent]:
    return [AuditEvent(number, sandbox, number, json.dumps({"seq": number}, separators=(",", ":"))) for number in numbers]


async def numbers(store: AuditStore) -> list[int]:
    records, _ = await store.read("one", 0, 100)
    return [json.loads(record)["seq"] for record in records]


class FullDisk(io.FileIO):
    """Takes a few bytes, and no more."""

    def write(self, data: Any) -> int:
        super().write(bytes(data)[:9])
        raise OSError(28, "No space left on device")


async def test_what_could_not_be_written_is_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = AuditStore(tmp_path)
    await store.store(events(1))
    with monkeypatch.context() as full:
        full.setattr(Path, "open", lambda path, *_, **__: FullDisk(path, "ab"))
        with pytest.raises(OSError, match="No space"):
            await store.store(events(2, 3))
    # What the gateway is told is stored is what it need not send again.
    assert store.position("one")[0] == 1
    await store.store(events(2, 3))
    await store.store(events(3, 4))
    assert await numbers(store) == [1, 2, 3, 4]
    assert (tmp_path / "one.jsonl").read_bytes() == b'{"seq":1}\n{"seq":2}\n{"seq":3}\n{"seq":4}\n'


@pytest.mark.parametrize("left", [b'{"seq":2,"re', b"{", b'{"seq":2}'])
async def test_half_a_line_that_a_kill_left_is_cut_off(tmp_path: Path, left: bytes) -> None:
    await AuditStore(tmp_path).store(events(1))
    with (tmp_path / "one.jsonl").open("ab") as file:
        file.write(left)
    store = AuditStore(tmp_path)
    assert store.position("one")[0] == 1
    await store.store(events(2, 3))
    assert await numbers(store) == [1, 2, 3]


async def test_half_a_line_alone_is_cut_off(tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_bytes(b'{"seq":1')
    store = AuditStore(tmp_path)
    await store.store(events(1))
    assert await numbers(store) == [1]
