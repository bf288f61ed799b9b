"""Drives in the database, and who has them."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from hutch.control.cursor import Position
from hutch.control.records import Drive, DriveHolder, Scope
from hutch.errors import ConflictError
from hutch.host.protocol import SessionStatus
from hutch.storage import drives, sandboxes, sessions
from hutch.storage.database import Database
from hutch.storage.drives import DriveQuery
from hutch.storage.sealing import Sealer
from tests.storage.conftest import new_scope, sandbox, session_of


def drive(scope: Scope, name: str, **values: object) -> Drive:
    assert scope.project_id is not None
    base: dict[str, object] = {
        "id": f"drive_{scope.project_id}_{name}"[:64],
        "team_id": scope.team_id,
        "project_id": scope.project_id,
        "name": name,
        "region": "iad1",
        "max_size_bytes": 16 * 1024**4,
        "created_at": 1000,
        "updated_at": 1000,
    }
    return Drive(**(base | values))  # type: ignore[arg-type]


async def add(database: Database, *some: Drive) -> None:
    async with database.write() as connection:
        for one in some:
            await drives.add(connection, one)


async def test_what_is_added_is_found_by_name_and_id_in_its_scope_only(database: Database, scope: Scope) -> None:
    other = await new_scope(database, "acme", "other")
    mine = drive(scope, "one", parent_drive_id="drive_p", root_drive_id="drive_r", made_at=5)
    await add(database, mine, drive(other, "one"), drive(scope, mine.id[:64]))
    async with database.read() as connection:
        found = await drives.find(connection, scope, "one")
        assert found is not None
        assert replace(found, number=0) == mine
        # A name that looks like an id is a name first.
        by_id = await drives.find(connection, scope, mine.id, by_id=True)
        assert by_id is not None
        assert by_id.name == mine.id
        assert await drives.find(connection, other, mine.id, by_id=True) is None
        assert await drives.find(connection, scope, found.id[:-1], by_id=True) is None


async def test_of_many_at_once_one_takes_the_name(database: Database, scope: Scope) -> None:
    tries = [add(database, drive(scope, "one", id=f"drive_{number}")) for number in range(5)]
    results = await asyncio.gather(*tries, return_exceptions=True)
    assert [type(result) for result in results if result is not None] == [ConflictError] * 4


@pytest.mark.parametrize("sort_by", ["createdAt", "updatedAt", "name"])
@pytest.mark.parametrize("descending", [True, False])
async def test_pages_show_every_drive_once_in_order(database: Database, scope: Scope, sort_by: str, descending: bool) -> None:
    names = ["b", "B", "a-1", "a_1", "a0", "Z"]
    await add(database, *(drive(scope, name, created_at=1000 + number // 2) for number, name in enumerate(names)))
    await add(database, drive(scope, "gone", deleting_at=1), drive(await new_scope(database, "acme", "other"), "x"))
    seen: list[str] = []
    after: Position | None = None
    while True:
        query = DriveQuery(sort_by=sort_by, descending=descending, name_prefix=None, after=after, limit=2)
        async with database.read() as connection:
            found, after = await drives.page(connection, scope, query)
        seen += [one.name for one in found]
        if after is None:
            break
    expected = sorted(names) if sort_by == "name" else names
    assert seen == (expected[::-1] if descending else expected)
    if sort_by == "name":
        query = DriveQuery(sort_by=sort_by, descending=descending, name_prefix="a", after=None, limit=10)
        async with database.read() as connection:
            found, _ = await drives.page(connection, scope, query)
        assert {one.name for one in found} == {"a-1", "a_1", "a0"}


@pytest.mark.parametrize("status", list(SessionStatus))
async def test_who_has_one_is_told_by_live_sessions(
    database: Database, scope: Scope, sealer: Sealer, status: SessionStatus
) -> None:
    one, read, free = (drive(scope, name) for name in ("one", "read", "free"))
    await add(database, one, read, free)
    record = sandbox(scope, "box", mounts={"/data": {"drive": "one", "mode": "read-write"}})
    mounts = [
        {"path": "/data", "drive_id": one.id, "mode": "read-write"},
        {"path": "/seen", "drive_id": read.id, "mode": "snapshot"},
    ]
    row = session_of(record, mounts=mounts, status=status)
    async with database.write() as connection:
        await sandboxes.add(connection, record, sealer)
        await sessions.add(connection, row, sealer)
        await sessions.add(connection, session_of(sandbox(scope, "other")), sealer)
    async with database.read() as connection:
        found = await sandboxes.find(connection, scope, "box", sealer)
        assert found is not None
        assert found.config.mounts == record.config.mounts
        holders = await drives.holders(connection, [one, read, free])
    holds = status in (SessionStatus.RUNNING, SessionStatus.STOPPING, SessionStatus.SNAPSHOTTING)
    assert holders == ({one.id: DriveHolder(row.id, "box")} if holds else {})


async def test_steps_of_its_life(database: Database, scope: Scope) -> None:
    one = drive(scope, "one")
    await add(database, one)
    async with database.write() as connection:
        assert await drives.made(connection, one.id, 7)
        assert not await drives.made(connection, "drive_none", 7)
        await drives.used(connection, [one.id], 8)
        await drives.set_deleting(connection, one.id, 9)
        assert await drives.deleting(connection) == [one.id]
        found = await drives.find(connection, scope, "one")
        assert found is not None
        assert (found.made_at, found.updated_at, found.deleting_at) == (7, 8, 9)
        await drives.set_deleting(connection, one.id, None)
        assert await drives.deleting(connection) == []
        await drives.remove(connection, one.id)
        assert await drives.find(connection, scope, "one") is None
