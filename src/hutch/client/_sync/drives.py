# Written by scripts/write_sync_client.py from `_async/drives.py`; change that one.
"""Drives: named file systems that sandboxes mount."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from hutch.client import paths
from hutch.client._sync.transport import Http
from hutch.client.models import Drive, DrivePage, OneDrive

MAKE_TIMEOUT_S = 120.0
PAGE = 50


class Drives:
    def __init__(self, http: Http) -> None:
        self._http = http

    def get_or_create(self, name: str, *, max_size_bytes: int | None = None, region: str | None = None) -> Drive:
        """A drive; made if there is none of that name. Size and region, where given, must be those of one that there is."""
        body: dict[str, Any] = {"maxSizeBytes": max_size_bytes, "region": region}
        if self._http.server.project_id:
            body["projectId"] = self._http.server.project_id
        return (self._http.call("POST", paths.drive(name), OneDrive, body=body, timeout_s=MAKE_TIMEOUT_S, safe=True)).drive

    def get(self, name: str) -> Drive:
        """By name or id; `used_bytes` is there when the host says it."""
        return (self._http.call("GET", paths.drive(name), OneDrive, query=self._http.project())).drive

    def all(self, **query: str) -> Generator[Drive, None, None]:
        """Every drive of the project, newest first unless `query` (as the API has it) says otherwise."""
        query = {"limit": str(PAGE), **self._http.project(), **query}
        for page in self._http.pages(paths.DRIVES, DrivePage, query):
            for drive in page.drives:
                yield drive

    def fork(self, source: str, name: str) -> Drive:
        """A new drive with what another one holds now."""
        path, query = f"{paths.drive(source)}/fork", self._http.project()
        return (self._http.call("POST", path, OneDrive, query=query, body={"name": name}, timeout_s=MAKE_TIMEOUT_S)).drive

    def delete(self, name: str) -> None:
        """Delete a drive and what it holds; refused while a session has it."""
        self._http.call("DELETE", paths.drive(name), dict[str, Any], query=self._http.project(), timeout_s=MAKE_TIMEOUT_S)
