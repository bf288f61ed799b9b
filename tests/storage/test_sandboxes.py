"""Sandboxes and sessions in the database."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from sqlalchemy import text

from hutch.control.lifecycle import lost, merge
from hutch.control.records import NetworkPolicy, Route, Scope, SessionRow, Unconfirmed
from hutch.errors import ConflictError, InternalError
from hutch.host.protocol import SessionRecord, SessionStatus
from hutch.storage import hosts, sandboxes, sessions
from hutch.storage.database import Database
from hutch.storage.sandboxes import SandboxQuery
from hutch.storage.sealing import Sealer
from tests.storage.conftest import new_scope, sandbox, session_of

POLICY = NetworkPolicy('{"mode":"deny-all"}', {"mode": "deny-all"}, 2, ({"pointer": "", "code": "c", "message": "m"},), ("A",))


def report(row: SessionRow, status: SessionStatus, **values: object) -> SessionRecord:
    base: dict[str, object] = {
        "session_id": row.id,
        "sandbox_name": row.sandbox_name,
        "project_id": row.project_id,
        "status": status,
        "image": "i",
        "cwd": "/vercel",
        "vcpus": 2,
        "memory_mb": 4096,
        "timeout_ms": row.timeout_ms,
        "requested_at": 1000,
        "started_at": 1010,
    }
    return SessionRecord(**(base | values))  # type: ignore[arg-type]


async def test_what_is_added_is_found_again_whole(database: Database, scope: Scope, sealer: Sealer) -> None:
    record = replace(
        sandbox(
            scope,
            "one",
            env={"A": "größe €"},
            tags={"k": "v"},
            network_policy=POLICY,
            keep_last_snapshots={"count": 1},
            failover_regions=("sfo1",),
            disk_bytes=2**40,
            snapshot_expiration_ms=0,
        ),
        routes=(Route(3000, "sb-x"),),
    )
    row = session_of(record, network_policy=replace(POLICY, generation=3, unconfirmed=Unconfirmed(POLICY)))
    async with database.write() as connection:
        await sandboxes.add(connection, record, sealer)
        await sessions.add(connection, row, sealer)
    async with database.read() as connection:
        found = await sandboxes.find(connection, scope, "one", sealer)
        assert found is not None
        assert replace(found, number=0) == record
        seen = await sessions.find(connection, scope, row.id, sealer)
        assert seen is not None
        assert replace(seen, number=0) == row


async def test_a_name_is_taken_once_per_project(database: Database, scope: Scope, sealer: Sealer) -> None:
    other = await new_scope(database, "acme", "other")
    async with database.write() as connection:
        await sandboxes.add(connection, sandbox(scope, "one"), sealer)
        await sandboxes.add(connection, sandbox(other, "one"), sealer)
    with pytest.raises(ConflictError, match="one"):
        async with database.write() as connection:
            await sandboxes.add(connection, sandbox(scope, "one"), sealer)


async def test_concurrent_adds_of_one_name_let_one_through(database: Database, scope: Scope, sealer: Sealer) -> None:
    async def add() -> bool:
        try:
            async with database.write() as connection:
                await sandboxes.add(connection, sandbox(scope, "race"), sealer)
        except ConflictError:
            return False
        return True

    assert sum(await asyncio.gather(*(add() for _ in range(10)))) == 1


async def test_rows_outside_the_scope_do_not_exist(database: Database, scope: Scope, sealer: Sealer) -> None:
    theirs = await new_scope(database, "theirs")
    record = sandbox(theirs, "one")
    row = session_of(record)
    async with database.write() as connection:
        await sandboxes.add(connection, record, sealer)
        await sessions.add(connection, row, sealer)
        for foreign in (
            scope,
            Scope(scope.team_id),
            Scope(scope.team_id, theirs.project_id),
            Scope(theirs.team_id, scope.project_id),
        ):
            assert await sandboxes.find(connection, foreign, "one", sealer) is None
            assert (await sandboxes.page(connection, foreign, SandboxQuery(), sealer))[0] == []
            assert not await sandboxes.remove(connection, foreign, record.id, 1)
            assert await sessions.find(connection, foreign, row.id, sealer) is None
            assert await sessions.find_many(connection, foreign, [row.id], sealer) == {}
        assert await sandboxes.find(connection, Scope(theirs.team_id), "one", sealer) is not None


@pytest.mark.parametrize("sort_by", ["createdAt", "name", "statusUpdatedAt", "currentSnapshotId"])
@pytest.mark.parametrize("descending", [True, False])
async def test_pages_show_every_row_once_in_order(
    database: Database, scope: Scope, sealer: Sealer, sort_by: str, descending: bool
) -> None:
    names = ["b", "B", "a_1", "a-1", "A", "_", "-", "z9", "Z", "0"]
    async with database.write() as connection:
        for number, name in enumerate(names):
            # Several share a time, so that only the row's number tells them apart.
            await sandboxes.add(connection, sandbox(scope, name, created_at=1000 + number // 4), sealer)
    seen, query = [], SandboxQuery(sort_by=sort_by, descending=descending, limit=3)
    async with database.read() as connection:
        for _ in range(10):
            page, end = await sandboxes.page(connection, scope, query, sealer)
            seen += [record.name for record in page]
            if end is None:
                break
            query = replace(query, after=end)
    expected = sorted(names) if sort_by == "name" else names
    assert seen == (expected[::-1] if descending else expected)


async def test_names_sort_and_filter_by_bytes(database: Database, scope: Scope, sealer: Sealer) -> None:
    async with database.write() as connection:
        for name in ("ab", "aB", "a_b", "a", "b", "A"):
            await sandboxes.add(connection, sandbox(scope, name), sealer)
        query = SandboxQuery(sort_by="name", descending=False, name_prefix="a")
        page, _ = await sandboxes.page(connection, scope, query, sealer)
    assert [record.name for record in page] == ["a", "aB", "a_b", "ab"]


async def test_tags_and_status_filter(database: Database, scope: Scope, sealer: Sealer) -> None:
    first, second = sandbox(scope, "one", tags={"k": "v", "x": "y"}), sandbox(scope, "two", tags={"k": "w"})
    async with database.write() as connection:
        await sandboxes.add(connection, first, sealer)
        await sandboxes.add(connection, second, sealer)

        async def names(query: SandboxQuery) -> list[str]:
            return [record.name for record in (await sandboxes.page(connection, scope, query, sealer))[0]]

        assert await names(SandboxQuery(tag=("k", "v"))) == ["one"]
        await sandboxes.save(connection, replace(first, config=replace(first.config, tags={})), sealer)
        assert await names(SandboxQuery(tag=("k", "v"))) == []
        assert await names(SandboxQuery(status="pending")) == ["two", "one"]
        assert await names(SandboxQuery(status="running")) == []


async def test_removing_frees_the_name_and_hides_the_sessions(database: Database, scope: Scope, sealer: Sealer) -> None:
    record = sandbox(scope, "one", tags={"a": "b"})
    row = session_of(record)
    async with database.write() as connection:
        await sandboxes.add(connection, record, sealer)
        await sessions.add(connection, row, sealer)
        assert await sandboxes.remove(connection, scope, record.id, 5)
        assert not await sandboxes.remove(connection, scope, record.id, 5)
        assert await sessions.find(connection, scope, row.id, sealer) is None
        assert await sessions.owner(connection, row.id) == (scope.team_id, scope.project_id)
        assert await sessions.find_any(connection, row.id, sealer) is not None
        await sandboxes.add(connection, sandbox(scope, "one"), sealer)


async def test_usage_is_added_once_however_often_the_end_is_reported(database: Database, scope: Scope, sealer: Sealer) -> None:
    record = sandbox(scope, "one")
    row = session_of(record)
    async with database.write() as connection:
        await sandboxes.add(connection, record, sealer)
        await sessions.add(connection, row, sealer)

    ended = report(row, SessionStatus.STOPPED, stopped_at=2010, active_cpu_us=5_000_000_000, ingress_bytes=2**40, egress_bytes=7)

    async def end() -> None:
        async with database.write() as connection:
            await sessions.change(connection, row.id, sealer, lambda found: merge(found, ended, 3000))

    await asyncio.gather(*(end() for _ in range(8)))
    async with database.write() as connection:
        await sessions.change(connection, row.id, sealer, lambda found: lost(found, 4000))
    async with database.read() as connection:
        found = await sandboxes.find(connection, scope, "one", sealer)
    assert found is not None
    assert (found.total_active_cpu_us, found.total_duration_ms, found.total_ingress_bytes) == (5_000_000_000, 1000, 2**40)
    assert (found.status, found.status_updated_at) == ("stopped", 3000)


async def test_a_former_session_does_not_change_the_sandbox(database: Database, scope: Scope, sealer: Sealer) -> None:
    record = sandbox(scope, "one")
    former = session_of(record, id="sbx_former")
    async with database.write() as connection:
        await sandboxes.add(connection, record, sealer)
        await sessions.add(connection, former, sealer)
        ended = report(former, SessionStatus.STOPPED, stopped_at=2000)
        await sessions.change(connection, former.id, sealer, lambda found: merge(found, ended, 3000))
        found = await sandboxes.find(connection, scope, "one", sealer)
    assert found is not None
    assert found.status == "pending"
    assert found.total_duration_ms == 990


async def test_sessions_page_by_sandbox_and_live_ones_are_listed(database: Database, scope: Scope, sealer: Sealer) -> None:
    record = sandbox(scope, "one")
    async with database.write() as connection:
        await sandboxes.add(connection, record, sealer)
        for number in range(5):
            status = SessionStatus.RUNNING if number == 4 else SessionStatus.STOPPED
            await sessions.add(connection, session_of(record, id=f"sbx_{number}", status=status), sealer)
        page, end = await sessions.page(connection, scope, sealer, sandbox_name="one", descending=True, after=None, limit=3)
        rest, last = await sessions.page(connection, scope, sealer, sandbox_name="one", descending=True, after=end, limit=3)
        assert [row.id for row in [*page, *rest]] == [f"sbx_{number}" for number in (4, 3, 2, 1, 0)]
        assert last is None
        assert [row.id for row in await sessions.live(connection, sealer)] == ["sbx_4"]
        none, _ = await sessions.page(connection, scope, sealer, sandbox_name="two", descending=True, after=None, limit=3)
        assert none == []


async def test_a_failed_transaction_leaves_nothing(database: Database, scope: Scope, sealer: Sealer) -> None:
    with pytest.raises(ZeroDivisionError):
        async with database.write() as connection:
            await sandboxes.add(connection, sandbox(scope, "one"), sealer)
            raise ZeroDivisionError
    async with database.read() as connection:
        assert await sandboxes.find(connection, scope, "one", sealer) is None


async def test_reading_goes_on_while_something_is_written(database: Database, scope: Scope, sealer: Sealer) -> None:
    async with database.write() as writing:
        await sandboxes.add(writing, sandbox(scope, "one"), sealer)
        async with asyncio.timeout(5), database.read() as reading:
            assert await sandboxes.find(reading, scope, "one", sealer) is None


async def test_secrets_are_not_in_the_database_and_need_their_key_and_row(
    database: Database, scope: Scope, sealer: Sealer
) -> None:
    first, second = sandbox(scope, "one", env={"TOKEN": "s3cret"}), sandbox(scope, "two", env={"TOKEN": "other"})
    async with database.write() as connection:
        await sandboxes.add(connection, first, sealer)
        await sandboxes.add(connection, second, sealer)
        raw = (await connection.execute(text("SELECT env FROM sandboxes WHERE name = 'one'"))).scalar_one()
        assert b"s3cret" not in bytes(raw)
        with pytest.raises(InternalError):
            await sandboxes.find(connection, scope, "one", Sealer(b"x" * 32))
        await connection.execute(text("UPDATE sandboxes SET env = :env WHERE name = 'two'"), {"env": raw})
        with pytest.raises(InternalError):
            await sandboxes.find(connection, scope, "two", sealer)


async def test_the_cursor_of_a_host_is_kept(database: Database) -> None:
    async with database.write() as connection:
        assert await hosts.cursor(connection, "h") == 0
        await hosts.set_cursor(connection, "h", 5)
        await hosts.set_cursor(connection, "h", 2**40)
        assert await hosts.cursor(connection, "h") == 2**40
        assert await hosts.cursor(connection, "other") == 0
