# Written by scripts/write_sync_client.py from `_async/tokens.py`; change that one.
"""Tokens."""

from __future__ import annotations

from typing import Any

import msgspec

from hutch.client import paths
from hutch.client._sync.transport import Http
from hutch.client.models import Token


class _Tokens(msgspec.Struct):
    tokens: list[Token]


class Tokens:
    def __init__(self, http: Http) -> None:
        self._http = http

    def create(self, **fields: Any) -> Token:
        """A new token. `fields`: `team`, `project` (ids or slugs; made if an administrator asks), `role`, `name`, `ttl_s`,
        `member` (id) and `scopes`."""
        body = {key: value for key, value in fields.items() if value is not None}
        return self._http.call("POST", f"{paths.OWN}/tokens", Token, body=body)

    def list(self) -> list[Token]:
        """Those that the caller may manage: an administrator's are everybody's."""
        return (self._http.call("GET", f"{paths.OWN}/tokens", _Tokens, scoped=False)).tokens

    def revoke(self, token_id: str) -> None:
        self._http.call("DELETE", paths.token(token_id), dict[str, Any], scoped=False)
