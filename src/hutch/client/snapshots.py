"""Snapshots of sandboxes' files."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from typing import Any

from hutch.client.models import Snapshot, SnapshotOnly, SnapshotPage, SnapshotTaken, SnapshotTree, SnapshotVerified
from hutch.client.transport import Http, decode
from hutch.errors import NotFoundError

TAKE_TIMEOUT_S = 120.0
PAGE = 50
_BASE = "/v2/sandboxes/snapshots"
_OWN = "/hutch/v1/snapshots"
_ID = re.compile(r"snap_[A-Za-z0-9]{1,58}")


class Snapshots:
    def __init__(self, http: Http) -> None:
        self._http = http

    async def take(
        self, session_id: str, *, expiration_ms: int | None = None, keep_running: bool = False, memory: bool = False
    ) -> SnapshotTaken:
        """Keep the files of a running session, and its memory if that is wanted; it ends with that unless it is kept running."""
        body: dict[str, Any] = {"keepRunning": keep_running, "memory": memory}
        if expiration_ms is not None:
            body["expiration"] = expiration_ms
        path = f"/v2/sandboxes/sessions/{session_id}/snapshot"
        return await self._http.call("POST", path, SnapshotTaken, body=body, timeout_s=TAKE_TIMEOUT_S)

    async def all(self, sandbox: str | None = None) -> AsyncIterator[Snapshot]:
        """Every snapshot of the project, or of one sandbox, newest first; deleted ones too."""
        query = {"limit": str(PAGE)}
        if sandbox is not None:
            query["name"] = sandbox
        if self._http.server.project_id:
            query["project"] = self._http.server.project_id
        while True:
            page = await self._http.call("GET", _BASE, SnapshotPage, query=query)
            for snapshot in page.snapshots:
                yield snapshot
            if page.pagination.next is None:
                return
            query["cursor"] = page.pagination.next

    async def tree(self, snapshot_id: str, *, descendants: bool = False) -> SnapshotTree:
        """What a snapshot came from, nearest first, or what came from it."""
        query = {"snapshotId": _known(snapshot_id), "sortOrder": "asc" if descendants else "desc"}
        if self._http.server.project_id:
            query["project"] = self._http.server.project_id
        return await self._http.call("GET", f"{_BASE}/tree", SnapshotTree, query=query)

    async def verify(self, snapshot_id: str) -> SnapshotVerified:
        """Check a snapshot's copy in the blob store. Raises `ConflictError` (`snapshot_damaged`, `snapshot_not_stored`)."""
        path = f"{_OWN}/{_known(snapshot_id)}/verify"
        return await self._http.call("POST", path, SnapshotVerified, timeout_s=None)

    async def export(self, snapshot_id: str, form: str = "tar") -> AsyncGenerator[bytes, None]:
        """A snapshot as a tar, or (`oci`) as an OCI image layout in one. Breaks off with `UnavailableError` than be cut."""
        async with self._http.open("GET", f"{_OWN}/{_known(snapshot_id)}/export", query={"format": form}) as response:
            async for chunk in response.aiter_bytes():
                yield chunk

    async def load(self, archive: AsyncIterable[bytes], image: str | None = None) -> Snapshot:
        """A new snapshot of the project from a tar, over an image."""
        query = self._http.project() | ({"image": image} if image is not None else {})
        headers = [(b"content-type", b"application/x-tar")]
        async with self._http.open("POST", _OWN, content=archive, headers=headers, query=query) as response:
            return decode(await response.aread(), SnapshotOnly).snapshot

    async def delete(self, snapshot_id: str) -> None:
        """Delete a snapshot; sandboxes that began with it are not touched."""
        await self._http.call("DELETE", f"{_BASE}/{_known(snapshot_id)}", dict[str, Any])


def _known(snapshot_id: str) -> str:
    """An id. What can't be one never becomes part of a URL."""
    if _ID.fullmatch(snapshot_id) is None:
        raise NotFoundError("not_found", f"Snapshot '{snapshot_id[:128]}' not found.")
    return snapshot_id
