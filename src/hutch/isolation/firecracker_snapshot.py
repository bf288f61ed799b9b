"""A snapshot of a Firecracker machine, as a directory that only root enters.

state            devices and processors, as Firecracker wrote them (it checks a sum of its own)
memory           the guest's memory; a machine that goes on maps it, so it stays as it is for as long as one runs
disk             the writable disk of the same moment, where there is one
snapshot.json    what it needs: written last, so a directory without it is no snapshot
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from dataclasses import asdict, dataclass
from pathlib import Path

from hutch.host import kernel
from hutch.isolation import sparse
from hutch.isolation.firecracker_config import DISK, MEMORY, STATE, Version
from hutch.isolation.firecracker_jail import Placed

MANIFEST = "snapshot.json"
SCHEMA = 1
MAX_MANIFEST_BYTES = 64 * 1024
MAX_STATE_BYTES = 64 * 1024 * 1024
"""Devices and processors; a real one has some tens of KiB."""
_HOLES_TIMEOUT_S = 120.0


class BadSnapshot(OSError):
    """A directory is no snapshot that can be used; the text says why."""


@dataclass(frozen=True, slots=True)
class ReadOnlyFile:
    """A file that is no part of the snapshot, and has to be what it was: its name in the jail, where it is, and its size."""

    name: str
    source: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is known of a snapshot. `vsock` is the path that it has for its socket, `interfaces` are its network cards."""

    firecracker: str
    vcpus: int
    memory_bytes: int
    memory_file_bytes: int
    vsock: str
    interfaces: tuple[str, ...]
    images: tuple[ReadOnlyFile, ...]
    has_disk: bool
    state_sha256: str
    schema: int = SCHEMA

    def write(self, directory: Path) -> None:
        """Make the directory a snapshot. It has the other files already."""
        part = directory / f".{MANIFEST}.part"
        part.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        part.replace(directory / MANIFEST)

    @property
    def version(self) -> Version:
        major, minor, patch = (int(part) for part in self.firecracker.split("."))
        return Version(major, minor, patch)


def read(directory: Path) -> Snapshot:
    """The snapshot of a directory, after checks that it is whole. Raises `BadSnapshot`."""
    try:
        with (directory / MANIFEST).open("rb") as file:
            raw = json.loads(file.read(MAX_MANIFEST_BYTES))
        if raw["schema"] != SCHEMA:
            raise BadSnapshot(f"{directory} has a snapshot of another release of Hutch (schema {raw['schema']!r})")
        raw["images"] = tuple(ReadOnlyFile(**image) for image in raw["images"])
        raw["interfaces"] = tuple(str(name) for name in raw["interfaces"])
        found = Snapshot(**raw)
        _ = found.version
    except FileNotFoundError as error:
        raise BadSnapshot(f"{directory} has no snapshot: there is no {MANIFEST}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadSnapshot(f"{directory / MANIFEST} is broken: {error!r}") from error
    _check(directory, found)
    return found


def _check(directory: Path, found: Snapshot) -> None:
    try:
        state, memory = (directory / STATE).read_bytes(), (directory / MEMORY).stat()
        if found.has_disk:
            (directory / DISK).stat()
    except OSError as error:
        raise BadSnapshot(f"The snapshot in {directory} is not whole: {error}") from error
    if hashlib.sha256(state).hexdigest() != found.state_sha256:
        raise BadSnapshot(f"{directory / STATE} is not what was written: its checksum differs")
    if memory.st_size != found.memory_file_bytes:
        raise BadSnapshot(f"{directory / MEMORY} has {memory.st_size} bytes; it had {found.memory_file_bytes} when it was saved")
    for image in found.images:
        try:
            size = Path(image.source).stat().st_size
        except OSError as error:
            raise BadSnapshot(f"The snapshot needs the image {image.source}: {error.strerror}") from error
        if size != image.size_bytes:
            raise BadSnapshot(f"The image {image.source} is another one than when the snapshot was made: its size differs")


def saved(image: Path, memory_bytes: int) -> tuple[Placed, ...]:
    """What a machine of this size goes on from, that the host has in a directory of saved memory. Raises `BadSnapshot` for what
    would end it later, in the middle of something."""
    files = {name: image / name for name in (STATE, MEMORY)}
    try:
        sizes = {name: _size(file) for name, file in files.items()}
    except OSError as error:
        raise BadSnapshot(f"The saved memory in {image} is not whole: {error}") from error
    if sizes[STATE] > MAX_STATE_BYTES:
        raise BadSnapshot(f"{files[STATE]} has {sizes[STATE]} bytes, more than a machine's devices")
    if sizes[MEMORY] != memory_bytes:
        raise BadSnapshot(f"{files[MEMORY]} has {sizes[MEMORY]} bytes; the machine has {memory_bytes}")
    return tuple(Placed(name, file) for name, file in files.items())


def _size(file: Path) -> int:
    found = file.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(f"{file.name} is no file")
    return found.st_size


def settle(image: Path) -> None:
    """Have the files that Firecracker wrote hold no more room than they need: pages of zeros become holes. Raises `OSError`."""
    if (size := _size(image / STATE)) > MAX_STATE_BYTES:
        raise BadSnapshot(f"Firecracker wrote {size} bytes of its devices, more than they have")
    with contextlib.suppress(OSError):
        # A file system without holes keeps the zeros.
        kernel.run(["fallocate", "--dig-holes", "--", str(image / MEMORY)], timeout_s=_HOLES_TIMEOUT_S)


def merge(base: Path, changes: Path) -> int:
    """Write what a diff snapshot's memory file holds over a full one's; how many bytes that were. Raises `OSError`.

    The file of changes is sparse: what did not change is a hole.
    """
    written = 0
    with changes.open("rb") as source, base.open("r+b") as target:
        size = os.fstat(source.fileno()).st_size
        if size != os.fstat(target.fileno()).st_size:
            raise BadSnapshot(f"{changes} has {size} bytes, and {base} another number: they are not of the same machine")
        for position, block in sparse.blocks(source.fileno(), size):
            os.pwrite(target.fileno(), block, position)
            written += len(block)
    return written
