"""Tree → streams → tree: everything that a guest can make comes back as it was, and reading it changes nothing."""

from __future__ import annotations

import os
import random
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from hutch.blobs import pack as packing
from hutch.blobs.manifest import Damaged, Entry, Kind, Ref, decode_entries, digest_of, refs
from hutch.blobs.pack import Packed, Unpackable, pack
from hutch.blobs.unpack import LINKS, unpack
from tests.blobs.trees import EXAMPLES, Node, make, seen, trees

pytestmark = pytest.mark.root


class Chunks(dict[bytes, bytes]):
    """Chunks in memory."""

    def put(self, ref: Ref, content: bytes) -> None:
        assert ref == Ref(digest_of(content), len(content))
        self[ref.digest] = content

    def unpacked(self, packed: Packed, tree: Path) -> None:
        entries = decode_entries(self[ref.digest] for ref in refs(packed.entries))
        unpack(entries, (self[ref.digest] for ref in refs(packed.data)), tree)


@pytest.mark.campaign
@pytest.mark.timeout(1200)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(trees())
def test_what_is_packed_comes_back_as_it_was(tree: Node) -> None:
    with tempfile.TemporaryDirectory() as directory:
        source, copy = Path(directory, "source"), Path(directory, "copy")
        make(tree, os.fsencode(source))
        before = seen(source)
        chunks = Chunks()
        packed = pack(source, chunks.put)
        assert seen(source) == before
        chunks.unpacked(packed, copy)
        assert seen(copy) == before
        assert not (copy.parent / LINKS).exists()
        # The copy is packed to the very same bytes.
        assert pack(copy, Chunks().put) == packed


def test_links_across_directories_and_holes(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "a" / "b").mkdir(parents=True)
    (source / "z").write_bytes(b"z")
    os.link(source / "z", source / "a" / "b" / "first")
    os.link(source / "z", source / "a" / "second")
    with (source / "holes").open("wb") as file:
        for at in range(0, 400 << 20, 8 << 20):
            file.seek(at)
            file.write(b"x" * 5000)
        file.truncate(1 << 40)
    chunks = Chunks()
    packed = pack(source, chunks.put)
    assert packed.bytes == 50 * 8192 + 1
    chunks.unpacked(packed, tmp_path / "copy")
    assert (tmp_path / "copy" / "z").stat().st_nlink == 3
    assert (tmp_path / "copy" / "a" / "b" / "first").samefile(tmp_path / "copy" / "z")
    holes = (tmp_path / "copy" / "holes").stat()
    assert (holes.st_size, holes.st_blocks * 512) == (1 << 40, (source / "holes").stat().st_blocks * 512)


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """A directory for what Python's own removal, which goes as deep as its stack, can't remove."""
    yield tmp_path
    subprocess.run(["find", tmp_path, "-mindepth", "1", "-delete"], check=True)


def test_very_deep_trees_need_few_descriptors(deep: Path) -> None:
    top = here = os.open(deep, os.O_RDONLY)
    os.mkdir("source", dir_fd=here)
    name, depth = "source", 3000
    for _ in range(depth):
        below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        if here != top:
            os.close(here)
        here, name = below, "d" * 100
        os.mkdir(name, dir_fd=here)
    os.close(here)
    os.close(top)
    chunks = Chunks()
    packed = pack(deep / "source", chunks.put)
    assert packed.files == depth + 1
    chunks.unpacked(packed, deep / "copy")
    assert pack(deep / "copy", Chunks().put) == packed


def test_many_small_files_are_few_chunks_that_stay_when_one_changes(tmp_path: Path) -> None:
    source, generator = tmp_path / "source", random.Random(1)
    source.mkdir()
    for number in range(3000):
        (source / f"{number:05}").write_bytes(generator.randbytes(generator.randrange(8000)))
    before, after = Chunks(), Chunks()
    packed = pack(source, before.put)
    assert len(packed.data) // 36 < 150
    (source / "01000").write_bytes(b"another length than before")
    pack(source, after.put)
    # Its own group, maybe the one behind, and the entry.
    assert len(after.keys() - before.keys()) <= 5


@pytest.mark.parametrize("names", [[], [b"a"], [b"b", b"a"]])
def test_order_does_not_depend_on_the_file_system(tmp_path: Path, names: list[bytes]) -> None:
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        for name in names if place == "one" else sorted(names):
            (tmp_path / place / os.fsdecode(name)).write_bytes(name)
            os.utime(tmp_path / place / os.fsdecode(name), ns=(1, 1))
        os.utime(tmp_path / place, ns=(1, 1))
    assert pack(tmp_path / "one", Chunks().put) == pack(tmp_path / "two", Chunks().put)


@pytest.mark.parametrize("attribute", ["trusted.overlay.redirect", "trusted.overlay.metacopy"])
@pytest.mark.parametrize("name", ["d", "f"])
def test_what_refers_to_the_image_is_refused(tmp_path: Path, attribute: str, name: str) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "f").touch()
    os.setxattr(tmp_path / name, attribute, b"/etc")
    with pytest.raises(Unpackable, match="image"):
        pack(tmp_path, Chunks().put)


def test_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "holes").open("wb") as file:
        for at in range(0, 10 << 20, 1 << 20):
            file.seek(at)
            file.write(b"x")
    monkeypatch.setattr(packing, "MAX_EXTENTS", 9)
    with pytest.raises(Unpackable, match="holes"):
        pack(tmp_path, Chunks().put)
    monkeypatch.setattr(packing, "MAX_NAMES", 0)
    with pytest.raises(Unpackable, match="names"):
        pack(tmp_path, Chunks().put)


ROOT = Entry(kind=Kind.DIRECTORY, mode=0o755)
UP = Entry(kind=Kind.UP)
FILE = Entry(kind=Kind.FILE, name=b"f", size=3)


@pytest.mark.parametrize(
    ("entries", "data"),
    [
        ([], b""),
        ([FILE], b"abc"),
        ([ROOT], b""),
        ([ROOT, UP, UP], b""),
        ([ROOT, UP, FILE], b"abc"),
        ([ROOT, Entry(kind=Kind.DIRECTORY), UP, UP], b""),
        ([ROOT, FILE, FILE, UP], b"abcabc"),
        ([ROOT, FILE, UP], b"ab"),
        ([ROOT, FILE, UP], b"abcd"),
        ([ROOT, Entry(kind=Kind.LINK, name=b"l", of=0), UP], b""),
        ([ROOT, FILE, Entry(kind=Kind.LINK, name=b"l", of=0), UP], b"abc"),
        ([ROOT, Entry(kind=Kind.SYMLINK, name=b"s"), UP], b""),
        ([ROOT, Entry(kind=Kind.SYMLINK, name=b"s", target=b"x" * 5000), UP], b""),
        ([ROOT, Entry(kind=Kind.SYMLINK, name=b"s", target=b"/etc"), Entry(kind=Kind.DIRECTORY, name=b"s"), UP, UP], b""),
        ([ROOT, Entry(kind=Kind.FILE, name=b"f", size=3, extents=b"x"), UP], b"abc"),
        ([ROOT, Entry(kind=Kind.FILE, name=b"f", size=3, extents=bytes(8) + (9).to_bytes(8)), UP], b"a" * 9),
    ],
)
def test_entries_that_are_no_tree_are_damage(tmp_path: Path, entries: list[Entry], data: bytes) -> None:
    with pytest.raises(Damaged):
        unpack(entries, [data] if data else [], tmp_path / "tree")
    assert not (tmp_path / LINKS).exists()
