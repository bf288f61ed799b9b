"""Memory of a machine that has it in a file which others have too, saved by the host from outside.

QEMU's own way would go through all pages while the machine stands still. Here what is the file's is copied before, while it runs,
and only pages that are the machine's own, which are those that it wrote to, are put over that while it stands still. Devices are
told by QEMU. So there are two files: the memory, byte for byte, with holes where it is zero, which machines that go on map in
their turn, and a stream of QEMU's form (`QEVM`, version 3) with everything else.

A page that the guest wrote is one that is not the file's (`/proc/PID/pagemap`). What QEMU has mapped it may have changed: it
gets its own memory, garbage or not, and never more than a machine of its size has.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hutch.isolation.qemu_command import MEMORY

PAGE_BYTES = 4096
_BLOCK_BYTES = 1024 * 1024
_HEAD = b"QEVM" + struct.pack(">I", 3)
_CONFIGURATION = b"\x07" + struct.pack(">I", 7) + b"microvm"
_START, _END, _FOOTER, _DESCRIPTION = 1, 2, 0x7E, b"\x06" + struct.pack(">I", 2) + b"{}"
_SIZE, _OVER = 0x04, 0x10
_SECTION = struct.pack(">I", 2)
"""Any number that no section of a device has: they begin where those of memory end."""
_NAME = bytes([len(MEMORY)]) + MEMORY.encode()
_OVER_NOW = struct.pack(">Q", _OVER) + bytes([_FOOTER]) + _SECTION
_MAPPED = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p ([0-9a-f]+) \S+ (\d+)\s+(.*)")
_TEMPLATE = "/memfd:hutch-template (deleted)"
_ENTRY_BYTES = 8
# Of the highest byte of an entry: present or swapped, and not a file's.
_OWN = bytes(1 if entry & 0xC0 and not entry & 0x20 else 0 for entry in range(256))
_RUN = re.compile(b"\x01+")


@dataclass(frozen=True, slots=True)
class FileId:
    """What tells a file from all others, for as long as it is there."""

    device: int
    inode: int

    @classmethod
    def of(cls, descriptor: int) -> FileId:
        found = os.fstat(descriptor)
        return cls(found.st_dev, found.st_ino)


@dataclass(frozen=True, slots=True)
class Mapping:
    """Where a process has the file of its memory: `parts` are ranges of addresses, in the order of the file, from its
    beginning."""

    pid: int
    parts: tuple[tuple[int, int], ...]

    @contextlib.contextmanager
    def file(self) -> Iterator[int]:
        """A descriptor of the file. Raises `OSError`."""
        start, end = self.parts[0]
        descriptor = os.open(f"/proc/{self.pid}/map_files/{start:x}-{end:x}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError("what is mapped is no file")
            yield descriptor
        finally:
            os.close(descriptor)

    def own(self) -> Iterator[tuple[int, int, int]]:
        """Runs of pages that are the machine's own: address, place in its memory, length in bytes. Raises `OSError`."""
        place = 0
        with open(f"/proc/{self.pid}/pagemap", "rb", buffering=0) as table:
            for start, end in self.parts:
                entries = os.pread(table.fileno(), (end - start) // PAGE_BYTES * _ENTRY_BYTES, start // PAGE_BYTES * _ENTRY_BYTES)
                for run in _RUN.finditer(entries[7::8].translate(_OWN)):
                    first, last = run.span()
                    yield start + first * PAGE_BYTES, place + first * PAGE_BYTES, (last - first) * PAGE_BYTES
                place += end - start


def mapping(pid: int, memory_bytes: int, file: FileId | None = None) -> Mapping | None:
    """How a process has all of its machine's memory of a file: of `file`, or of a template; None where it has not. Raises
    `OSError`."""
    parts, place = [], 0
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        found = _MAPPED.fullmatch(line)
        # The device is another one here than that which files tell, on some file systems.
        if found is None or (found[5] != _TEMPLATE if file is None else int(found[4]) != file.inode):
            continue
        start, end, offset = (int(found[number], 16) for number in (1, 2, 3))
        if offset != place:
            return None
        parts.append((start, end))
        place += end - start
    if not parts or place != memory_bytes:
        return None
    mapped = Mapping(pid, tuple(parts))
    if file is not None:
        with mapped.file() as descriptor:
            if FileId.of(descriptor) != file:
                return None
    return mapped


def header(memory_bytes: int) -> bytes:
    """How a stream begins: a machine with so much memory, of which nothing is in it."""
    section = _SECTION + b"\x03ram" + struct.pack(">II", 0, 4)
    blocks = struct.pack(">Q", memory_bytes | _SIZE) + _NAME + struct.pack(">Q", memory_bytes)
    return _HEAD + _CONFIGURATION + bytes([_START]) + section + blocks + _OVER_NOW + bytes([_END]) + _SECTION + _OVER_NOW


def devices(told: bytes) -> bytes:
    """What QEMU told of the rest, a stream of its own without memory, as the end of one. Raises `OSError`."""
    if not told.startswith(_HEAD):
        raise OSError("QEMU told of its devices in a form that is none")
    return told.removeprefix(_HEAD) + _DESCRIPTION


def keep_own(mapped: Mapping, sink: int) -> None:
    """Put the pages that a machine, which stands still, has of its own over what a file has in their places. Raises `OSError`."""
    with open(f"/proc/{mapped.pid}/mem", "rb", buffering=0) as memory:
        for address, place, size in mapped.own():
            done = 0
            while done < size:
                block = os.pread(memory.fileno(), min(_BLOCK_BYTES, size - done), address + done)
                if not block or len(block) % PAGE_BYTES:
                    raise OSError("a page of the machine can't be read")
                written = 0
                while written < len(block):
                    written += os.pwrite(sink, block[written:], place + done + written)
                done += len(block)
