# Written by scripts/write_sync_client.py from `_async/logins.py`; change that one.
"""Logins of people by the server's provider. None of these calls takes a token."""

from __future__ import annotations

from typing import Any

from hutch.client import paths
from hutch.client._sync.transport import Http
from hutch.client.models import BegunLogin, EndedLogin


class Logins:
    def __init__(self, http: Http) -> None:
        self._http = http

    def begin(self, challenge: str, **fields: Any) -> BegunLogin:
        """Begin a login whose verifier only the caller has (PKCE, S256). `fields`: `port` and `state`, where the browser is of
        this machine; `team` and `project`, ids or slugs. Raises `NotFoundError` (`sso_not_configured`)."""
        body = {"challenge": challenge, **{key: value for key, value in fields.items() if value is not None}}
        return self._http.call("POST", f"{paths.OWN}/login", BegunLogin, body=body, scoped=False)

    def end(self, code: str, verifier: str) -> EndedLogin:
        """The token of a login, once; without one nobody has decided yet. Raises `BadRequestError` (`login_not_valid`) and
        `ForbiddenError` (`login_denied`, `login_refused`)."""
        body = {"code": code, "verifier": verifier}
        return self._http.call("POST", f"{paths.OWN}/login/token", EndedLogin, body=body, scoped=False)
