"""Stored credentials of a project. Their values go in and never come out."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from hutch.client.models import Credential
from hutch.client.transport import Http
from hutch.errors import BadRequestError

_BASE = "/hutch/v1/credentials"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class _Credentials(msgspec.Struct):
    credentials: list[Credential]


class Credentials:
    def __init__(self, http: Http) -> None:
        self._http = http

    async def put(self, name: str, value: str) -> None:
        """Store a credential or replace it; requests that are sent from now on carry the new value."""
        await self._http.call("PUT", _path(name), dict[str, Any], body={"value": value}, query=self._http.project())

    async def list(self) -> list[Credential]:
        return (await self._http.call("GET", _BASE, _Credentials, query=self._http.project())).credentials

    async def delete(self, name: str) -> None:
        """Delete a credential; rules that name it are closed from now on."""
        await self._http.call("DELETE", _path(name), dict[str, Any], query=self._http.project())


def _path(name: str) -> str:
    """Where a credential is. A name that none can have never becomes part of a URL."""
    if _NAME.fullmatch(name) is None:
        raise BadRequestError("bad_request", f"'{name[:64]}' is no name of a credential: 1 to 64 letters, digits, _ and -.")
    return f"{_BASE}/{name}"
