"""The disk of a virtual machine: an ext4 image that the host makes once, while nobody has written to it, and never mounts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from hutch.host import kernel
from hutch.isolation import sparse

MIB = 1024 * 1024
DISK = "disk.ext4"
MIN_DISK_BYTES = 15 * MIB


def disk_size(room_bytes: int) -> int:
    """The size of a disk whose file may hold so much: what its own file system needs for that is room too. In steps of up to a
    sixty-fourth, so that layers with almost the same room have disks of one size."""
    left = room_bytes - room_bytes // 64 - MIB // 2
    step = max(MIB, 1 << max(0, left.bit_length() - 7))
    return max(MIN_DISK_BYTES, left // step * step)


def make_disk(file: Path, size_bytes: int, *more: str) -> None:
    """An empty ext4 image, with `more` options of `mkfs.ext4`; nothing happens where there is one. It is complete or not
    there."""
    if file.exists():
        return
    with _making(file) as made:
        made.truncate(size_bytes)
        # Tables are zero already in a sparse file. The guest's kernel writes them when it wants to.
        options = ["-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", "-m", "0", "-I", "256"]
        kernel.run(["mkfs.ext4", "-q", "-F", *options, *more, made.name])


def copy_disk(image: int, file: Path) -> None:
    """A disk that has what a descriptor has, complete or not there. Raises `OSError`."""
    with _making(file) as made:
        sparse.copy(image, made.fileno())


@contextlib.contextmanager
def _making(file: Path) -> Iterator[BinaryIO]:
    part = file.with_name(f".{file.name}.part")
    part.unlink(missing_ok=True)
    try:
        with part.open("xb") as made:
            part.chmod(0o600)
            # Or what a guest writes again and again would be held many times.
            kernel.write_in_place(made.fileno())
            yield made
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
