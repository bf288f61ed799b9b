"""Tokens."""

from __future__ import annotations

from typing import Any

import msgspec

from hutch.client.models import Token
from hutch.client.transport import Http

_BASE = "/hutch/v1"


class _Tokens(msgspec.Struct):
    tokens: list[Token]


class Tokens:
    def __init__(self, http: Http) -> None:
        self._http = http

    async def create(self, **fields: Any) -> Token:
        """A new token. `fields`: `team`, `project` (ids or slugs; made if an administrator asks), `role`, `name`, `ttl_s`."""
        body = {key: value for key, value in fields.items() if value is not None}
        return await self._http.call("POST", f"{_BASE}/tokens", Token, body=body)

    async def list(self) -> list[Token]:
        """Those that the caller may manage: an administrator's are everybody's."""
        return (await self._http.call("GET", f"{_BASE}/tokens", _Tokens, scoped=False)).tokens

    async def revoke(self, token_id: str) -> None:
        await self._http.call("DELETE", f"{_BASE}/tokens/{token_id}", dict[str, Any], scoped=False)
