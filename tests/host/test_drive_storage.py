"""Where drives lie, on real file systems: bounded, copied, whole or not there, removed without a trace."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hutch.errors import ConflictError, UnavailableError
from hutch.host import drive_storage, kernel, storage
from hutch.host.drive_storage import UNFINISHED, DriveStore, Ext4Drives, name_of
from hutch.host.storage import BtrfsLayers, Ext4Layers, WritableLayers
from tests.host.test_storage import MIB, fill

pytestmark = pytest.mark.root

FULL = (errno.EDQUOT, errno.ENOSPC)
SIZE = 64 * MIB


class Store:
    """Drives beside the layers of one kind, opened anew as a restarted host does."""

    def __init__(self, make: Callable[[Path], WritableLayers], directory: Path) -> None:
        self._make = make
        self.directory = directory
        self.open()

    def open(self) -> None:
        self.layers = self._make(self.directory)
        self.layers.open()
        self.drives: DriveStore = drive_storage.beside(self.layers)
        self.drives.open()

    def close(self) -> None:
        self.drives.close()
        self.layers.close()


@pytest.fixture(params=[BtrfsLayers, Ext4Layers])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    opened = Store(request.param, tmp_path / "store")
    yield opened
    opened.close()
    assert kernel.mounts_below(tmp_path) == []


def test_a_drive_takes_what_it_may_and_no_more(store: Store) -> None:
    drives = store.drives
    drives.create("one", 24 * MIB)
    path = drives.attach("one", 24 * MIB, 0)
    assert list(path.iterdir()) == []
    assert fill(path / "small", 8 * MIB) == 0
    assert fill(path / "large", 64 * MIB) in FULL
    store.layers.sync()
    assert 8 * MIB <= drives.used("one", 0) <= 25 * MIB
    drives.create("two", 24 * MIB)
    assert fill(drives.attach("two", 24 * MIB, 0) / "small", 8 * MIB) == 0
    for name in ("one", "two"):
        drives.detach(name)


def test_what_is_in_it_stays_when_it_is_made_again_detached_and_opened_anew(store: Store) -> None:
    store.drives.create("one", SIZE)
    path = store.drives.attach("one", SIZE, 0)
    (path / "kept").write_text("here")
    (path / "lost+found").mkdir()
    store.drives.create("one", SIZE)
    for _ in range(2):
        store.drives.detach("one")
    store.close()
    store.open()
    assert store.drives.names() == {"one"}
    path = store.drives.attach("one", SIZE, 0)
    assert (path / "kept").read_text() == "here"
    assert (path / "lost+found").is_dir()


def test_a_view_is_of_its_moment_and_goes_with_its_machine(store: Store) -> None:
    drives = store.drives
    drives.create("one", SIZE)
    file = drives.attach("one", SIZE, 0) / "f"
    file.write_text("before")
    if not drives.copies_in_use:
        for attempt in (lambda: drives.view("one", "m1-0"), lambda: drives.copy("one", "two", SIZE)):
            with pytest.raises(ConflictError) as busy:
                attempt()
            assert busy.value.code == "drive_attached"
        assert drives.viewers() == set()
        drives.detach("one")
    seen = drives.view("one", "m1-0")
    drives.view("one", "m1-1")
    drives.view("one", "m10-0")
    (drives.attach("one", SIZE, 0) / "f").write_text("after")
    assert (seen / "f").read_text() == "before"
    assert drives.viewers() == {"m1", "m10"}
    for _ in range(2):
        drives.remove_views("m1")
    assert drives.viewers() == {"m10"}
    drives.remove_views("m10")
    # The layers' store takes none of this for layers.
    assert store.layers.names() == set()


def test_a_copy_needs_nothing_of_what_it_came_from(store: Store) -> None:
    drives = store.drives
    drives.create("one", 40 * MIB)
    path = drives.attach("one", 40 * MIB, 0)
    assert fill(path / "a", 20 * MIB) == 0
    drives.detach("one")
    store.layers.sync()
    inherited = drives.copy("one", "two", 40 * MIB)
    drives.remove("one")
    drives.remove("one")
    assert drives.names() == {"two"}
    copy = drives.attach("two", 40 * MIB, inherited)
    assert (copy / "a").stat().st_size == 20 * MIB
    # What it came with counts.
    assert fill(copy / "b", 30 * MIB) in FULL
    store.layers.sync()
    assert drives.used("two", inherited) >= 20 * MIB
    drives.detach("two")


@pytest.mark.parametrize("disk", [False, True], ids=["tree", "disk"])
@pytest.mark.parametrize("step", ["create", "copy"])
def test_one_that_was_not_finished_is_not_there(store: Store, monkeypatch: pytest.MonkeyPatch, step: str, disk: bool) -> None:
    drives, one, new = store.drives, name_of("one", disk=disk), name_of("new", disk=disk)
    drives.create(one, SIZE)
    # A process that ends here runs nothing that would tidy up.
    for module, name in ((kernel, "btrfs_delete_subvolume"), (Path, "unlink"), (shutil, "rmtree")):
        monkeypatch.setattr(module, name, lambda *_, **__: None)

    def die(*_: object) -> None:
        raise InterruptedError("as when the process ends here")

    monkeypatch.setattr(Path, "rename", die)
    with pytest.raises(InterruptedError):
        drives.create(new, SIZE) if step == "create" else drives.copy(one, new, SIZE)
    monkeypatch.undo()
    assert list(store.directory.parent.rglob(f"{UNFINISHED}*")) != []
    store.close()
    store.open()
    assert store.drives.names() == {one}
    assert list(store.directory.parent.rglob(f"{UNFINISHED}*")) == []
    store.drives.create(new, SIZE)


def test_a_disk_is_a_file_of_its_size_and_holds_what_is_written(store: Store) -> None:
    drives = store.drives
    drives.create("one.disk", SIZE)
    file = drives.attach("one.disk", SIZE, 0)
    assert SIZE - SIZE // 32 <= file.stat().st_size <= SIZE
    before = drives.used("one.disk", 0)
    assert before < 8 * MIB
    # All of it may be written again while others see what was there.
    for number in range(2):
        if drives.copies_in_use:
            drives.view("one.disk", f"m1-{number}.disk")
        with file.open("r+b") as disk:
            disk.seek(16 * MIB)
            disk.write(os.urandom(40 * MIB))
            os.fsync(disk.fileno())
    store.layers.sync()
    assert before + 40 * MIB <= drives.used("one.disk", 0) <= SIZE
    drives.detach("one.disk")
    drives.remove_views("m1")


def test_a_nearly_full_host_refuses_new_drives(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.drives.create("one", SIZE)
    monkeypatch.setattr(storage, "MIN_FREE_BYTES", 1 << 60)
    for attempt in (lambda: store.drives.create("two", SIZE), lambda: store.drives.copy("one", "two", SIZE)):
        with pytest.raises(UnavailableError) as refused:
            attempt()
        assert refused.value.code == "disk_full"
    assert store.drives.names() == {"one"}


def test_one_who_writes_leaves_half_of_the_host_to_others(store: Store) -> None:
    huge = 1024**4
    store.drives.create("one", huge)
    path = store.drives.attach("one", huge, 0)
    if isinstance(store.drives, Ext4Drives):
        total = kernel.run(["df", "--output=size", "-B1", str(path)]).split()[-1]
        free = kernel.run(["df", "--output=avail", "-B1", str(path.parent)]).split()[-1]
        assert int(total) <= int(free)
    else:
        limit = int(kernel.run(["btrfs", "qgroup", "show", "--raw", "-r", "-f", str(path)]).split()[-2])
        assert 0 < limit < huge
    store.drives.detach("one")
