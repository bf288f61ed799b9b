"""Tree → stream → tree, with the real agent at the other end: what goes into a virtual machine's disk and comes out of it."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from hutch.blobs import pack, stream
from hutch.blobs.manifest import Damaged, Entry, Kind, encode_entry
from hutch.blobs.stream import TooLarge
from hutch.blobs.unpack import LINKS
from tests.blobs.trees import EXAMPLES, Node, make, seen, trees
from tests.wire.agent import agent_binary

pytestmark = pytest.mark.root
MUCH = 1 << 40


def sent(tree: Path) -> bytes:
    pieces: list[bytes] = []
    stream.send(tree, pieces.append)
    return b"".join(pieces)


def agent(*arguments: str | Path, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([agent_binary(), *arguments], input=given, capture_output=True, timeout=60, check=False)


def sent_by_agent(tree: Path) -> bytes:
    done = agent("--send-tree", tree)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


@pytest.mark.campaign
@pytest.mark.timeout(1200)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(trees())
def test_what_is_sent_arrives_as_it_was(tree: Node) -> None:
    with tempfile.TemporaryDirectory() as directory:
        source, inside, back = Path(directory, "source"), Path(directory, "inside"), Path(directory, "back")
        make(tree, os.fsencode(source))
        before = seen(source)
        given = sent(source)
        # Both write the very same.
        assert sent_by_agent(source) == given
        done = agent("--receive-tree", inside, given=given)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        assert seen(inside) == before
        stream.receive([sent_by_agent(inside)], back, max_bytes=MUCH, max_files=1000)
        assert seen(back) == before
        assert {entry.name for entry in Path(directory).iterdir()} == {"source", "inside", "back"}


def test_links_holes_devices_and_depth(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "a").mkdir(parents=True)
    (source / "z").write_bytes(b"z")
    os.link(source / "z", source / "a" / "first")
    os.mknod(source / "a" / "device", 0o20600, os.makedev(200, 300))
    with (source / "sparse").open("xb") as file:
        file.truncate(1 << 43)
        file.seek(1 << 42)
        file.write(b"in the middle")
    here = os.open(source, pack.OPEN_DIRECTORY)
    for _ in range(3000):
        os.mkdir("d" * 200, dir_fd=here)
        below = os.open("d" * 200, pack.OPEN_DIRECTORY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    # A name that is outside is no name of the tree.
    os.link(source / "z", tmp_path / "outside")
    given = sent(source)
    assert sent_by_agent(source) == given
    inside = tmp_path / "inside"
    assert agent("--receive-tree", inside, given=given).returncode == 0
    back = tmp_path / "back"
    assert stream.receive([sent_by_agent(inside)], back, max_bytes=MUCH, max_files=1 << 20) > 6000
    for copy in (inside, back):
        assert (copy / "a" / "device").stat().st_rdev == os.makedev(200, 300)
        assert (copy / "z").stat().st_ino == (copy / "a" / "first").stat().st_ino
        assert (copy / "sparse").stat().st_size == 1 << 43
        assert (copy / "sparse").stat().st_blocks < 1000
        subprocess.run(["rm", "-rf", copy], check=True)
    subprocess.run(["rm", "-rf", source], check=True)


def test_trusted_attributes_stay_where_they_are(tmp_path: Path) -> None:
    source, inside = tmp_path / "source", tmp_path / "inside"
    (source / "opaque").mkdir(parents=True)
    os.setxattr(source / "opaque", "trusted.overlay.opaque", b"y")
    os.setxattr(source / "opaque", "trusted.overlay.origin", b"something")
    (source / "file").touch()
    os.setxattr(source / "file", "trusted.mine", b"1")
    os.setxattr(source / "file", "user.mine", b"2")
    assert agent("--receive-tree", inside, given=sent_by_agent(source)).returncode == 0
    assert os.listxattr(inside / "opaque") == ["trusted.overlay.opaque"]
    assert os.listxattr(inside / "file") == ["user.mine"]
    # What stands for something of the image is not sent, by nobody.
    os.setxattr(source / "file", "trusted.overlay.metacopy", b"")
    with pytest.raises(pack.Unpackable):
        sent(source)
    done = agent("--send-tree", source)
    assert done.returncode == 1
    assert done.stderr == b"hutch-agent: file has its contents in the image\n"


def small(tmp_path: Path) -> bytes:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(b"contents")
    return sent(source)


def test_what_is_cut_or_changed_is_noticed_by_both(tmp_path: Path) -> None:
    whole = small(tmp_path)
    for number, end in enumerate(range(0, len(whole), 3)):
        changed = bytearray(whole)
        changed[end] ^= 0x40
        for name, broken in (("cut", whole[:end]), ("changed", bytes(changed))):
            with pytest.raises((Damaged, TooLarge, OSError)):
                stream.receive([broken], tmp_path / f"{name}-{end}", max_bytes=MUCH, max_files=10)
            assert not (tmp_path / LINKS).exists()
            if number % 8 == 0:
                done = agent("--receive-tree", tmp_path / f"agent-{name}-{end}", given=broken)
                assert done.returncode == 1
                assert done.stderr.startswith(b"hutch-agent: ")
    for more in (b"\0", whole):
        with pytest.raises(Damaged):
            stream.receive([whole, more], tmp_path / f"more-{len(more)}", max_bytes=MUCH, max_files=10)


def test_what_is_more_than_may_be_ends_there(tmp_path: Path) -> None:
    whole = small(tmp_path)
    with pytest.raises(TooLarge, match="more than 7 bytes"):
        stream.receive([whole], tmp_path / "bytes", max_bytes=7, max_files=10)
    with pytest.raises(TooLarge, match="more than 2 entries"):
        stream.receive([whole], tmp_path / "entries", max_bytes=8, max_files=2)
    assert stream.receive([whole], tmp_path / "whole", max_bytes=8, max_files=3) == 3


@pytest.mark.parametrize(
    "entries",
    [
        [Entry(kind=Kind.FILE, name=b"file")],
        [Entry(kind=Kind.DIRECTORY, name=b"named")],
        [Entry(kind=Kind.DIRECTORY), Entry(kind=Kind.SYMLINK, name=b"../up", target=b"x")],
        [Entry(kind=Kind.DIRECTORY), Entry(kind=Kind.SYMLINK, name=b"a", target=b"/"), Entry(kind=Kind.DIRECTORY, name=b"a")],
        [Entry(kind=Kind.DIRECTORY), Entry(kind=Kind.LINK, name=b"a", of=0)],
        [Entry(kind=Kind.DIRECTORY), Entry(kind=Kind.FILE, name=b"a", size=5, extents=b"\xff" * 16)],
        [Entry(kind=Kind.DIRECTORY), Entry(kind=Kind.UP), Entry(kind=Kind.DIRECTORY)],
        [Entry(kind=Kind.DIRECTORY), Entry(kind=Kind.UP), Entry(kind=Kind.UP)],
        [Entry(kind=Kind.DIRECTORY), Entry(kind=Kind.FIFO, name=b"a"), Entry(kind=Kind.FIFO, name=b"a")],
    ],
)
def test_hostile_streams_make_nothing_outside(tmp_path: Path, entries: list[Entry]) -> None:
    collected: list[bytes] = []
    pieces = stream._Pieces(collected.append)
    for entry in entries:
        pieces.add(encode_entry(entry))
    pieces.finish(len(entries), 0)
    (tmp_path / "python").mkdir()
    with pytest.raises((Damaged, OSError)):
        stream.receive(collected, tmp_path / "python" / "tree", max_bytes=MUCH, max_files=100)
    assert {entry.name for entry in (tmp_path / "python").iterdir()} <= {"tree"}
    (tmp_path / "agent").mkdir()
    assert agent("--receive-tree", tmp_path / "agent" / "tree", given=b"".join(collected)).returncode == 1
    assert {entry.name for entry in (tmp_path / "agent").iterdir()} <= {"tree", "tree.links"}
