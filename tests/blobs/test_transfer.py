"""Snapshots into a store and out of it: whole or refused, and nothing left that nobody needs."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard

from hutch.blobs import transfer
from hutch.blobs.jobs import Collected
from hutch.blobs.manifest import Damaged, Ref, digest_of, encode
from hutch.blobs.store import BlobStore
from hutch.blobs.transfer import collect, restore, store, verify
from hutch.errors import UnavailableError
from tests.blobs.conftest import about
from tests.blobs.trees import seen

pytestmark = pytest.mark.root

MIB = 1024 * 1024


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """One large file, some small ones."""
    return planted(tmp_path / "tree", 1)


def planted(tree: Path, seed: int) -> Path:
    generator = random.Random(seed)
    (tree / "d").mkdir(parents=True)
    (tree / "large").write_bytes(generator.randbytes(3 * MIB + 17))
    for number in range(40):
        (tree / "d" / f"{number}").write_bytes(generator.randbytes(20_000))
    os.link(tree / "large", tree / "d" / "linked")
    (tree / "s").symlink_to("/etc/passwd")
    return tree


def objects(blobs: BlobStore, kind: str = "") -> list[Path]:
    assert blobs.directory is not None
    return sorted(path for path in (blobs.directory / kind).rglob("*") if path.is_file())


def test_what_was_stored_is_restored(blobs: BlobStore, tree: Path, tmp_path: Path) -> None:
    stored = store(tree, about(), blobs)
    assert (blobs.snapshots(), blobs.pointer("snap_a")) == (["snap_a"], stored.manifest)
    manifest = restore(blobs, "snap_a", stored.manifest, tmp_path / "copy")
    assert seen(tmp_path / "copy") == seen(tree)
    assert (manifest.image, manifest.files) == ("base@sha256:00", stored.files)
    checked = verify(blobs, "snap_a", stored.manifest, tree)
    assert (checked.compared, checked.bytes) == (True, 3 * MIB + 17 + 40 * 20_000)


def test_what_is_there_is_not_written_again(blobs: BlobStore, tree: Path) -> None:
    first = store(tree, about(), blobs)
    again = store(tree, about("snap_b"), blobs)
    assert (first.written, again.written) == (first.chunks, 0)
    (tree / "d" / "new").write_bytes(b"new")
    # The group that it is in, and the entries.
    assert store(tree, about("snap_c"), blobs).written <= 3


def test_a_tree_that_changed_is_another(blobs: BlobStore, tree: Path) -> None:
    stored = store(tree, about(), blobs)
    with (tree / "large").open("r+b") as file:
        file.seek(MIB)
        file.write(b"!")
    with pytest.raises(Damaged, match="differ"):
        verify(blobs, "snap_a", stored.manifest, tree)
    with pytest.raises(Damaged, match="is of"):
        verify(blobs, "snap_b", stored.manifest, None)


def _flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _other(path: Path) -> None:
    path.write_bytes(zstandard.compress(b"x" * 10))


def _bomb(path: Path) -> None:
    path.write_bytes(zstandard.compress(bytes(1 << 30)))


def _append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


@pytest.mark.parametrize("harm", [Path.unlink, _flip, _cut, _other, _bomb, _append, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("kind", ["chunks", "manifests"])
def test_damage_of_any_object_is_refused(
    blobs: BlobStore, tree: Path, tmp_path: Path, kind: str, harm: Callable[[Path], None]
) -> None:
    stored = store(tree, about(), blobs)
    kept = {path: path.read_bytes() for path in objects(blobs, kind)}
    assert kept
    for number, (path, content) in enumerate(kept.items()):
        harm(path)
        with pytest.raises(Damaged):
            restore(blobs, "snap_a", stored.manifest, tmp_path / f"copy{number}")
        with pytest.raises(Damaged):
            verify(blobs, "snap_a", stored.manifest, None)
        path.write_bytes(content)
    restore(blobs, "snap_a", stored.manifest, tmp_path / "copy")
    assert seen(tmp_path / "copy") == seen(tree)


@pytest.mark.parametrize("harm", [_flip, _cut, lambda path: path.write_bytes(b"../" * 20)])
def test_a_damaged_pointer_is_refused(blobs: BlobStore, tree: Path, harm: Callable[[Path], None]) -> None:
    stored = store(tree, about(), blobs)
    [pointer] = objects(blobs, "snapshots")
    pointer.write_bytes(b"G" * 64)
    with pytest.raises(Damaged):
        blobs.pointer("snap_a")
    pointer.write_bytes(stored.manifest.encode())
    harm(pointer)
    try:
        name = blobs.pointer("snap_a")
    except Damaged:
        return
    # A digit became another one: the name of nothing.
    assert name is not None
    with pytest.raises(Damaged, match="missing"):
        verify(blobs, "snap_a", name, None)


@pytest.mark.parametrize("field", ["files", "data_bytes"])
def test_a_manifest_that_does_not_count_right_is_damage(blobs: BlobStore, tree: Path, field: str) -> None:
    manifest = blobs.get_manifest(store(tree, about(), blobs).manifest)
    lies = msgspec.structs.replace(manifest, **{field: getattr(manifest, field) + 1})
    with pytest.raises(Damaged, match="count"):
        verify(blobs, "snap_a", blobs.put_manifest(encode(lies)), None)


@pytest.mark.parametrize("name", ["../snap_a", "snap_", "snap_a/b", "x" * 300, ""])
def test_only_ids_of_snapshots_become_names(blobs: BlobStore, name: str) -> None:
    for call in (blobs.pointer, blobs.forget):
        with pytest.raises(Damaged):
            call(name)
    with pytest.raises(Damaged):
        blobs.get_manifest(name)


def test_a_full_store_says_so(blobs: BlobStore, tree: Path) -> None:
    assert blobs.directory is not None
    shutil.rmtree(blobs.directory)
    blobs.directory.write_text("no directory")
    with pytest.raises(UnavailableError, match="does not answer as it should"):
        store(tree, about(), blobs)


# -- deaths ------------------------------------------------------------------------------------------


class Died(BaseException):
    """As when the process ends here."""


def dies_at(wanted: int) -> tuple[Callable[[str], None], list[str]]:
    """A seam that ends the work at its n-th step; the steps that it saw."""
    steps: list[str] = []

    def reached(step: str) -> None:
        steps.append(step)
        if len(steps) == wanted + 1:
            raise Died(step)

    return reached, steps


def steps_of(work: Callable[[Callable[[str], None]], object]) -> int:
    reached, steps = dies_at(-2)
    work(reached)
    return len(steps)


def test_an_upload_that_dies_anywhere_goes_on_and_leaves_nothing(blobs: BlobStore, tree: Path, tmp_path: Path) -> None:
    steps = steps_of(lambda reached: store(tree, about(), blobs, concurrency=1, reached=reached))
    whole = len(objects(blobs))
    assert steps == whole - 2 + 3
    for step in range(steps):
        blobs.forget("snap_a")
        collect(blobs, 0)
        assert objects(blobs) == []
        reached, seen_steps = dies_at(step)
        with pytest.raises(Died):
            store(tree, about(), blobs, concurrency=1, reached=reached)
        # It is in the store from its last step on, and not before.
        in_store = blobs.pointer("snap_a") is not None
        assert in_store == (seen_steps[-1] == "pointer")
        there = len(objects(blobs, "chunks"))
        stored = store(tree, about(), blobs)
        assert (stored.written, len(objects(blobs))) == (stored.chunks - there, whole)
        assert verify(blobs, "snap_a", stored.manifest, tree).compared


def test_a_restore_that_dies_anywhere_begins_anew(blobs: BlobStore, tree: Path, tmp_path: Path) -> None:
    stored = store(tree, about(), blobs)
    (tmp_path / "first").mkdir()
    steps = steps_of(lambda reached: restore(blobs, "snap_a", stored.manifest, tmp_path / "first" / "tree", reached=reached))
    assert steps > 40
    for step in range(0, steps, 3):
        place = tmp_path / f"copy{step}"
        place.mkdir()
        reached, _ = dies_at(step)
        with pytest.raises(Died):
            restore(blobs, "snap_a", stored.manifest, place / "tree", reached=reached)
        shutil.rmtree(place)
    assert seen(tmp_path / "first" / "tree") == seen(tree)


def test_a_collection_that_dies_anywhere_removes_nothing_that_is_needed(blobs: BlobStore, tree: Path, tmp_path: Path) -> None:
    other = planted(tmp_path / "other", 2)

    def garbage() -> None:
        store(other, about("snap_b"), blobs)
        blobs.forget("snap_b")

    kept = store(tree, about(), blobs)
    whole = len(objects(blobs))
    garbage()
    steps = steps_of(lambda reached: collect(blobs, 0, reached=reached))
    assert steps > 5
    for step in range(steps):
        garbage()
        reached, _ = dies_at(step)
        with pytest.raises(Died):
            collect(blobs, 0, reached=reached)
        verify(blobs, "snap_a", kept.manifest, tree)
        collect(blobs, 0)
        assert len(objects(blobs)) == whole
    verify(blobs, "snap_a", kept.manifest, tree)


# -- collecting --------------------------------------------------------------------------------------


def test_only_what_is_old_and_needed_by_nobody_is_collected(blobs: BlobStore, tree: Path, tmp_path: Path) -> None:
    first = store(tree, about(), blobs)
    other = store(planted(tmp_path / "other", 2), about("snap_b"), blobs)
    assert collect(blobs, 0) == Collected(manifests=0, chunks=0, kept=first.chunks + other.chunks)
    blobs.forget("snap_b")
    blobs.forget("snap_b")
    assert collect(blobs, 3600).chunks == 0
    assert collect(blobs, 0) == Collected(manifests=1, chunks=other.chunks, kept=first.chunks)
    verify(blobs, "snap_a", first.manifest, tree)
    blobs.forget("snap_a")
    collect(blobs, 0)
    assert objects(blobs) == []


def test_nothing_is_collected_while_a_manifest_can_not_be_read(blobs: BlobStore, tree: Path, tmp_path: Path) -> None:
    store(tree, about(), blobs)
    store(planted(tmp_path / "other", 2), about("snap_b"), blobs)
    blobs.forget("snap_b")
    before = objects(blobs)
    for path in objects(blobs, "manifests"):
        _flip(path)
    with pytest.raises(Damaged):
        collect(blobs, 0)
    assert objects(blobs) == before


def test_a_collection_beside_an_upload_takes_nothing_from_it(
    blobs: BlobStore, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an upload found in the store is old and has no pointer: it is young again before a collection looks at it."""
    store(tree, about(), blobs)
    blobs.forget("snap_a")
    for path in objects(blobs):
        os.utime(path, (1_000_000_000, 1_000_000_000))

    def collects(step: str) -> None:
        # Not in between: what the upload has not asked for yet may go, and is then written.
        if step in ("chunks", "manifest"):
            collect(blobs, 3600)

    stored = store(tree, about("snap_b"), blobs, grace_s=3600, reached=collects)
    assert stored.written == stored.chunks
    assert verify(blobs, "snap_b", stored.manifest, tree).compared


def test_an_upload_that_took_long_looks_again(blobs: BlobStore, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = 0
    send_all = transfer._send_all

    def counted(*given: Any) -> Any:
        nonlocal times
        times += 1
        return send_all(*given)

    monkeypatch.setattr(transfer, "_send_all", counted)
    store(tree, about(), blobs, grace_s=3600)
    assert times == 1
    store(tree, about(), blobs, grace_s=0.000001)
    assert times == 3


def test_old_chunks_are_young_after_they_were_put(blobs: BlobStore) -> None:
    ref = Ref(digest_of(b"x"), 1)
    assert blobs.put(ref, b"x")
    assert not blobs.put(ref, b"x", timedelta(hours=1))
    [path] = objects(blobs)
    os.utime(path, (1_000_000_000, 1_000_000_000))
    assert not blobs.put(ref, b"x")
    assert blobs.put(ref, b"x", timedelta(hours=1))
    assert blobs.get(ref) == b"x"
