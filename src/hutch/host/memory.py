"""Memory that was saved: what machines go on from, with all their processes.

    memory/SNAPSHOT_ID/   image/       what the isolation backend wrote
                          logs/        output of the commands that ran, as far as this host had it
                          record       `MemoryRecord`

A directory is made under another name and renamed when all of it is there, so that one that has its name is whole.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from hutch.host import kernel
from hutch.host.egress import Placeholder
from hutch.host.protocol import CommandRecord
from hutch.host.storage import check_room

PART = ".part"


class MemoryRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What belongs to saved memory. `fingerprint` names what can go on from it, `token` is what its agent proves itself with, and
    `placeholders` what its processes have in place of credentials."""

    fingerprint: str
    token: str
    vcpus: int
    memory_mb: int
    commands: list[CommandRecord]
    placeholders: list[Placeholder]


@dataclass(frozen=True, slots=True)
class Place:
    """Where saved memory lies, or is being written."""

    directory: Path

    @property
    def image(self) -> Path:
        return self.directory / "image"

    @property
    def logs(self) -> Path:
        return self.directory / "logs"


@dataclass(frozen=True, slots=True)
class Memory(Place):
    """Saved memory, to be gone on from."""

    record: MemoryRecord


class MemoryImages:
    """The saved memory of one instance. All methods block."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def recover(self, known: set[str]) -> None:
        """Remove what was not finished, or belongs to none of the `known` snapshots."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for entry in list(self._directory.iterdir()):
            if entry.name not in known:
                shutil.rmtree(entry)

    def begin(self, snapshot_id: str, most_bytes: int) -> Place:
        """Empty directories for at most so much memory, which is about to be saved; `finish` or `remove` it. Raises
        `UnavailableError` (`disk_full`)."""
        check_room(self._directory, most_bytes)
        place = Place(self._directory / (snapshot_id + PART))
        place.image.mkdir(parents=True, mode=0o700)
        place.logs.mkdir(mode=0o700)
        return place

    def finish(self, snapshot_id: str, record: MemoryRecord) -> int:
        """All of it is written; its size in bytes."""
        part = self._directory / (snapshot_id + PART)
        (part / "record").write_bytes(msgspec.msgpack.encode(record))
        part.rename(self._directory / snapshot_id)
        return sum(_blocks(self._directory / snapshot_id))

    def load(self, snapshot_id: str) -> Memory | None:
        """The memory of a snapshot, if it has any."""
        directory = self._directory / snapshot_id
        if not directory.is_dir():
            return None
        return Memory(directory, msgspec.msgpack.decode((directory / "record").read_bytes(), type=MemoryRecord))

    def sync(self) -> None:
        """Have everything survive a power cut."""
        kernel.sync_file_system(self._directory)

    def remove(self, snapshot_id: str) -> None:
        """Remove what there is of a snapshot's memory; those that go on from it already don't need it."""
        for name in (snapshot_id, snapshot_id + PART):
            if (self._directory / name).exists():
                shutil.rmtree(self._directory / name)


def _blocks(directory: Path) -> Iterator[int]:
    for entry in directory.rglob("*"):
        yield entry.stat().st_blocks * 512
