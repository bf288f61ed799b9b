"""What was read of images is read ahead at the next start."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from hutch.host.prefetch import GAP_PAGES, PAGE, Prefetch, resident
from tests.conftest import wait_until
from tests.host.guest import guest, real_host

PAGES = 4096


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A file of which nothing is in memory."""
    file = tmp_path / "image.erofs"
    file.write_bytes(os.urandom(PAGES * PAGE))
    drop(file)
    return file


def drop(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(file: Path, page: int, count: int = 1) -> None:
    with file.open("rb", buffering=0) as opened:
        # Only what is asked for.
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        os.pread(opened.fileno(), count * PAGE, page * PAGE)


def held(file: Path) -> set[int]:
    return {page for offset, length in resident(file) for page in range(offset // PAGE, (offset + length) // PAGE)}


def test_what_was_read_is_remembered_and_read_ahead(image: Path, tmp_path: Path) -> None:
    assert held(image) == set()
    read(image, 3)
    read(image, 1000, 50)
    read(image, PAGES - 1)
    wanted = held(image)
    assert {3, 1000, 1049, PAGES - 1} <= wanted
    assert len(wanted) < PAGES // 4
    Prefetch(tmp_path / "kept").remember([image])
    drop(image)
    assert held(image) == set()
    assert Prefetch(tmp_path / "kept").read_ahead([image]) == len(wanted) * PAGE
    wait_until(lambda: wanted <= held(image), 10, lambda: f"not read: {sorted(wanted - held(image))[:10]}")
    assert len(held(image)) < PAGES // 2


def test_ranges_that_are_near_are_one(image: Path) -> None:
    read(image, 100)
    read(image, 100 + GAP_PAGES)
    read(image, 2000)
    assert resident(image)[0] == (100 * PAGE, (GAP_PAGES + 1) * PAGE)
    assert resident(image)[-1] == (2000 * PAGE, PAGE)


@pytest.mark.parametrize(
    "kept", [b"", b"\xc1", b"hello", b"\x91\x92\x01", b"\x91\x92\xcf" + b"\xff" * 8 + b"\x01", b"\x91\x92\xff\xff"]
)
def test_what_was_remembered_wrongly_does_no_harm(image: Path, tmp_path: Path, kept: bytes) -> None:
    directory = tmp_path / "kept"
    directory.mkdir()
    (directory / image.name).write_bytes(kept)
    assert Prefetch(directory).read_ahead([image, tmp_path / "gone"]) == 0
    os.utime(directory / image.name, (0, 0))
    Prefetch(directory).remember([])
    assert list(directory.iterdir()) == []


def test_an_empty_file_has_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert resident(tmp_path / "empty") == []


@pytest.mark.root
async def test_a_host_remembers_what_its_sandboxes_read(no_leaks: Path) -> None:
    async with real_host(no_leaks) as service:
        box = await guest(service)
        assert (await box.shell("node -v")).exit_code == 0
        [layer] = service.supervisor.images.exact(box.record.image).layers
    kept = msgspec.msgpack.decode((no_leaks / "host" / "prefetch" / layer.path.name).read_bytes(), type=list[tuple[int, int]])
    # Some megabytes; the kernel may have taken most of them back meanwhile.
    assert sum(length for _, length in kept) > 100_000


def test_where_nothing_can_be_written_nothing_is_remembered(image: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    prefetch = Prefetch(tmp_path / "file" / "prefetch")
    prefetch.remember([image])
    assert prefetch.read_ahead([image]) == 0
