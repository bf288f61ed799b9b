"""Stored credentials of a project. Their values go in and never come out."""

from __future__ import annotations

from typing import Any

import msgspec

from hutch.client import paths
from hutch.client._async.transport import Http
from hutch.client.models import Credential


class _Credentials(msgspec.Struct):
    credentials: list[Credential]


class Credentials:
    def __init__(self, http: Http) -> None:
        self._http = http

    async def put(self, name: str, value: str) -> None:
        """Store a credential or replace it; requests that are sent from now on carry the new value."""
        await self._http.call("PUT", paths.credential(name), dict[str, Any], body={"value": value}, query=self._http.project())

    async def list(self) -> list[Credential]:
        return (await self._http.call("GET", f"{paths.OWN}/credentials", _Credentials, query=self._http.project())).credentials

    async def delete(self, name: str) -> None:
        """Delete a credential; rules that name it are closed from now on."""
        await self._http.call("DELETE", paths.credential(name), dict[str, Any], query=self._http.project())
