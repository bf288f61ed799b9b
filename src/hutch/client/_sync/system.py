# Written by scripts/write_sync_client.py from `_async/system.py`; change that one.
"""The server about itself."""

from __future__ import annotations

from hutch.client._sync.transport import Http
from hutch.client.models import Health, Identity


class System:
    def __init__(self, http: Http) -> None:
        self._http = http

    def whoami(self) -> Identity:
        """Team, project and role of the token."""
        return self._http.call("GET", "/hutch/v1/whoami", Identity, scoped=False)

    def health(self) -> Health:
        """Answers while a create would succeed. Raises `UnavailableError` with the reason otherwise."""
        return self._http.call("GET", "/readyz", Health, scoped=False)
