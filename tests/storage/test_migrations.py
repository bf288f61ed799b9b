"""The schema: made by the steps, equal to the models, safe to make twice."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection

from hutch.errors import BadRequestError, UnavailableError
from hutch.storage.database import Database
from hutch.storage.migrate import Migrations
from hutch.storage.models import Base


async def test_the_steps_make_what_the_models_say(database: Database) -> None:
    def difference(connection: Connection) -> object:
        return compare_metadata(MigrationContext.configure(connection), Base.metadata)

    async with database.write() as connection:
        assert await connection.run_sync(difference) == []
        assert await connection.run_sync(Migrations().current) == Migrations().head


async def test_opening_again_changes_nothing(database: Database) -> None:
    await database.open(Migrations())
    async with database.read() as connection:
        assert await connection.run_sync(Migrations().current) == Migrations().head


async def test_two_processes_may_open_an_empty_database_at_once(empty: Database) -> None:
    url = empty._writer.url.render_as_string(hide_password=False)
    others = [Database(url.replace("+aiosqlite", "").replace("+asyncpg", "")) for _ in range(3)]
    await asyncio.gather(*(database.open(Migrations()) for database in [empty, *others]))
    for other in others:
        await other.close()


async def test_a_database_that_is_away_is_503(tmp_path: Path) -> None:
    for url in (f"postgresql://hutch@/hutch?host={tmp_path}", f"sqlite:///{tmp_path}/missing/hutch.db"):
        database = Database(url)
        with pytest.raises(UnavailableError) as refused:
            await database.open(Migrations())
        assert refused.value.code == "database_unavailable"
        with contextlib.suppress(UnavailableError):
            await database.close()
    # The driver's thread answers the loop once more after a failed open, so the loop must outlive it.
    for thread in threading.enumerate():
        if "_connection_worker_thread" in thread.name:
            await asyncio.to_thread(thread.join, 10)


@pytest.mark.parametrize("url", ["mysql://x", "nonsense", "", "sqlite"])
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(BadRequestError):
        Database(url)
