"""Snapshots in both forms, with real machines, emulated: everything that a tree can have is in the disk and comes back, and a
disk that means harm ends its machine and leaves nothing. Each machine takes some seconds to boot."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hutch.errors import ConflictError
from hutch.host.binaries import guest_path
from hutch.host.cgroups import Cgroups
from hutch.host.conversion import Conversions, Converter, name_of, names_of, snapshot_of
from hutch.host.packing import Packers
from hutch.host.protocol import SnapshotMethod, SnapshotRecord
from hutch.host.storage import BtrfsLayers, Ext4Layers, WritableLayers
from hutch.isolation.qemu import DISK, Guest, Qemu, make_disk
from hutch.isolation.qemu_command import MIB, Accelerator
from tests.blobs.trees import Node, make, seen

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
CGROUP = "/hutch-test-conversion"


def record(snapshot_id: str, *, disk: bool) -> SnapshotRecord:
    return SnapshotRecord(
        snapshot_id=snapshot_id,
        session_id="s",
        image="i",
        size_bytes=0,
        created_at=1,
        method=SnapshotMethod.MANUAL,
        disk=disk,
    )


class Place:
    """A store and what converts in it."""

    def __init__(self, directory: Path, layers: WritableLayers) -> None:
        self.layers = layers
        self.directory = directory / "conversions"
        self.cgroups = Cgroups.detect()
        guest = Guest(guest_path())
        guest.require()
        qemu = Qemu(guest, self.directory, self.cgroups, Accelerator.TCG)
        self.conversions = Conversions(Converter(lambda: qemu, Packers(), self.directory, CGROUP), layers, disk_bytes=600 * MIB)

    def sealed(self, name: str, fill: Callable[[Path], None]) -> None:
        layer = self.layers.create(f"layer-{name}", 600 * MIB)
        fill(layer)
        self.layers.sync()
        self.layers.seal(f"layer-{name}", name)

    async def refused(self, name: str) -> str:
        """Why a disk does not become a tree, and that nothing was made."""
        before = self.layers.snapshots()
        with pytest.raises(ConflictError) as error:
            await self.conversions.convert(record(name, disk=True), disk=False)
        assert error.value.code == "snapshot_unpackable"
        assert self.layers.snapshots() == before
        return error.value.message

    def check_clean(self) -> None:
        assert self.layers.names() == set()
        assert self.cgroups.children(CGROUP) == set()
        left = {entry.name for entry in self.directory.iterdir()} - {"qemu"}
        assert left == set()


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    layers: WritableLayers = request.param(tmp_path / "store")
    layers.open()
    found = Place(tmp_path, layers)
    try:
        yield found
        found.check_clean()
    finally:
        layers.close()
        found.cgroups.remove_unused(CGROUP)


def odd() -> Node:
    """Of everything that a sandbox can leave."""
    big = os.urandom(MIB)
    file = Node("file", mode=0o640, uid=1000, gid=70000, mtime_ns=1_700_000_000_123_456_789, content=((0, b"contents"),), size=8)
    inner = {
        b"gone": Node("whiteout"),
        b"\xff\xfe new\nline": file,
        b"n" * 255: file,
        b"setuid": Node(
            "file", mode=0o6755, content=((0, b"#!"),), size=2, xattrs=((b"user.k", b"v\0z"), (b"user.l", b"q" * 3000))
        ),
        b"sparse": Node("file", content=((5 * MIB, b"x"), (900 * MIB, b"end")), size=1000 * MIB),
        b"big": Node("file", content=((0, big),), size=len(big), links=(b"other", b"third")),
        b"link": Node("symlink", target=b"/etc/passwd", uid=5, links=(b"link2",), mtime_ns=1),
        b"long": Node("symlink", target=b"t" * 4000),
        b"fifo": Node("fifo", mode=0o622, uid=7),
        b"socket": Node("socket", mode=0o700, mtime_ns=-5),
        b"lost+found": Node("directory", mode=0o700),
        b"sticky": Node("directory", mode=0o1777, opaque=True, children={b"again": file, b"hidden": Node("whiteout")}),
    }
    return Node("directory", mode=0o755, mtime_ns=2 * 10**18 + 7, children=inner)


@pytest.mark.parametrize("place", [Ext4Layers], indirect=True)
async def test_a_tree_becomes_a_disk_and_a_tree_again(place: Place) -> None:
    def fill(layer: Path) -> None:
        shutil.rmtree(layer / "u")
        make(odd(), os.fsencode(layer / "u"))

    place.sealed("snap_a", fill)
    with place.layers.reading("snap_a") as tree:
        before = seen(tree)
    await place.conversions.convert(record("snap_a", disk=False), disk=True)
    made = name_of(record("snap_a", disk=False), disk=True)
    with place.layers.reading(made) as tree:
        shutil.copyfile(tree.with_name(DISK), place.directory / "copy")
        assert tree.with_name(DISK).stat().st_size >= 64 * MIB
    checked = subprocess.run(["e2fsck", "-fn", place.directory / "copy"], capture_output=True, text=True, check=False)
    (place.directory / "copy").unlink()
    assert checked.returncode == 0, checked.stdout
    # As if a virtual machine had left that one.
    await place.conversions.convert(record(made, disk=True), disk=False)
    with place.layers.reading(name_of(record(made, disk=True), disk=False)) as tree:
        assert seen(tree) == before
    assert place.layers.snapshots() == {"snap_a", "snap_a.disk", "snap_a.disk.tree"}


def disk_of(layer: Path, fill: Callable[[Path], None], *options: str) -> Path:
    """A disk whose upper directory was made by somebody who knows how, and not by a sandbox."""
    file = layer / DISK
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "u").mkdir()
        fill(Path(directory) / "u")
        file.touch()
        os.truncate(file, 32 * MIB)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-d", directory, *options, str(file)], check=True, capture_output=True)
    return file


def debugfs(file: Path, *requests: str) -> None:
    for request in requests:
        subprocess.run(["debugfs", "-w", "-R", request, file], check=True, capture_output=True)


def broken(layer: Path) -> None:
    make_disk(layer / DISK, 32 * MIB)
    with (layer / DISK).open("r+b") as disk:
        disk.write(bytes(MIB))


def looping(layer: Path) -> None:
    file = disk_of(layer, lambda upper: (upper / "a").mkdir())
    debugfs(file, "link /u /u/a/loop")


def panicking(layer: Path) -> None:
    def fill(upper: Path) -> None:
        (upper / "a").mkdir()
        (upper / "a" / "file").touch()

    file = disk_of(layer, fill, "-O", "^metadata_csum")
    subprocess.run(["tune2fs", "-e", "panic", file], check=True, capture_output=True)
    block = subprocess.run(["debugfs", "-R", "blocks /u/a", file], check=True, capture_output=True, text=True).stdout.split()[0]
    size = subprocess.run(["dumpe2fs", "-h", file], check=True, capture_output=True, text=True).stdout
    bytes_each = int(next(line for line in size.splitlines() if line.startswith("Block size:")).split()[-1])
    with file.open("r+b") as disk:
        disk.seek(int(block) * bytes_each)
        disk.write(b"\xff" * bytes_each)


def redirected(layer: Path) -> None:
    def fill(upper: Path) -> None:
        (upper / "a").mkdir()
        os.setxattr(upper / "a", "trusted.overlay.redirect", b"/etc")

    disk_of(layer, fill)


def many(layer: Path) -> None:
    """Files that say they have far more than their disk: the same blocks, again and again."""

    def fill(upper: Path) -> None:
        (upper / "a").write_bytes(b"x" * 4 * MIB)

    file = disk_of(layer, fill, "-O", "^64bit,^metadata_csum,^extent")
    debugfs(file, *(f"copy_inode /u/a <{number}>" for number in range(500, 512)))
    debugfs(file, *(f"link <{number}> /u/b{number}" for number in range(500, 512)))


@pytest.mark.parametrize("place", [BtrfsLayers], indirect=True)
async def test_a_hostile_disk_becomes_nothing(place: Place) -> None:
    hostile = (
        (broken, "can't be mounted as ext4"),
        (looping, "loop"),
        (panicking, "its kernel panicked"),
        (redirected, "a has its contents in the image"),
        (many, "more than 33554432 bytes"),
    )
    for fill, _ in hostile:
        place.sealed(f"snap_{fill.__name__}", fill)
    refusals = await asyncio.gather(*(place.refused(f"snap_{fill.__name__}") for fill, _ in hostile))
    for (_, said), message in zip(hostile, refusals, strict=True):
        assert said in message


def test_names_say_whose_layers_are() -> None:
    for disk in (True, False):
        made = record("snap_1", disk=disk)
        names = {name_of(made, disk=form) for form in (True, False)}
        assert len(names) == 2
        assert names < set(names_of("snap_1"))
    assert {snapshot_of(name) for name in names_of("snap_1")} == {"snap_1"}
