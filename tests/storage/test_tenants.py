"""Teams, projects, tokens."""

from __future__ import annotations

import asyncio

from hutch.control.permissions import TokenRole
from hutch.control.records import TokenRecord
from hutch.storage import tenants, tokens
from hutch.storage.database import Database
from tests.storage.conftest import new_scope


async def test_teams_and_projects_are_found_by_id_and_slug(database: Database) -> None:
    async with database.write() as connection:
        team = await tenants.ensure_team(connection, "acme", 1)
        project = await tenants.ensure_project(connection, team.id, "web", 1)
        assert await tenants.find_team(connection, team.id) == await tenants.find_team(connection, "acme") == team
        assert await tenants.find_project(connection, team.id, "web") == project
        assert await tenants.find_project(connection, "team_other", "web") is None
        assert await tenants.list_projects(connection, team.id) == [project]
        assert await tenants.find_team(connection, "nope") is None


async def test_ensuring_at_the_same_moment_makes_one(database: Database) -> None:
    scopes = await asyncio.gather(*(new_scope(database, "acme") for _ in range(8)))
    assert len(set(scopes)) == 1


async def test_two_teams_may_have_projects_of_one_name(database: Database) -> None:
    first, second = await new_scope(database, "one"), await new_scope(database, "two")
    assert first.project_id != second.project_id


async def test_tokens_are_kept_listed_and_revoked_once(database: Database) -> None:
    scope, other = await new_scope(database, "acme"), await new_scope(database, "other")
    mine = TokenRecord("tok_1", scope.team_id, scope.project_id, TokenRole.MEMBER, "ci", 1, 2**41)
    theirs = TokenRecord("tok_2", other.team_id, None, TokenRole.OWNER, "", 2, 2**41)
    async with database.write() as connection:
        await tokens.add(connection, mine)
        await tokens.add(connection, theirs)
        assert await tokens.find(connection, "tok_1") == mine
        assert await tokens.list_for_team(connection, scope.team_id) == [mine]
        assert await tokens.list_for_team(connection, None) == [theirs, mine]
        assert await tokens.revoke(connection, "tok_2", scope.team_id, 5) is None
        assert (await tokens.find(connection, "tok_2")) == theirs
        first = await tokens.revoke(connection, "tok_1", scope.team_id, 5)
        again = await tokens.revoke(connection, "tok_1", None, 9)
        assert first == again
        assert first is not None
        assert first.revoked_at == 5
        assert await tokens.revoke(connection, "tok_none", None, 5) is None
