"""Writable layers on real file systems: bounded, separate, removed without a trace."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hutch.errors import UnavailableError
from hutch.host import kernel, storage
from hutch.host.storage import BtrfsLayers, Ext4Layers, Source, WritableLayers
from tests.conftest import wait_until
from tests.search import files_with

MIB = 1024 * 1024
pytestmark = pytest.mark.root


@pytest.fixture(params=[BtrfsLayers, Ext4Layers])
def layers(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[WritableLayers]:
    make: Callable[[Path], WritableLayers] = request.param
    store = make(tmp_path / "store")
    store.open()
    yield store
    store.close()


def fill(path: Path, limit: int) -> int:
    """Write until it is refused; the error number, 0 when `limit` bytes went in."""
    written = 0
    try:
        with path.open("wb", buffering=0) as file:
            while written < limit:
                written += file.write(os.urandom(MIB))
                os.fsync(file.fileno())
    except OSError as error:
        return error.errno or -1
    return 0


def test_a_layer_takes_what_it_may_and_no_more(layers: WritableLayers) -> None:
    layer = layers.create("one", 24 * MIB)
    assert fill(layer / "u" / "small", 8 * MIB) == 0
    assert fill(layer / "u" / "large", 64 * MIB) in (errno.EDQUOT, errno.ENOSPC)
    other = layers.create("two", 24 * MIB)
    assert fill(other / "u" / "small", 8 * MIB) == 0


def test_what_a_layer_holds_follows_files_that_come_and_go(layers: WritableLayers) -> None:
    layer = layers.create("one", 64 * MIB)
    layers.create("two", 64 * MIB)
    empty = layers.held("one")
    assert empty < MIB
    (layer / "u" / "file").write_bytes(os.urandom(20 * MIB))
    layers.sync()
    kernel.sync_file_system(layer)
    assert 20 * MIB <= layers.held("one") - empty < 21 * MIB
    assert layers.held("two") < MIB
    (layer / "u" / "file").unlink()

    # A file that was removed is given back behind the call.
    def given_back() -> bool:
        kernel.sync_file_system(layer)
        return layers.held("one") < MIB

    wait_until(given_back, 30.0, lambda: f"{layers.held('one')} bytes are still held")
    layers.remove("one")
    assert layers.held("one") == layers.held("never") == 0


def test_what_a_snapshot_holds_is_not_the_layers_that_begin_with_it(tmp_path: Path) -> None:
    store = BtrfsLayers(tmp_path / "store")
    store.open()
    try:
        first = store.create("one", 64 * MIB)
        (first / "u" / "file").write_bytes(os.urandom(20 * MIB))
        store.sync()
        store.seal("one", "kept")
        size = store.size("kept", 0)
        second = store.create("two", 64 * MIB, Source("kept", size))
        (second / "u" / "own").write_bytes(os.urandom(2 * MIB))
        store.sync()
        assert 20 * MIB <= size < 21 * MIB
        assert 2 * MIB <= store.held("two") < 3 * MIB
        assert store.held("one") == 0, "it is a snapshot now"
    finally:
        store.close()


def test_nothing_of_what_was_removed_is_left_in_the_stores_files(layers: WritableLayers, tmp_path: Path) -> None:
    canary = b"canary-5c1e" * 20
    kept = layers.create("kept", 64 * MIB)
    for name in ("one", "two"):
        layer = layers.create(name, 64 * MIB)
        (layer / "u" / "small").write_bytes(canary)
        (layer / "u" / "large").write_bytes(canary * 50_000)
        (layer / "u" / canary.decode()[:100]).mkdir()
    (kept / "u" / "mine").write_bytes(b"mine" * 1000)
    layers.sync()
    layers.seal("two", "snap_two")
    assert files_with(tmp_path, canary[:11]), "the search must find what is there"
    layers.remove("one")
    layers.remove_snapshot("snap_two")
    layers.scrub()
    assert files_with(tmp_path, canary[:11]) == []
    assert (kept / "u" / "mine").read_bytes() == b"mine" * 1000


def test_removing_leaves_nothing(layers: WritableLayers, tmp_path: Path) -> None:
    layers.create("one", 32 * MIB)
    layers.create("two", 32 * MIB)
    assert layers.names() == {"one", "two"}
    layers.remove("one")
    layers.remove("one")
    assert layers.names() == {"two"}
    layers.remove("two")
    layers.close()
    assert kernel.mounts_below(tmp_path) == []


def test_a_store_is_opened_again_with_its_layers(tmp_path: Path) -> None:
    first = BtrfsLayers(tmp_path / "store")
    first.open()
    (first.create("one", 32 * MIB) / "u" / "file").write_text("kept")
    first.close()
    again = BtrfsLayers(tmp_path / "store")
    again.open()
    try:
        assert (again.path("one") / "u" / "file").read_text() == "kept"
    finally:
        again.close()


def test_a_store_whose_making_was_interrupted_is_made_anew(tmp_path: Path) -> None:
    store = BtrfsLayers(tmp_path / "store")
    store.directory.mkdir()
    store.image.write_bytes(b"half of a file system")
    store.open()
    try:
        store.create("one", 32 * MIB)
    finally:
        store.close()


def test_the_guests_root_directory_has_the_usual_mode(layers: WritableLayers) -> None:
    before = os.umask(0o077)
    try:
        layer = layers.create("one", 32 * MIB)
    finally:
        os.umask(before)
    assert (layer / "u").stat().st_mode & 0o777 == 0o755


def test_a_nearly_full_host_refuses_new_layers(layers: WritableLayers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "MIN_FREE_BYTES", 1 << 60)
    with pytest.raises(UnavailableError) as refused:
        layers.create("one", 32 * MIB)
    assert refused.value.code == "disk_full"
    assert layers.names() == set()


def test_ext4_serves_where_btrfs_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    assert storage.choose(tmp_path).kind == "ext4"


def test_a_sealed_layer_begins_others(layers: WritableLayers) -> None:
    first = layers.create("one", 64 * MIB)
    (first / "u" / "kept").write_bytes(b"x" * MIB)
    layers.seal("one", "snap")
    layers.seal("one", "snap")
    assert (layers.names(), layers.snapshots()) == (set(), {"snap"})
    layers.sync()
    size = layers.size("snap", 0)
    assert size >= MIB
    copies = [layers.create(name, 64 * MIB, Source("snap", size)) for name in ("two", "three")]
    (copies[0] / "u" / "kept").write_bytes(b"y")
    assert (copies[1] / "u" / "kept").read_bytes() == b"x" * MIB
    assert list((copies[0] / "w").iterdir()) == []
    # What began with it does not need it.
    layers.remove_snapshot("snap")
    layers.remove_snapshot("snap")
    assert (copies[1] / "u" / "kept").read_bytes() == b"x" * MIB
    layers.seal("two", "next")
    layers.sync()
    assert layers.size("next", size) >= (size if isinstance(layers, BtrfsLayers) else 1)
    layers.remove_snapshot("next")


def test_layers_and_snapshots_that_there_are_not(layers: WritableLayers) -> None:
    with pytest.raises(FileNotFoundError):
        layers.create("one", 32 * MIB, Source("none", 0))
    with pytest.raises(FileNotFoundError):
        layers.seal("none", "snap")
    assert (layers.names(), layers.snapshots()) == (set(), set())


def test_what_was_inherited_counts(layers: WritableLayers) -> None:
    first = layers.create("one", 40 * MIB)
    assert fill(first / "u" / "a", 20 * MIB) == 0
    layers.seal("one", "snap")
    layers.sync()
    second = layers.create("two", 40 * MIB, Source("snap", layers.size("snap", 0)))
    assert fill(second / "u" / "b", 30 * MIB) in (errno.EDQUOT, errno.ENOSPC)
    layers.remove_snapshot("snap")


def test_snapshots_outlive_the_store(tmp_path: Path) -> None:
    for make in (BtrfsLayers, Ext4Layers):
        store = make(tmp_path / make.__name__)
        store.open()
        (store.create("one", 32 * MIB) / "u" / "kept").write_text("here")
        store.seal("one", "snap")
        store.close()
        again = make(tmp_path / make.__name__)
        again.open()
        assert again.snapshots() == {"snap"}
        layer = again.create("two", 32 * MIB, Source("snap", 0))
        assert (layer / "u" / "kept").read_text() == "here"
        again.close()
        if isinstance(again, Ext4Layers):
            assert again.names() == set()


def test_only_btrfs_copies_what_is_in_use(layers: WritableLayers) -> None:
    layer = layers.create("one", 32 * MIB)
    with (layer / "u" / "open").open("wb") as file:
        file.write(b"before")
        file.flush()
        if isinstance(layers, Ext4Layers):
            with pytest.raises(NotImplementedError):
                layers.copy("one", "snap", 0)
            return
        layers.copy("one", "snap", 0)
        file.write(b"after")
    copy = layers.create("two", 32 * MIB, Source("snap", 0))
    assert (copy / "u" / "open").read_bytes() == b"before"
    layers.remove_snapshot("snap")


def test_a_guest_s_tmp_is_a_directory_of_the_layer_whatever_the_guest_made_of_it(layers: WritableLayers, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    first = layers.create("one", 32 * MIB)
    assert (first / "u" / "tmp").stat().st_mode & 0o7777 == 0o1777
    assert [path.name for path in (first / "u" / "tmp").iterdir()] == [storage.TMP_MARK]
    shutil.rmtree(first / "u" / "tmp")
    (first / "u" / "tmp").symlink_to(outside)
    layers.seal("one", "snap")
    second = layers.create("two", 32 * MIB, Source("snap", 0))
    assert (second / "u" / "tmp").is_symlink()
    assert list(outside.iterdir()) == []
    (second / "u" / "tmp").unlink()
    (second / "u" / "tmp").mkdir()
    (second / "u" / "tmp" / storage.TMP_MARK).symlink_to(outside / "made")
    layers.seal("two", "next")
    layers.create("three", 32 * MIB, Source("next", 0))
    assert list(outside.iterdir()) == []


def test_a_snapshot_is_read_without_being_changed(layers: WritableLayers, tmp_path: Path) -> None:
    (layers.create("one", 64 * MIB) / "u" / "kept").write_bytes(b"here")
    layers.seal("one", "snap")
    assert layers.holds("snap")
    assert not layers.holds("none")
    with layers.reading("snap") as one, layers.reading("snap") as other:
        assert (one / "kept").read_bytes() == (other / "kept").read_bytes() == b"here"
        before = (one / "kept").stat().st_atime_ns
    with layers.reading("snap") as again:
        assert (again / "kept").stat().st_atime_ns == before
    with pytest.raises(FileNotFoundError), layers.reading("none"):
        pass
    assert layers.names() == set()
    layers.remove_snapshot("snap")


def test_what_a_reader_left_that_died_is_unmounted(tmp_path: Path) -> None:
    store = Ext4Layers(tmp_path / "store")
    store.open()
    store.create("one", 64 * MIB)
    store.seal("one", "snap")
    reading = store.reading("snap")
    reading.__enter__()
    assert len(kernel.mounts_below(tmp_path)) == 1
    Ext4Layers(tmp_path / "store").open()
    assert kernel.mounts_below(tmp_path) == []
    with pytest.raises(FileNotFoundError):
        reading.__exit__(None, None, None)
    store.remove_snapshot("snap")
    store.close()
