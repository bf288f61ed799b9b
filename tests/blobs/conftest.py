"""Stores and trees for tests of blobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from hutch.blobs.jobs import About, StoreSpec
from hutch.blobs.store import BlobStore


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    """A store in a directory."""
    return BlobStore(StoreSpec(url=f"file://{tmp_path}/blobs", attempts=1))


def about(snapshot_id: str = "snap_a") -> About:
    return About(snapshot_id=snapshot_id, parent_id=None, image="base@sha256:00", created_at=1, size_bytes=1)
