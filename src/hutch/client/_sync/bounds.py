# Written by scripts/write_sync_client.py from `_async/bounds.py`; change that one.
"""Network policies of teams and projects, within which those of their sandboxes hold."""

from __future__ import annotations

from typing import Any

from hutch.client import paths
from hutch.client._sync.transport import Http
from hutch.client.models import BoundsSet, Json


class Bounds:
    """Each method is about a team, or about a project: of the team that is named, else of the caller's. Both are ids or slugs."""

    def __init__(self, http: Http) -> None:
        self._http = http

    def put(self, policy: object, *, team: str | None = None, project: str | None = None) -> BoundsSet:
        """Set the policy; answers when all running sandboxes are held to it."""
        path, query = self._place(team, project)
        return self._http.call("PUT", path, BoundsSet, body=policy, query=query, scoped=False)

    def get(self, *, team: str | None = None, project: str | None = None) -> Json | None:
        """The policy, or None where there is none."""
        path, query = self._place(team, project)
        found = self._http.call("GET", path, dict[str, Any], query=query, scoped=False)
        policy: Json | None = found.get("networkPolicy")
        return policy

    def delete(self, *, team: str | None = None, project: str | None = None) -> None:
        """Remove the policy, if there is one."""
        path, query = self._place(team, project)
        self._http.call("DELETE", path, dict[str, Any], query=query, scoped=False)

    def _place(self, team: str | None, project: str | None) -> tuple[str, dict[str, str]]:
        return paths.bounds(team, project, self._http.server.team_id)
