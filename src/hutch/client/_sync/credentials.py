# Written by scripts/write_sync_client.py from `_async/credentials.py`; change that one.
"""Stored credentials of a project. Their values go in and never come out."""

from __future__ import annotations

from typing import Any

import msgspec

from hutch.client import paths
from hutch.client._sync.transport import Http
from hutch.client.models import Credential


class _Credentials(msgspec.Struct):
    credentials: list[Credential]


class Credentials:
    def __init__(self, http: Http) -> None:
        self._http = http

    def put(self, name: str, value: str) -> None:
        """Store a credential or replace it; requests that are sent from now on carry the new value."""
        self._http.call("PUT", paths.credential(name), dict[str, Any], body={"value": value}, query=self._http.project())

    def list(self) -> list[Credential]:
        return (self._http.call("GET", f"{paths.OWN}/credentials", _Credentials, query=self._http.project())).credentials

    def delete(self, name: str) -> None:
        """Delete a credential; rules that name it are closed from now on."""
        self._http.call("DELETE", paths.credential(name), dict[str, Any], query=self._http.project())
