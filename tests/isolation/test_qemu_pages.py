"""The stream of memory that the host writes itself: what is the template's, what is the machine's own, and what QEMU says."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from hutch.isolation import qemu_memory, qemu_template
from hutch.isolation.qemu_pages import PAGE_BYTES, Mapping, Stream, mapping
from hutch.isolation.qmp import Monitor

pytestmark = pytest.mark.root
PAGES = 600
SIZE = PAGES * PAGE_BYTES
DEVICES = b"QEVM\0\0\0\3devices"


@pytest.fixture
def memory() -> Iterator[mmap.mmap]:
    """A template of three pages with something in them and one of zeros, mapped privately by this process as QEMU does it."""
    file = qemu_template.file("hutch-template", SIZE)
    for number, text in ((0, b"first"), (299, b"last of a block"), (599, b"end"), (4, b"\0")):
        os.pwrite(file, text, number * PAGE_BYTES)
    qemu_template.seal(file)
    mapped = mmap.mmap(file, SIZE, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    yield mapped
    mapped.close()
    os.close(file)


def of_this_process() -> Mapping:
    found = mapping(os.getpid(), SIZE)
    assert found is not None
    return found


def pages(stream: bytes) -> list[tuple[int, bytes]]:
    """Where each page of a stream is, and how it begins."""
    place = stream.index(b"\x02\0\0\0\2", stream.index(b"\x7e")) + 5
    found: list[tuple[int, bytes]] = []
    while True:
        (entry,) = struct.unpack_from(">Q", stream, place)
        place += 8
        if entry & 0x10:
            assert stream[place:] == b"\x7e\0\0\0\2" + b"devices" + b"\6\0\0\0\2{}"
            return found
        assert entry & 0x08
        if not entry & 0x20:
            assert stream[place : place + 4] == b"\3ram"
            place += 4
        page = stream[place : place + PAGE_BYTES]
        found.append((entry // PAGE_BYTES, page.rstrip(b"\0")))
        place += PAGE_BYTES


def test_pages_of_the_template_come_first_then_the_machines_own(tmp_path: Path, memory: mmap.mmap) -> None:
    file = tmp_path / "state"
    mapped = of_this_process()
    # Looked at, which makes it no page of its own; written; written with what it was; written with zeros over something.
    assert memory[100 * PAGE_BYTES] == 0
    memory[7 * PAGE_BYTES] = ord("7")
    qemu_memory.begin(file, mapped, SIZE)
    memory[298 * PAGE_BYTES : 300 * PAGE_BYTES] = b"x" * PAGE_BYTES + bytes(PAGE_BYTES)
    with file.open("ab", buffering=0) as kept:
        stream = Stream(kept.fileno())
        stream.own(mapped)
        stream.devices(DEVICES)
    assert file.stat().st_mode & 0o777 == 0o600
    written = file.read_bytes()
    assert written.startswith(b"QEVM\0\0\0\3\7\0\0\0\7microvm\1\0\0\0\2\3ram")
    found = pages(written)
    assert found[:3] == [(0, b"first"), (299, b"last of a block"), (599, b"end")]
    assert found[3:] == [(7, b"7"), (298, b"x" * PAGE_BYTES), (299, b"")]


def test_only_a_whole_template_is_one(memory: mmap.mmap) -> None:
    assert mapping(os.getpid(), SIZE) == of_this_process()
    assert mapping(os.getpid(), SIZE + PAGE_BYTES) is None
    assert mapping(os.getppid(), SIZE) is None
    # In two parts: what the kernel makes of one range of which a part was treated differently.
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(8 * PAGE_BYTES), mmap.PROT_READ) == 0
    assert mapping(os.getpid(), SIZE) is None


class Telling(Monitor):
    """A QEMU that writes this to what it is lent."""

    def __init__(self, told: bytes) -> None:
        self._told = told
        self._lent: int | None = None

    def lend(self, number: int, descriptor: int) -> None:
        self._lent = os.dup(descriptor)

    def ask(self, command: str, **_: object) -> object:
        if command == "xen-save-devices-state":
            assert self._lent is not None
            with open(self._lent, "wb", buffering=0) as sink:
                sink.write(self._told)
        return {}

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (b"", "in a form that is none"),
        (b"nonsense", "in a form that is none"),
        (DEVICES + bytes(64 << 20), "more of its devices"),
    ],
    ids=["nothing", "nonsense", "endless"],
)
def test_what_qemu_says_of_devices_is_not_believed(tmp_path: Path, memory: mmap.mmap, told: bytes, said: str) -> None:
    file = tmp_path / "state"
    qemu_memory.begin(file, of_this_process(), SIZE)
    with pytest.raises(OSError, match=said):
        qemu_memory.finish(Telling(told), file, of_this_process())
