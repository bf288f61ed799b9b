"""A store in a real S3 server, also over a network that breaks: an upload ends whole, a restore is right or refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hutch.blobs.manifest import Damaged
from hutch.blobs.store import BlobStore
from hutch.blobs.transfer import collect, restore, store, verify
from hutch.errors import UnavailableError
from tests.blobs.conftest import about
from tests.blobs.s3 import FAULTS, S3, Faults, faulty, serving
from tests.blobs.test_transfer import planted
from tests.blobs.trees import seen

pytestmark = pytest.mark.root


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[S3]:
    with serving(tmp_path / "s3") as server:
        yield server


def test_there_and_back(s3: S3, tmp_path: Path) -> None:
    blobs, tree = BlobStore(s3.spec()), planted(tmp_path / "tree", 1)
    assert blobs.pointer("snap_a") is None
    stored = store(tree, about(), blobs)
    assert store(tree, about("snap_b"), blobs).written == 0
    assert sorted(blobs.snapshots()) == ["snap_a", "snap_b"]
    assert len(s3.objects("chunks")) == stored.chunks
    restore(blobs, "snap_a", stored.manifest, tmp_path / "copy")
    assert seen(tmp_path / "copy") == seen(tree)
    for name in ("snap_a", "snap_b", "snap_none"):
        blobs.forget(name)
    assert collect(blobs, 3600).chunks == 0
    assert (collect(blobs, 0).chunks, s3.objects()) == (stored.chunks, [])


def test_an_object_that_was_cut_or_lost_is_refused(s3: S3, tmp_path: Path) -> None:
    blobs, tree = BlobStore(s3.spec()), planted(tmp_path / "tree", 1)
    stored = store(tree, about(), blobs)
    chunk, *_, last = s3.objects("chunks")
    os.truncate(chunk, 100)
    with pytest.raises(Damaged):
        restore(blobs, "snap_a", stored.manifest, tmp_path / "copy")
    chunk.unlink()
    last.write_bytes(last.read_bytes()[::-1])
    with pytest.raises(Damaged):
        verify(blobs, "snap_a", stored.manifest, None)


@pytest.mark.parametrize("kind", [*FAULTS, "all"])
def test_over_a_network_that_breaks(s3: S3, tmp_path: Path, kind: str) -> None:
    faults = Faults(7, 0.3, FAULTS if kind == "all" else (kind,))
    tree = planted(tmp_path / "tree", 1)
    with faulty(s3.port, faults) as port:
        blobs = BlobStore(s3.spec(port=port, attempts=12))
        stored = store(tree, about(), blobs)
        restore(blobs, "snap_a", stored.manifest, tmp_path / "copy")
    assert seen(tmp_path / "copy") == seen(tree)
    assert faults.happened.total() - faults.happened["none"] >= 3, faults.happened
    # And what is there is right, seen without the proxy.
    assert verify(BlobStore(s3.spec()), "snap_a", stored.manifest, tree).compared
    assert len(s3.objects("chunks")) == stored.chunks


def test_a_server_that_never_answers_right_is_given_up_and_gone_on_with(s3: S3, tmp_path: Path) -> None:
    tree = planted(tmp_path / "tree", 1)
    with faulty(s3.port, Faults(3, 0.6)) as port:
        broken = BlobStore(s3.spec(port=port, attempts=2))
        with pytest.raises(UnavailableError, match="does not answer as it should"):
            store(tree, about(), broken)
    there = len(s3.objects("chunks"))
    blobs = BlobStore(s3.spec())
    assert blobs.pointer("snap_a") is None
    stored = store(tree, about(), blobs)
    assert stored.written == stored.chunks - there


def test_wrong_keys_are_told(s3: S3) -> None:
    blobs = BlobStore(s3.spec(secret_access_key="wrong", attempts=1))
    with pytest.raises(UnavailableError) as refused:
        blobs.pointer("snap_a")
    assert "wrong" not in refused.value.message
