"""Network policies of teams and projects in the database."""

from __future__ import annotations

from sqlalchemy import text

from hutch.control.records import Scope
from hutch.host.protocol import SessionStatus
from hutch.ids import session_id
from hutch.storage import network_bounds, sandboxes, sessions
from hutch.storage.database import Database
from hutch.storage.network_bounds import Bounded
from hutch.storage.sealing import Sealer
from tests.storage.conftest import new_scope, sandbox, session_of

LONG = '{"block":["' + "größe-" * 100_000 + '"]}'


async def put(database: Database, scope: Scope, policy: str | None) -> None:
    async with database.write() as connection:
        await network_bounds.put(connection, scope, policy)


async def find(database: Database, scope: Scope) -> tuple[str | None, str | None]:
    async with database.read() as connection:
        return await network_bounds.find(connection, scope)


async def test_team_and_project_have_one_each(database: Database, scope: Scope) -> None:
    team = Scope(scope.team_id)
    assert await find(database, scope) == await find(database, team) == (None, None)
    await put(database, team, "team")
    await put(database, scope, "project")
    assert await find(database, scope) == ("team", "project")
    assert await find(database, team) == ("team", None)
    await put(database, scope, LONG)
    await put(database, team, None)
    assert await find(database, scope) == (None, LONG)
    await put(database, scope, None)
    await put(database, scope, None)
    assert await find(database, scope) == (None, None)


async def test_others_are_not_touched(database: Database, scope: Scope) -> None:
    sibling, stranger = await new_scope(database, "acme", "other"), await new_scope(database, "strangers")
    await put(database, scope, "project")
    # A project is only found below its own team.
    mixed = Scope(stranger.team_id, scope.project_id)
    await put(database, mixed, "stolen")
    assert await find(database, mixed) == (None, None)
    assert await find(database, scope) == (None, "project")
    assert await find(database, sibling) == await find(database, stranger) == (None, None)
    await put(database, Scope(scope.team_id), "team")
    assert await find(database, sibling) == ("team", None)
    assert await find(database, stranger) == (None, None)
    assert await find(database, Scope("nobody", "nothing")) == await find(database, Scope("nobody")) == (None, None)


async def test_which_projects_are_bounded(database: Database, scope: Scope) -> None:
    assert scope.project_id is not None
    sibling = await new_scope(database, "acme", "other")
    assert sibling.project_id is not None
    async with database.read() as connection:
        assert await network_bounds.bounded(connection, scope.team_id) == Bounded(all=False)
    await put(database, scope, "x")
    async with database.read() as connection:
        found = await network_bounds.bounded(connection, scope.team_id)
    assert (scope.project_id in found, sibling.project_id in found) == (True, False)
    await put(database, Scope(scope.team_id), "x")
    async with database.read() as connection:
        found = await network_bounds.bounded(connection, scope.team_id)
        assert (scope.project_id in found, sibling.project_id in found) == (True, True)
        assert await network_bounds.bounded(connection, "nobody") == Bounded(all=False)


async def test_live_sessions_are_found_by_team_and_project(database: Database, scope: Scope, sealer: Sealer) -> None:
    sibling, stranger = await new_scope(database, "acme", "other"), await new_scope(database, "strangers")
    made = {}
    async with database.write() as connection:
        for place in (scope, sibling, stranger):
            record = sandbox(place, "one")
            await sandboxes.add(connection, record, sealer)
            await sessions.add(connection, session_of(record), sealer)
            await sessions.add(connection, session_of(record, id=session_id(), status=SessionStatus.STOPPED), sealer)
            made[place] = record.current_session_id

    async def live(within: Scope | None) -> set[str]:
        async with database.read() as connection:
            return {row.id for row in await sessions.live(connection, sealer, within)}

    assert await live(None) == set(made.values())
    assert await live(Scope(scope.team_id)) == {made[scope], made[sibling]}
    assert await live(sibling) == {made[sibling]}
    assert await live(Scope(stranger.team_id, scope.project_id)) == set()


async def test_rows_of_the_schema_before_have_none(database: Database, scope: Scope) -> None:
    async with database.write() as connection:
        await connection.execute(text("INSERT INTO teams (id, slug, created_at) VALUES ('team_old', 'old', 1)"))
        await connection.execute(
            text("INSERT INTO projects (id, team_id, slug, created_at) VALUES ('prj_old', 'team_old', 'old', 1)")
        )
    assert await find(database, Scope("team_old", "prj_old")) == (None, None)
