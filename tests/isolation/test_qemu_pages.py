"""Memory that the host saves itself: what is the file's that others have too, what is the machine's own, and what QEMU says."""

from __future__ import annotations

import ctypes
import dataclasses
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hutch.isolation import qemu_memory, qemu_template
from hutch.isolation.qemu_pages import PAGE_BYTES, FileId, Mapping, mapping
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


def kept(file: Path) -> dict[int, bytes]:
    """What a file has, by pages, where there is something."""
    whole = file.read_bytes()
    assert len(whole) == SIZE
    found = {number: whole[number * PAGE_BYTES :][:PAGE_BYTES].rstrip(b"\0") for number in range(PAGES)}
    return {number: text for number, text in found.items() if text}


def test_the_file_comes_first_then_what_is_the_machines_own(tmp_path: Path, memory: mmap.mmap) -> None:
    begun = tmp_path / qemu_memory.BEGUN
    mapped = of_this_process()
    # Looked at, which makes it no page of its own; written; written with what it was; written with zeros over something.
    assert memory[100 * PAGE_BYTES] == 0
    memory[7 * PAGE_BYTES] = ord("7")
    qemu_memory.begin(begun, mapped)
    assert kept(begun) == {0: b"first", 299: b"last of a block", 599: b"end"}
    # Pages of zeros are holes, also those that the template has.
    assert begun.stat().st_blocks * 512 <= 5 * PAGE_BYTES
    memory[298 * PAGE_BYTES : 300 * PAGE_BYTES] = b"x" * PAGE_BYTES + bytes(PAGE_BYTES)
    qemu_memory.finish(Telling(DEVICES), tmp_path, mapped, SIZE)
    assert {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {"memory": 0o600, "devices": 0o600}
    assert kept(tmp_path / "memory") == {0: b"first", 7: b"7", 298: b"x" * PAGE_BYTES, 599: b"end"}
    told = (tmp_path / "devices").read_bytes()
    # No page is in the stream.
    assert told.startswith(b"QEVM\0\0\0\3\7\0\0\0\7microvm\1\0\0\0\2\3ram")
    assert told.endswith(b"\x7e\0\0\0\2" + b"devices" + b"\6\0\0\0\2{}")
    assert len(told) < 200


def test_a_machine_that_maps_saved_memory_is_told_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "memory").write_bytes(b"of the file".ljust(SIZE, b"\0"))
    with (tmp_path / "memory").open("rb") as file, (tmp_path / "other").open("w+b") as other:
        found, another = FileId.of(file.fileno()), FileId.of(other.fileno())
        assert mapping(os.getpid(), SIZE, found) is None
        with mmap.mmap(file.fileno(), SIZE, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as memory:
            mapped = mapping(os.getpid(), SIZE, found)
            assert mapped is not None
            assert mapping(os.getpid(), SIZE) is None
            assert mapping(os.getpid(), SIZE, another) is None
            # The same number on another file system.
            assert mapping(os.getpid(), SIZE, dataclasses.replace(found, device=found.device + 1)) is None
            # Its name may go meanwhile.
            (tmp_path / "memory").unlink()
            memory[5 * PAGE_BYTES] = ord("5")
            qemu_memory.begin(tmp_path / qemu_memory.BEGUN, mapped)
            qemu_memory.finish(Telling(DEVICES), tmp_path, mapped, SIZE)
    assert kept(tmp_path / "memory") == {0: b"of the file", 5: b"5"}


@pytest.mark.parametrize(
    ("name", "size"), [("memory", SIZE - 1), ("memory", SIZE + 1), ("memory", None), ("devices", 0), ("devices", 65 << 20)]
)
def test_files_that_can_not_be_a_machines_are_refused(tmp_path: Path, name: str, size: int | None) -> None:
    for each, bytes_long in (("memory", SIZE), ("devices", 100)):
        (tmp_path / each).write_bytes(bytes(bytes_long))
    with qemu_memory.kept(tmp_path, SIZE) as (memory, devices):
        assert os.fstat(memory).st_size == SIZE
        assert os.read(devices, 200) == bytes(100)
    if size is not None:
        os.truncate(tmp_path / name, size)
    else:
        (tmp_path / name).unlink()
        os.mkfifo(tmp_path / name)
    with pytest.raises(OSError, match="which such a machine's has not"), qemu_memory.kept(tmp_path, SIZE):
        pytest.fail("it was taken")
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="symbolic links"), qemu_memory.kept(tmp_path, SIZE):
        pytest.fail("it was taken")


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
    qemu_memory.begin(tmp_path / qemu_memory.BEGUN, of_this_process())
    with pytest.raises(OSError, match=said):
        qemu_memory.finish(Telling(told), tmp_path, of_this_process(), SIZE)
    # What is not whole has not the name of it.
    assert not (tmp_path / qemu_memory.MEMORY).exists()
