"""The stream of a machine that began with a template, written by the host from outside.

QEMU's own would go through all pages while the machine stands still, and so give it a page of its own file for each that nobody
ever used. Here what is the template's is written before, while it runs, and only pages that are the machine's own, which are
those that it wrote to, while it stands still. Devices are told by QEMU. What comes out is what QEMU
would have written (`QEVM`, version 3), read like any other.

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

from hutch.isolation import sparse
from hutch.isolation.qemu_command import MEMORY

PAGE_BYTES = 4096
_BLOCK_PAGES = 256
_HEAD = b"QEVM" + struct.pack(">I", 3)
_CONFIGURATION = b"\x07" + struct.pack(">I", 7) + b"microvm"
_START, _END, _FOOTER, _DESCRIPTION = 1, 2, 0x7E, b"\x06" + struct.pack(">I", 2) + b"{}"
_SIZE, _PAGE, _OVER, _SAME_BLOCK = 0x04, 0x08, 0x10, 0x20
_SECTION = struct.pack(">I", 2)
"""Any number that no section of a device has: they begin where those of memory end."""
_NAME = bytes([len(MEMORY)]) + MEMORY.encode()
_MAPPED = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p ([0-9a-f]+) \S+ \d+\s+/memfd:hutch-template \(deleted\)")
_ENTRY_BYTES = 8
# Of the highest byte of an entry: present or swapped, and not a file's.
_OWN = bytes(1 if entry & 0xC0 and not entry & 0x20 else 0 for entry in range(256))
_RUN = re.compile(b"\x01+")


@dataclass(frozen=True, slots=True)
class Mapping:
    """Where a process has its template: `parts` are ranges of addresses, in the order of the file from its beginning."""

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


def mapping(pid: int, memory_bytes: int) -> Mapping | None:
    """How a process has all of its machine's memory of a template; None where it did not begin with one. Raises `OSError`."""
    parts, place = [], 0
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if found := _MAPPED.fullmatch(line):
            start, end, offset = (int(number, 16) for number in found.groups())
            if offset != place:
                return None
            parts.append((start, end))
            place += end - start
    return Mapping(pid, tuple(parts)) if parts and place == memory_bytes else None


class Stream:
    """A stream that is being written at the end of `sink`, a descriptor of a file. Blocks. Raises `OSError`."""

    def __init__(self, sink: int) -> None:
        self._sink = sink
        self._named = False

    def template(self, file: int, memory_bytes: int) -> None:
        """The beginning: everything of a template's file that is not zero, for at most a machine's memory."""
        section = _SECTION + b"\x03ram" + struct.pack(">II", 0, 4)
        blocks = struct.pack(">Q", memory_bytes | _SIZE) + _NAME + struct.pack(">Q", memory_bytes)
        self._write(_HEAD + _CONFIGURATION + bytes([_START]) + section + blocks + self._over())
        self._write(bytes([_END]) + _SECTION)
        for place, block in sparse.blocks(file, memory_bytes):
            self._pages(place, block, zeros=False)

    def own(self, mapped: Mapping) -> None:
        """The pages that a machine, which stands still, has of its own."""
        with open(f"/proc/{mapped.pid}/mem", "rb", buffering=0) as memory:
            for address, place, size in mapped.own():
                done = 0
                while done < size:
                    block = os.pread(memory.fileno(), min(_BLOCK_PAGES * PAGE_BYTES, size - done), address + done)
                    if not block or len(block) % PAGE_BYTES:
                        raise OSError("a page of the machine can't be read")
                    self._pages(place + done, block, zeros=True)
                    done += len(block)

    def devices(self, told: bytes) -> None:
        """What QEMU told of the rest, a stream of its own without memory; the end."""
        if not told.startswith(_HEAD):
            raise OSError("QEMU told of its devices in a form that is none")
        self._write(self._over() + told.removeprefix(_HEAD) + _DESCRIPTION)

    def _pages(self, place: int, block: bytes, *, zeros: bool) -> None:
        pieces = []
        for start in range(0, len(block), PAGE_BYTES):
            page = block[start : start + PAGE_BYTES]
            if zeros or page.strip(b"\0"):
                flags = _PAGE | (_SAME_BLOCK if self._named else 0)
                pieces.append(struct.pack(">Q", place + start | flags))
                if not self._named:
                    pieces.append(_NAME)
                    self._named = True
                pieces.append(page)
        self._write(b"".join(pieces))

    @staticmethod
    def _over() -> bytes:
        return struct.pack(">Q", _OVER) + bytes([_FOOTER]) + _SECTION

    def _write(self, block: bytes) -> None:
        view = memoryview(block)
        while view:
            view = view[os.write(self._sink, view) :]
