# Written by scripts/write_sync_client.py from `_async/snapshots.py`; change that one.
"""Snapshots of sandboxes' files."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any

from hutch.client import paths
from hutch.client._sync.transport import Http
from hutch.client.models import Snapshot, SnapshotOnly, SnapshotPage, SnapshotTaken, SnapshotTree, SnapshotVerified
from hutch.client.wire import decode

TAKE_TIMEOUT_S = 120.0
PAGE = 50
_OWN = f"{paths.OWN}/snapshots"


class Snapshots:
    def __init__(self, http: Http) -> None:
        self._http = http

    def take(
        self, session_id: str, *, expiration_ms: int | None = None, keep_running: bool = False, memory: bool = False
    ) -> SnapshotTaken:
        """Keep the files of a running session, and its memory if that is wanted; it ends with that unless it is kept running."""
        body: dict[str, Any] = {"keepRunning": keep_running, "memory": memory}
        if expiration_ms is not None:
            body["expiration"] = expiration_ms
        path = f"{paths.session(session_id)}/snapshot"
        return self._http.call("POST", path, SnapshotTaken, body=body, timeout_s=TAKE_TIMEOUT_S)

    def get(self, snapshot_id: str) -> Snapshot:
        return (self._http.call("GET", f"{paths.SNAPSHOTS}/{paths.snapshot_id(snapshot_id)}", SnapshotOnly)).snapshot

    def all(self, sandbox: str | None = None, **query: str) -> Generator[Snapshot, None, None]:
        """Every snapshot of the project, or of one sandbox, newest first; deleted ones too. `query` as the API has it."""
        query = {"limit": str(PAGE), **query}
        if sandbox is not None:
            query["name"] = sandbox
        if self._http.server.project_id:
            query["project"] = self._http.server.project_id
        for page in self._http.pages(paths.SNAPSHOTS, SnapshotPage, query):
            for snapshot in page.snapshots:
                yield snapshot

    def tree(self, snapshot_id: str, *, descendants: bool = False) -> SnapshotTree:
        """What a snapshot came from, nearest first, or what came from it."""
        query = {"snapshotId": paths.snapshot_id(snapshot_id), "sortOrder": "asc" if descendants else "desc"}
        if self._http.server.project_id:
            query["project"] = self._http.server.project_id
        return self._http.call("GET", f"{paths.SNAPSHOTS}/tree", SnapshotTree, query=query)

    def verify(self, snapshot_id: str) -> SnapshotVerified:
        """Check a snapshot's copy in the blob store. Raises `ConflictError` (`snapshot_damaged`, `snapshot_not_stored`)."""
        path = f"{_OWN}/{paths.snapshot_id(snapshot_id)}/verify"
        return self._http.call("POST", path, SnapshotVerified, timeout_s=None, safe=True)

    def export(self, snapshot_id: str, form: str = "tar") -> Generator[bytes, None, None]:
        """A snapshot as a tar, or (`oci`) as an OCI image layout in one. Raises `UnavailableError` rather than end early."""
        with self._http.open("GET", f"{_OWN}/{paths.snapshot_id(snapshot_id)}/export", query={"format": form}) as response:
            for chunk in response.iter_bytes():
                yield chunk

    def load(self, archive: Iterable[bytes], image: str | None = None) -> Snapshot:
        """A new snapshot of the project from a tar, over an image (default: the server's)."""
        query = self._http.project() | ({"image": image} if image is not None else {})
        headers = [(b"content-type", b"application/x-tar")]
        with self._http.open("POST", _OWN, content=archive, headers=headers, query=query) as response:
            return decode(response.read(), SnapshotOnly).snapshot

    def delete(self, snapshot_id: str) -> None:
        """Delete a snapshot; sandboxes that began with it are not touched."""
        self._http.call("DELETE", f"{paths.SNAPSHOTS}/{paths.snapshot_id(snapshot_id)}", dict[str, Any])
