"""Snapshots of sandboxes' files."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable
from typing import Any

from hutch.client import paths
from hutch.client._async.transport import Http
from hutch.client.models import Snapshot, SnapshotOnly, SnapshotPage, SnapshotTaken, SnapshotTree, SnapshotVerified
from hutch.client.wire import decode

TAKE_TIMEOUT_S = 120.0
PAGE = 50
_OWN = f"{paths.OWN}/snapshots"


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
        path = f"{paths.session(session_id)}/snapshot"
        return await self._http.call("POST", path, SnapshotTaken, body=body, timeout_s=TAKE_TIMEOUT_S)

    async def get(self, snapshot_id: str) -> Snapshot:
        return (await self._http.call("GET", f"{paths.SNAPSHOTS}/{paths.snapshot_id(snapshot_id)}", SnapshotOnly)).snapshot

    async def all(self, sandbox: str | None = None, **query: str) -> AsyncGenerator[Snapshot, None]:
        """Every snapshot of the project, or of one sandbox, newest first; deleted ones too. `query` as the API has it."""
        query = {"limit": str(PAGE), **query}
        if sandbox is not None:
            query["name"] = sandbox
        if self._http.server.project_id:
            query["project"] = self._http.server.project_id
        async for page in self._http.pages(paths.SNAPSHOTS, SnapshotPage, query):
            for snapshot in page.snapshots:
                yield snapshot

    async def tree(self, snapshot_id: str, *, descendants: bool = False) -> SnapshotTree:
        """What a snapshot came from, nearest first, or what came from it."""
        query = {"snapshotId": paths.snapshot_id(snapshot_id), "sortOrder": "asc" if descendants else "desc"}
        if self._http.server.project_id:
            query["project"] = self._http.server.project_id
        return await self._http.call("GET", f"{paths.SNAPSHOTS}/tree", SnapshotTree, query=query)

    async def verify(self, snapshot_id: str) -> SnapshotVerified:
        """Check a snapshot's copy in the blob store. Raises `ConflictError` (`snapshot_damaged`, `snapshot_not_stored`)."""
        path = f"{_OWN}/{paths.snapshot_id(snapshot_id)}/verify"
        return await self._http.call("POST", path, SnapshotVerified, timeout_s=None, safe=True)

    async def export(self, snapshot_id: str, form: str = "tar") -> AsyncGenerator[bytes, None]:
        """A snapshot as a tar, or (`oci`) as an OCI image layout in one. Raises `UnavailableError` rather than end early."""
        async with self._http.open("GET", f"{_OWN}/{paths.snapshot_id(snapshot_id)}/export", query={"format": form}) as response:
            async for chunk in response.aiter_bytes():
                yield chunk

    async def load(self, archive: AsyncIterable[bytes], image: str | None = None) -> Snapshot:
        """A new snapshot of the project from a tar, over an image (default: the server's)."""
        query = self._http.project() | ({"image": image} if image is not None else {})
        headers = [(b"content-type", b"application/x-tar")]
        async with self._http.open("POST", _OWN, content=archive, headers=headers, query=query) as response:
            return decode(await response.aread(), SnapshotOnly).snapshot

    async def delete(self, snapshot_id: str) -> None:
        """Delete a snapshot; sandboxes that began with it are not touched."""
        await self._http.call("DELETE", f"{paths.SNAPSHOTS}/{paths.snapshot_id(snapshot_id)}", dict[str, Any])
