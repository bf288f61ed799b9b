"""What QEMU calls in place of `fallocate`: holes in sealed files are none, all else is as the C library has it."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hutch.host.binaries import discard_path
from hutch.isolation import qemu_template

SIZE = 4 * 4096
KEEP_SIZE, HOLE = 1, 3
ZERO_RANGE = 0x10

Fallocate = Callable[[int, int, int, int], int]


@pytest.fixture(params=["fallocate", "fallocate64"])
def fallocate(request: pytest.FixtureRequest) -> Fallocate:
    library = discard_path()
    assert library is not None
    function = getattr(ctypes.CDLL(str(library), use_errno=True), request.param)
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
