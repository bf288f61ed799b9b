"""Teams, their projects and members, and the log of what was changed in them."""

from __future__ import annotations

import builtins
from typing import Any

import msgspec

from hutch.client import paths
from hutch.client._async.transport import Http
from hutch.client.models import LogPage, Member, Project, Team

PAGE = 100


class _Teams(msgspec.Struct):
    teams: list[Team]
    next: str | None = None


class _Projects(msgspec.Struct):
    projects: list[Project]
    next: str | None = None


class _Members(msgspec.Struct):
    members: list[Member]
    next: str | None = None


class Teams:
    """Teams and projects are named by id or slug; projects are those of `team`, by default of the caller's."""

    def __init__(self, http: Http) -> None:
        self._http = http

    async def create(self, slug: str) -> Team:
        """Make a team; for administrators. Raises `ConflictError`."""
        return await self._http.call("POST", f"{paths.OWN}/teams", Team, body={"slug": slug}, scoped=False)

    async def list(self) -> builtins.list[Team]:
        """The caller's team; all for administrators."""
        found: builtins.list[Team] = []
        after: str | None = ""
        while after is not None:
            page = await self._http.call("GET", f"{paths.OWN}/teams", _Teams, query=_page(after), scoped=False)
            found, after = found + page.teams, page.next
        return found

    async def get(self, team: str) -> Team:
        return await self._http.call("GET", paths.team(team), Team, scoped=False)

    async def rename(self, team: str, slug: str) -> Team:
        """Raises `ConflictError` for a slug that is taken."""
        return await self._http.call("PATCH", paths.team(team), Team, body={"slug": slug}, scoped=False)

    async def delete(self, team: str) -> None:
        """Delete a team and everything that it has; that goes on behind the answer."""
        await self._http.call("DELETE", paths.team(team), dict[str, Any], scoped=False)

    # -- projects ----------------------------------------------------------------------------------

    async def create_project(self, slug: str, *, team: str | None = None) -> Project:
        """Raises `ConflictError`."""
        body = {"slug": slug}
        return await self._http.call("POST", f"{paths.OWN}/projects", Project, body=body, query=_of(team), scoped=False)

    async def list_projects(self, *, team: str | None = None) -> builtins.list[Project]:
        found: builtins.list[Project] = []
        after: str | None = ""
        while after is not None:
            query = _page(after) | _of(team)
            page = await self._http.call("GET", f"{paths.OWN}/projects", _Projects, query=query, scoped=False)
            found, after = found + page.projects, page.next
        return found

    async def rename_project(self, project: str, slug: str, *, team: str | None = None) -> Project:
        """Raises `ConflictError` for a slug that is taken."""
        return await self._http.call("PATCH", paths.project(project), Project, body={"slug": slug}, query=_of(team), scoped=False)

    async def delete_project(self, project: str, *, team: str | None = None) -> None:
        """Delete a project and everything that it has; that goes on behind the answer."""
        await self._http.call("DELETE", paths.project(project), dict[str, Any], query=_of(team), scoped=False)

    # -- members -----------------------------------------------------------------------------------

    async def add_member(self, identity: str, role: str, *, name: str = "", team: str | None = None) -> Member:
        """`identity` is an address, or the subject of a provider. Raises `ConflictError`."""
        body = {"identity": identity, "role": role, "name": name}
        return await self._http.call("POST", f"{self._team(team)}/members", Member, body=body, scoped=False)

    async def list_members(self, *, team: str | None = None) -> builtins.list[Member]:
        found: builtins.list[Member] = []
        after: str | None = ""
        while after is not None:
            page = await self._http.call("GET", f"{self._team(team)}/members", _Members, query=_page(after), scoped=False)
            found, after = found + page.members, page.next
        return found

    async def change_member(
        self,
        member_id: str,
        *,
        role: str | None = None,
        name: str | None = None,
        disabled: bool | None = None,
        team: str | None = None,
    ) -> Member:
        """Raises `ConflictError` (`last_owner`)."""
        body = {key: value for key, value in (("role", role), ("name", name), ("disabled", disabled)) if value is not None}
        return await self._http.call("PATCH", paths.member(self._named(team), member_id), Member, body=body, scoped=False)

    async def remove_member(self, member_id: str, *, team: str | None = None) -> None:
        """Remove a member, and refuse their tokens from now on. Raises `ConflictError` (`last_owner`)."""
        await self._http.call("DELETE", paths.member(self._named(team), member_id), dict[str, Any], scoped=False)

    # -- the log -----------------------------------------------------------------------------------

    async def audit_log(self, *, after: int = 0, limit: int = PAGE, team: str | None = None) -> LogPage:
        """Entries behind a number, oldest first."""
        query = {"after": str(after), "limit": str(limit)}
        return await self._http.call("GET", f"{self._team(team)}/audit-log", LogPage, query=query, scoped=False)

    def _team(self, team: str | None) -> str:
        return paths.team(self._named(team))

    def _named(self, team: str | None) -> str:
        return team or self._http.server.team_id


def _page(after: str) -> dict[str, str]:
    return {"limit": str(PAGE), "after": after}


def _of(team: str | None) -> dict[str, str]:
    return {"teamId": team} if team is not None else {}
