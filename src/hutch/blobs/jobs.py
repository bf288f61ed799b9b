"""What a packer is asked to do and what comes of it, as values; and how they travel.

in    job (length, MessagePack), then pieces of the input (length, bytes), a length of 0 at its end
out   pieces (`D`, length, bytes), then the result (`R`) or an error (`E`) as MessagePack
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import msgspec

LENGTH = struct.Struct(">I")
FRAME = struct.Struct(">cI")

Reached = Callable[[str], None]
"""Told of every step, so that tests can end it there."""


def nothing(step: str) -> None:
    """For those who don't care."""


class StoreSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Where blobs are: a `file://` or `s3://` URL. `attempts` counts the first one, pauses grow from `pause_s`."""

    url: str
    endpoint: str | None = None
    region: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = None
    concurrency: int = 4
    attempts: int = 6
    pause_s: float = 0.5
    timeout_s: float = 60.0


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What a manifest says of its snapshot besides the tree."""

    snapshot_id: str
    parent_id: str | None
    image: str
    created_at: int
    size_bytes: int


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot that is in a store: its manifest, what that holds, and what had to be written for it."""

    manifest: str
    files: int
    bytes: int
    chunks: int
    written: int


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """A copy that is whole. `compared`: it was compared with the local tree, and is the same."""

    manifest: str
    files: int
    bytes: int
    compared: bool


class Collected(msgspec.Struct, frozen=True, kw_only=True):
    """What a collection removed, and what it found needed."""

    manifests: int
    chunks: int
    kept: int


class Job(msgspec.Struct, frozen=True, kw_only=True, tag_field="job"):
    """Base of all. `patient`: nobody waits for it."""

    @property
    def patient(self) -> bool:
        return False


class StoreJob(Job, frozen=True, kw_only=True, tag="store"):
    """A sealed tree into the store → `Stored`."""

    store: StoreSpec
    about: About
    tree: str
    grace_s: float

    @property
    def patient(self) -> bool:
        return True


class RestoreJob(Job, frozen=True, kw_only=True, tag="restore"):
    """A snapshot out of the store, into a tree that is not there yet → `Done`."""

    store: StoreSpec
    snapshot_id: str
    manifest: str
    tree: str


class VerifyJob(Job, frozen=True, kw_only=True, tag="verify"):
    """A snapshot in the store, compared with its tree where there is one → `Verified`."""

    store: StoreSpec
    snapshot_id: str
    manifest: str
    tree: str | None


class ForgetJob(Job, frozen=True, kw_only=True, tag="forget"):
    """A snapshot's pointer → `Done`."""

    store: StoreSpec
    snapshot_id: str


class CollectJob(Job, frozen=True, kw_only=True, tag="collect"):
    """What nobody needs → `Collected`."""

    store: StoreSpec
    grace_s: float

    @property
    def patient(self) -> bool:
        return True


class ExportJob(Job, frozen=True, kw_only=True, tag="export"):
    """A sealed tree as a tar, or with `oci` as an OCI image layout in one, in the output → `Done`."""

    tree: str
    about: About
    oci: bool
    max_bytes: int


class ImportJob(Job, frozen=True, kw_only=True, tag="import"):
    """A tar from the input into a tree that is not there yet → `Done`."""

    tree: str
    max_bytes: int
    max_files: int


class SendJob(Job, frozen=True, kw_only=True, tag="send"):
    """A sealed tree as a stream (`hutch.blobs.stream`) in the output → `Done`."""

    tree: str


class ReceiveJob(Job, frozen=True, kw_only=True, tag="receive"):
    """Such a stream from the input into a tree that is not there yet → `Done`."""

    tree: str
    max_bytes: int
    max_files: int


class Done(msgspec.Struct, frozen=True):
    """It was done; how many entries it was about, where that is known."""

    files: int = 0


AnyJob = StoreJob | RestoreJob | VerifyJob | ForgetJob | CollectJob | ExportJob | ImportJob | SendJob | ReceiveJob
Result = Stored | Verified | Collected | Done


class Failed(msgspec.Struct, frozen=True):
    """A `HutchError` on its way."""

    status: int
    code: str
    message: str
