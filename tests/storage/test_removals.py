"""Removing teams and projects: every table is concerned, and others' rows stay."""

from __future__ import annotations

from sqlalchemy import func, select, text

from hutch.control.audit_log import Actor
from hutch.control.permissions import TokenRole
from hutch.control.records import Member, Scope, TokenRecord
from hutch.host.protocol import NumberedWindow, RuleTraffic
from hutch.metering.budgets import ALL_TIME, Budget, Limits, UsageOwner, project_key, team_key
from hutch.metering.notices import Notice, NoticeKind, Threshold, notice_id
from hutch.metering.quantities import Quantities
from hutch.metering.windows import UsageWindow
from hutch.storage import (
    audit_log,
    budget_events,
    budgets,
    credentials,
    members,
    removals,
    sandboxes,
    sessions,
    tenants,
    tokens,
    usage,
)
from hutch.storage.database import Database
from hutch.storage.models import Base
from hutch.storage.sealing import Sealer
from tests.storage.conftest import new_scope, sandbox, session_of

OF_NOBODY = {"host_cursors", "api_processes"}
"""Tables that hold nothing of a tenant's. Add one only if that is so."""
MARKED = {"teams"}


def test_every_table_belongs_to_a_team_or_project_or_cascades_from_one_that_does() -> None:
    covered = {table.name for table in removals.tables()} | MARKED | OF_NOBODY
    for table in Base.metadata.sorted_tables:
        owners = {key.column.table.name for key in table.foreign_keys if key.ondelete == "CASCADE"}
        assert table.name in covered or owners & covered, f"rows of {table.name} would stay when their team is deleted"


async def counts(database: Database) -> dict[str, int]:
    async with database.read() as connection:
        return {
            table.name: (await connection.execute(select(func.count()).select_from(table))).scalar_one()
            for table in Base.metadata.sorted_tables
        }


async def fill(database: Database, scope: Scope, sealer: Sealer, name: str) -> None:
    assert scope.project_id is not None
    box = sandbox(scope, name)
    async with database.write() as connection:
        await sandboxes.add(connection, box, sealer)
        await sessions.add(connection, session_of(box), sealer)
        await credentials.put(connection, scope, "key", f"value of {name}", sealer, 1)
        await members.add(connection, Member(f"mem_{name}", scope.team_id, f"{name}@example.com", name, TokenRole.OWNER, 1))
        await tokens.add(
            connection, TokenRecord(f"tok_{name}", scope.team_id, scope.project_id, TokenRole.OWNER, name, 1, 10**14)
        )
        await audit_log.append(connection, scope.team_id, Actor(), "token.created", f"tok_{name}", 1)
        await usage.apply(connection, [window_of(scope, box.id, name)])
        for key in (project_key(scope.project_id), team_key(scope.team_id)):
            await budgets.put(connection, scope.team_id, Budget(key=key, limits=Limits(active_cpu_us=1)), None)
            await budget_events.apply(connection, [notice_of(key)])


def notice_of(key: str) -> Notice:
    threshold = Threshold(NoticeKind.EXCEEDED, "active_cpu_us", 1)
    return Notice(id=notice_id(key, ALL_TIME, threshold), key=key, span=ALL_TIME, threshold=threshold, used=1, at_ms=1)


def window_of(scope: Scope, sandbox_id: str, session_id: str) -> NumberedWindow:
    window = UsageWindow(session_id=session_id, number=1, from_ms=0, to_ms=5, final=True, quantities=Quantities(active_cpu_us=1))
    owner = UsageOwner(scope.team_id, scope.project_id or "", sandbox_id)
    return NumberedWindow(1, owner, window, {"00ff": RuleTraffic(sent_bytes=1)})


async def test_a_team_goes_with_all_its_rows_and_nobody_elses(database: Database, sealer: Sealer) -> None:
    theirs = await new_scope(database, "theirs")
    await fill(database, theirs, sealer, "theirs")
    before = await counts(database)
    mine, other = await new_scope(database, "mine", "web"), await new_scope(database, "mine", "jobs")
    await fill(database, mine, sealer, "one")
    await fill(database, other, sealer, "two")
    team = Scope(mine.team_id)
    async with database.write() as connection:
        await removals.begin(connection, team, 5)
        assert await removals.due(connection) == [team]
        assert await tenants.find_team(connection, "mine") is None
        assert await tenants.find_team(connection, mine.team_id) is None
        assert await tokens.list_for_team(connection, mine.team_id) == []
        # The slug is free at once.
        assert (await tenants.ensure_team(connection, "mine", 6)).id != mine.team_id
    async with database.write() as connection:
        assert {name for _, name in await removals.sandboxes(connection, team)} == {"one", "two"}
        await removals.remove_rows(connection, team)
        # The mark stays until everything else is done.
        assert await removals.due(connection) == [team]
        await removals.finish(connection, team)
        assert await removals.due(connection) == []
        await connection.execute(text("DELETE FROM teams WHERE slug = 'mine'"))
    assert await counts(database) == before


async def test_a_project_goes_and_its_team_stays(database: Database, sealer: Sealer) -> None:
    web = await new_scope(database, "mine", "web")
    await fill(database, web, sealer, "one")
    before = await counts(database)
    jobs = await new_scope(database, "mine", "jobs")
    box = sandbox(jobs, "two")
    async with database.write() as connection:
        await sandboxes.add(connection, box, sealer)
        await sessions.add(connection, session_of(box), sealer)
        await credentials.put(connection, jobs, "key", "value", sealer, 1)
        await usage.apply(connection, [window_of(jobs, box.id, "two")])
        await budgets.put(
            connection, jobs.team_id, Budget(key=project_key(jobs.project_id or ""), limits=Limits(active_cpu_us=1)), None
        )
        await removals.begin(connection, jobs, 5)
        assert await removals.due(connection) == [jobs]
        assert await tenants.find_project(connection, jobs.team_id, "jobs") is None
        await removals.remove_rows(connection, jobs)
        await removals.finish(connection, jobs)
    assert await counts(database) == before


async def test_nothing_that_was_removed_is_left_in_the_file(database: Database, sealer: Sealer) -> None:
    scope = await new_scope(database, "mine", "canary-7b3e")
    await fill(database, scope, sealer, "canary-7b3e")
    async with database.write() as connection:
        await removals.begin(connection, Scope(scope.team_id), 5)
        await removals.remove_rows(connection, Scope(scope.team_id))
    await database.scrub()
    if database.dialect == "sqlite":
        path = database._writer.url.database
        assert path is not None
        for suffix in ("", "-wal"):
            with open(path + suffix, "rb") as file:
                assert b"canary-7b3e" not in file.read()
