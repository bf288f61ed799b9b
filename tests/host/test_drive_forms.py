"""A drive that becomes a disk or a tree is there in one form, whole, wherever its host dies. What converts is another's test
(`test_conversion.py`, `test_machine_drives.py`)."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from hutch.errors import ConflictError
from hutch.host import drive_storage, kernel
from hutch.host.drive_forms import DriveForms, _moved_up
from hutch.host.drive_storage import DriveStore, is_disk, name_of
from hutch.host.drives import Drives
from hutch.host.journal import Journal
from hutch.host.protocol import DriveMode, DriveMount, DriveRecord, DriveSpec
from hutch.host.storage import BtrfsLayers, Ext4Layers, WritableLayers
from hutch.isolation.qemu import DISK
from tests.host.test_storage import MIB

pytestmark = pytest.mark.root
SIZE = 64 * MIB
WRITTEN = b"by a guest"


class Died(BaseException):
    """As when the process ends here: nobody handles it."""


class Forms(DriveForms):
    """Converts nothing but one file, or what lies behind a disk's tables."""

    def __init__(self, store: DriveStore) -> None:
        self._store = store

    async def _make(self, record: DriveRecord, source: Path, view: str, machine: str) -> Path:
        made = self._store.blank(view, record.size_bytes)
        put(made, got(source))
        return made


def put(path: Path, content: bytes) -> None:
    """What a guest would write into a drive that is shown as `path`."""
    file, offset = (path, 40 * MIB) if path.name == DISK else (path / "f", 0)
    with open(file, "r+b" if path.name == DISK else "wb") as opened:
        opened.seek(offset)
        opened.write(content)


def got(path: Path) -> bytes:
    file, offset = (path, 40 * MIB) if path.name == DISK else (path / "f", 0)
    with file.open("rb") as opened:
        opened.seek(offset)
        return opened.read(len(WRITTEN))


class Place:
    """Where one host after another begins."""

    def __init__(self, directory: Path, make: Callable[[Path], WritableLayers]) -> None:
        self.directory, self._make = directory, make
        self.layers = make(directory / "store")

    @asynccontextmanager
    async def host(self) -> AsyncIterator[Drives]:
        self.layers = self._make(self.directory / "store")
        self.layers.open()
        self.store = drive_storage.beside(self.layers)
        self.store.open()
        journal = Journal(self.directory / "journal.db")
        journal.open()
        journal.start()
        drives = Drives(journal, self.store, Forms(self.store))
        # As the supervisor does for all that it does not know.
        for machine in drives.viewers():
            drives.remove_views(machine)
        await drives.recover({})
        try:
            yield drives
        finally:
            journal.close()
            self.store.close()
            self.layers.close()


@pytest.fixture(params=[BtrfsLayers, Ext4Layers])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place(tmp_path, request.param)


async def write(drives: Drives, session: str, drive_id: str, *, disk: bool) -> Path:
    """Have a session have a drive to write to."""
    claimed = drives.claim(session, [DriveMount(path="/data", drive_id=drive_id, mode=DriveMode.READ_WRITE)])
    [attachment] = await drives.in_form(claimed, disk=disk)
    path = await drives.attach(attachment, disk=disk)
    await drives.begin(session)
    return path


async def test_a_drive_is_in_the_form_of_who_wrote_last(place: Place) -> None:
    async with place.host() as drives:
        one = (await drives.create(DriveSpec(drive_id="drive_1", size_bytes=SIZE))).drive_id
        # Nobody has written to it: nothing has to be converted.
        path = await write(drives, "s1", one, disk=True)
        assert (path.name, path.stat().st_size <= SIZE) == (DISK, True)
        put(path, WRITTEN)
        await drives.release("s1")
        assert place.store.names() == {name_of(one, disk=True)}
        fork = (await drives.create(DriveSpec(drive_id="drive_2", size_bytes=SIZE, source_id=one))).drive_id
        for disk in (False, True, True, False):
            path = await write(drives, "s2", one, disk=disk)
            assert got(path) == WRITTEN
            await drives.release("s2")
            assert place.store.names() == {name_of(one, disk=disk), name_of(fork, disk=True)}
            assert (await drives.usage(one)).used_bytes < SIZE
        # Readers have what they can read, each of its own.
        [attachment] = drives.claim("s3", [DriveMount(path="/data", drive_id=fork, mode=DriveMode.SNAPSHOT)])
        seen = [await drives.view(attachment, f"m{number}-0", disk=disk) for number, disk in enumerate((False, True, True))]
        assert [got(path) for path in seen] == [WRITTEN] * 3
        assert [path.name == DISK for path in seen] == [False, True, True]
        put(seen[1], b"replayed !")
        assert got(seen[2]) == WRITTEN
        assert drives.viewers() == {"m0", "m1", "m2"}
        for machine in ("m0", "m1", "m2"):
            drives.remove_views(machine)
        await drives.release("s3")
        for drive_id in (one, fork):
            await drives.remove(drive_id)
        assert (place.store.names(), drives.viewers()) == (set(), set())
    assert kernel.mounts_below(place.directory) == []


