"""What QEMU calls in place of functions of the C library: a file that it may not write to is opened for reading, and a hole in it
is none; all else is as the C library has it."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hutch.host.binaries import preload_path
from hutch.isolation import qemu_template
from hutch.isolation.qemu_pages import FileId

SIZE = 4 * 4096
KEEP_SIZE, HOLE = 1, 3
ZERO_RANGE = 0x10

Fallocate = Callable[[int, int, int, int], int]


@pytest.fixture(params=["fallocate", "fallocate64"])
def fallocate(request: pytest.FixtureRequest) -> Fallocate:
    function = getattr(ctypes.CDLL(str(preload_path()), use_errno=True), request.param)
    function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]

    def call(descriptor: int, mode: int, offset: int, length: int) -> int:
        ctypes.set_errno(0)
        return 0 if function(descriptor, mode, offset, length) == 0 else ctypes.get_errno()

    return call


@pytest.fixture
def memory() -> Iterator[int]:
    descriptor = qemu_template.file("test")
    os.write(descriptor, b"x" * SIZE)
    yield descriptor
    os.close(descriptor)


def test_a_hole_in_a_sealed_file_is_none(fallocate: Fallocate, memory: int) -> None:
    qemu_template.seal(memory)
    assert fallocate(memory, HOLE, 4096, 4096) == 0
    assert os.pread(memory, SIZE, 0) == b"x" * SIZE
    # All other ways to change it are refused, as they are by the kernel.
    for mode in (0, KEEP_SIZE, ZERO_RANGE):
        assert fallocate(memory, mode, 0, 2 * SIZE) in (errno.EPERM, errno.EOPNOTSUPP)
    assert os.pread(memory, 2 * SIZE, 0) == b"x" * SIZE


def test_a_hole_in_any_other_file_is_made(fallocate: Fallocate, memory: int, tmp_path: Path) -> None:
    # One that can't grow any more can still be written to.
    fcntl.fcntl(memory, qemu_template._F_ADD_SEALS, 0x2 | 0x4)
    disk = os.open(tmp_path / "disk", os.O_RDWR | os.O_CREAT)
    os.write(disk, b"x" * SIZE)
    for descriptor in (memory, disk):
        assert fallocate(descriptor, HOLE, 4096, 4096) == 0
        assert os.pread(descriptor, SIZE, 0) == b"x" * 4096 + bytes(4096) + b"x" * (SIZE - 8192)
    os.close(disk)


def test_errors_are_those_of_the_kernel(fallocate: Fallocate, memory: int, tmp_path: Path) -> None:
    assert fallocate(-1, HOLE, 0, 4096) == errno.EBADF
    assert fallocate(memory, HOLE, -1, 4096) == errno.EINVAL
    assert fallocate(memory, HOLE, 0, 0) == errno.EINVAL
    pipe = os.pipe()
    assert fallocate(pipe[1], HOLE, 0, 4096) == errno.ESPIPE
    for end in pipe:
        os.close(end)


Open = Callable[[bytes, int], int]


@pytest.fixture(params=["open64", "__open64_2"])
def opened(request: pytest.FixtureRequest) -> Iterator[Open]:
    """What that answers: a descriptor, or an error below zero."""
    function = getattr(ctypes.CDLL(str(preload_path()), use_errno=True), request.param)
    function.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_uint]
    descriptors = []

    def call(path: bytes, flags: int) -> int:
        ctypes.set_errno(0)
        found: int = function(path, flags, 0o600)
        if found < 0:
            return -ctypes.get_errno()
        descriptors.append(found)
        return found

    yield call
    for descriptor in descriptors:
        os.close(descriptor)


def may_write(descriptor: int) -> bool:
    return fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR


def test_a_descriptor_for_reading_stays_one(opened: Open, fallocate: Fallocate, tmp_path: Path) -> None:
    file = tmp_path / "memory"
    file.write_bytes(b"x" * SIZE)
    with file.open("rb") as reading, file.open("r+b") as writing:
        found = opened(f"/proc/self/fd/{reading.fileno()}".encode(), os.O_RDWR)
        assert found >= 0
        assert not may_write(found)
        assert FileId.of(found) == FileId.of(reading.fileno())
        assert fallocate(found, HOLE, 4096, 4096) == 0
        # One that may be written to may be opened for that, and each file by its name.
        for path in (f"/proc/self/fd/{writing.fileno()}".encode(), os.fsencode(file)):
            found = opened(path, os.O_RDWR)
            assert found >= 0
            assert may_write(found)
    assert file.read_bytes() == b"x" * SIZE


@pytest.mark.parametrize(
    ("path", "error"),
    [
        (b"/proc/self/fd/", errno.EISDIR),
        (b"/proc/self/fd/999", errno.ENOENT),
        (b"/proc/self/fd/-1", errno.ENOENT),
        (b"/proc/self/fd/99999999999999999999", errno.ENOENT),
        (b"/proc/self/fd/\xff", errno.ENOENT),
        (b"/no/such/file", errno.ENOENT),
        (b"", errno.ENOENT),
        (None, errno.EFAULT),
    ],
)
def test_a_path_that_is_none_is_refused_by_the_kernel(opened: Open, path: bytes, error: int) -> None:
    assert opened(path, os.O_RDWR) == -error
