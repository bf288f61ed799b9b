"""Drives: named file systems that sandboxes mount."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from hutch.client.models import Drive, DrivePage, OneDrive
from hutch.client.transport import Http
from hutch.control.names import is_name
from hutch.errors import NotFoundError

MAKE_TIMEOUT_S = 120.0
PAGE = 50
_BASE = "/v2/sandboxes/drives"


class Drives:
    def __init__(self, http: Http) -> None:
        self._http = http

    async def get_or_create(self, name: str, *, max_size_bytes: int | None = None, region: str | None = None) -> Drive:
        """A drive; made if there is none of that name. Size and region, where given, must be those of one that there is."""
        body: dict[str, Any] = {"maxSizeBytes": max_size_bytes, "region": region}
        if self._http.server.project_id:
            body["projectId"] = self._http.server.project_id
        return (await self._http.call("POST", _path(name), OneDrive, body=body, timeout_s=MAKE_TIMEOUT_S)).drive

    async def get(self, name: str) -> Drive:
        """By name or id; `used_bytes` is there when the host says it."""
        return (await self._http.call("GET", _path(name), OneDrive, query=self._http.project())).drive

    async def all(self) -> AsyncIterator[Drive]:
        """Every drive of the project, newest first."""
        query = {"limit": str(PAGE), **self._http.project()}
        while True:
            page = await self._http.call("GET", _BASE, DrivePage, query=query)
            for drive in page.drives:
                yield drive
            if page.pagination.next is None:
                return
            query["cursor"] = page.pagination.next

    async def fork(self, source: str, name: str) -> Drive:
        """A new drive with what another one holds now."""
        path, query = f"{_path(source)}/fork", self._http.project()
        return (await self._http.call("POST", path, OneDrive, query=query, body={"name": name}, timeout_s=MAKE_TIMEOUT_S)).drive

    async def delete(self, name: str) -> None:
        """Delete a drive and what it holds; refused while a session has it."""
        await self._http.call("DELETE", _path(name), OneDrive, query=self._http.project(), timeout_s=MAKE_TIMEOUT_S)


def _path(name: str) -> str:
    """Where a drive is. A name that none can have never becomes part of a URL."""
    if not is_name(name):
        raise NotFoundError("not_found", f"Drive '{name[:128]}' not found for this project.")
    return f"{_BASE}/{name}"