async def test_a_disk_in_use_is_copied_where_the_store_can(place: Place) -> None:
    async with place.host() as drives:
        one = (await drives.create(DriveSpec(drive_id="drive_1", size_bytes=SIZE))).drive_id
        path = await write(drives, "s1", one, disk=True)
        asked: list[str] = []

        async def write_so_far(session_id: str) -> None:
            asked.append(session_id)
            put(path, WRITTEN)

        drives.write_so_far = write_so_far
        reads = [DriveMount(path="/data", drive_id=one, mode=DriveMode.SNAPSHOT)]
        if not place.store.copies_in_use:
            with pytest.raises(ConflictError) as busy:
                drives.claim("s2", reads)
            assert busy.value.code == "drive_attached"
            return
        [attachment] = drives.claim("s2", reads)
        assert got(await drives.view(attachment, "m1-0", disk=True)) == WRITTEN
        assert asked == ["s1"]
        drives.remove_views("m1")


STEPS = [
    ("store", "become", False),
    ("store", "become", True),
    ("journal", "put_drive", False),
    ("journal", "put_drive", True),
    ("store", "remove", False),
]


@pytest.mark.parametrize(("owner", "method", "after"), STEPS)
@pytest.mark.parametrize("disk", [False, True], ids=["to-tree", "to-disk"])
async def test_a_host_that_dies_leaves_one_form(place: Place, owner: str, method: str, after: bool, disk: bool) -> None:
    async with place.host() as drives:
        await drives.create(DriveSpec(drive_id="drive_1", size_bytes=SIZE))
        put(await write(drives, "s1", "drive_1", disk=not disk), WRITTEN)
        await drives.release("s1")
        broken: Any = place.store if owner == "store" else drives._journal
        works = getattr(broken, method)

        def die(*arguments: Any) -> None:
            if after:
                works(*arguments)
            raise Died

        async def die_too(*arguments: Any) -> None:
            if after:
                await works(*arguments)
            raise Died

        if method == "remove":
            # Of what it is to become nothing is there, which is removed first.
            setattr(broken, method, lambda name: die(name) if is_disk(name) is not disk else works(name))
        else:
            setattr(broken, method, die if owner == "store" else die_too)
        with pytest.raises(Died):
            await write(drives, "s2", "drive_1", disk=disk)
    async with place.host() as drives:
        # What the journal says counts.
        became = method == "remove" or (method == "put_drive" and after)
        assert place.store.names() == {name_of("drive_1", disk=disk if became else not disk)}
        assert drives.viewers() == set()
        assert got(await write(drives, "s3", "drive_1", disk=disk)) == WRITTEN
        await drives.release("s3")


async def test_what_a_power_cut_took_from_the_journal_is_seen_in_the_store(place: Place) -> None:
    async with place.host() as drives:
        await drives.create(DriveSpec(drive_id="drive_1", size_bytes=SIZE))
        put(await write(drives, "s1", "drive_1", disk=True), WRITTEN)
        await drives.release("s1")
        await drives._put(DriveRecord(drive_id="drive_1", size_bytes=SIZE, created_at=1, written=True))
    async with place.host() as drives:
        assert got(await write(drives, "s2", "drive_1", disk=True)) == WRITTEN
        await drives.release("s2")


def test_what_is_moved_up_is_all_there(tmp_path: Path) -> None:
    inner = tmp_path / ".inner"
    inner.mkdir()
    for name in (b"f", b"\xff\n", b"u", b".hidden"):
        (inner / os.fsdecode(name)).write_bytes(name)
    (inner / "dangling").symlink_to("/nonexistent")
    (inner / "d").mkdir()
    (inner / "d" / "inside").touch()
    os.chown(inner, 12, 34)
    inner.chmod(0o2751)
    os.setxattr(inner, "user.k", b"v\0")
    os.utime(inner, ns=(5, 7))
    _moved_up(inner)
    assert sorted(os.fsencode(entry.name) for entry in tmp_path.iterdir()) == [
        b".hidden",
        b"d",
        b"dangling",
        b"f",
        b"u",
        b"\xff\n",
    ]
    assert (tmp_path / "d" / "inside").exists()
    found = tmp_path.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o7777, found.st_mtime_ns) == (12, 34, 0o2751, 7)
    assert os.getxattr(tmp_path, "user.k") == b"v\0"
