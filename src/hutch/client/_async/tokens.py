"""Tokens."""

from __future__ import annotations

from typing import Any

import msgspec

from hutch.client import paths
from hutch.client._async.transport import Http
from hutch.client.models import Token


class _Tokens(msgspec.Struct):
    tokens: list[Token]


class Tokens:
    def __init__(self, http: Http) -> None:
        self._http = http

    async def create(self, **fields: Any) -> Token:
        """A new token. `fields`: `team`, `project` (ids or slugs; made if an administrator asks), `role`, `name`, `ttl_s`,
        `member` (id) and `scopes`."""
        body = {key: value for key, value in fields.items() if value is not None}
        return await self._http.call("POST", f"{paths.OWN}/tokens", Token, body=body)

    async def list(self) -> list[Token]:
        """Those that the caller may manage: an administrator's are everybody's."""
        return (await self._http.call("GET", f"{paths.OWN}/tokens", _Tokens, scoped=False)).tokens

    async def revoke(self, token_id: str) -> None:
        await self._http.call("DELETE", paths.token(token_id), dict[str, Any], scoped=False)
