# Written by scripts/write_sync_client.py from `_async/audit.py`; change that one.
"""What the egress firewall of a sandbox decided, and why, and what passed."""

from __future__ import annotations

from collections.abc import Generator

from hutch.client import paths
from hutch.client._sync.transport import Http
from hutch.client._sync.waiting import sleep
from hutch.client.models import AuditRecords, Json, Traffic

PAGE = 500
POLL_S = 0.5
"""How often a sandbox that has nothing new is asked again."""


class Audit:
    def __init__(self, http: Http) -> None:
        self._http = http

    def page(self, name: str, *, after: int = 0, limit: int = PAGE) -> AuditRecords:
        """At most `limit` records behind `after`, oldest first, and where to read on."""
        query = {**self._http.project(), "after": str(after), "limit": str(limit)}
        return self._http.call("GET", f"{paths.own_sandbox(name)}/audit", AuditRecords, query=query)

    def traffic(self, name: str) -> Traffic:
        """What passed for the current session of a sandbox, until now or until its end."""
        return self._http.call("GET", f"{paths.own_sandbox(name)}/traffic", Traffic, query=self._http.project())

    def all(self, name: str, *, after: int = 0, follow: bool = False) -> Generator[Json, None, None]:
        """Every record that there is behind `after`; with `follow` also those to come, for ever."""
        while True:
            page = self.page(name, after=after)
            for record in page.records:
                yield record
            if page.next == after:
                if not follow:
                    return
                sleep(POLL_S)
            after = page.next
