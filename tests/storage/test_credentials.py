"""Stored credentials in the database."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import text

from hutch.control.records import CredentialRecord, Scope
from hutch.errors import BadRequestError, InternalError
from hutch.storage import credentials
from hutch.storage.database import Database
from hutch.storage.sealing import Sealer
from tests.storage.conftest import new_scope


async def put(database: Database, scope: Scope, name: str, value: str, sealer: Sealer, now: int = 1) -> None:
    async with database.write() as connection:
        await credentials.put(connection, scope, name, value, sealer, now)


async def test_a_value_is_kept_sealed_replaced_and_deleted(database: Database, scope: Scope, sealer: Sealer) -> None:
    await put(database, scope, "B", "first", sealer, 1)
    await put(database, scope, "a", "other", sealer, 2)
    await put(database, scope, "B", "second", sealer, 3)
    async with database.write() as connection:
        found = await credentials.values(connection, scope, ["B", "a", "none"], sealer)
        assert found == {"B": "second", "a": "other"}
        assert await credentials.values(connection, scope, [], sealer) == {}
        # By bytes on both databases.
        assert await credentials.list_names(connection, scope) == [CredentialRecord("B", 1, 3), CredentialRecord("a", 2, 2)]
        sealed = (await connection.execute(text("SELECT value FROM credentials"))).scalars().all()
        assert not any(b"second" in bytes(value) or b"other" in bytes(value) for value in sealed)
        assert await credentials.remove(connection, scope, "B")
        assert not await credentials.remove(connection, scope, "B")


async def test_projects_have_their_own(database: Database, scope: Scope, sealer: Sealer) -> None:
    other = await new_scope(database, "acme", "other")
    await put(database, scope, "KEY", "mine", sealer)
    await put(database, other, "KEY", "theirs", sealer)
    async with database.write() as connection:
        assert await credentials.values(connection, scope, ["KEY"], sealer) == {"KEY": "mine"}
        assert await credentials.remove(connection, other, "KEY")
        assert await credentials.values(connection, scope, ["KEY"], sealer) == {"KEY": "mine"}


async def test_a_sealed_value_counts_only_where_it_was_written(database: Database, scope: Scope, sealer: Sealer) -> None:
    await put(database, scope, "KEY", "x", sealer)
    async with database.write() as connection:
        await connection.execute(text("UPDATE credentials SET name = 'MOVED'"))
        with pytest.raises(InternalError):
            await credentials.values(connection, scope, ["MOVED"], sealer)


async def test_concurrent_writers_of_a_new_name_all_succeed(database: Database, scope: Scope, sealer: Sealer) -> None:
    await asyncio.gather(*(put(database, scope, "KEY", str(number), sealer, number) for number in range(8)))
    async with database.read() as connection:
        assert len(await credentials.list_names(connection, scope)) == 1


async def test_a_project_has_a_bounded_number(
    database: Database, scope: Scope, sealer: Sealer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "MAX_PER_PROJECT", 1)
    await put(database, scope, "A", "x", sealer)
    await put(database, scope, "A", "y", sealer)
    with pytest.raises(BadRequestError) as refused:
        await put(database, scope, "B", "x", sealer)
    assert refused.value.code == "too_many_credentials"


async def test_they_go_with_their_project(database: Database, scope: Scope, sealer: Sealer) -> None:
    await put(database, scope, "KEY", "x", sealer)
    async with database.write() as connection:
        await connection.execute(text("DELETE FROM projects"))
        assert (await connection.execute(text("SELECT count(*) FROM credentials"))).scalar_one() == 0
