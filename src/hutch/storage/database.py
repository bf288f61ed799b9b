"""Engines and transactions.

SQLite takes one writer at a time, so writes go through one connection (no "database is locked" within a process) that
begins with `BEGIN IMMEDIATE`, and reads through others, which WAL lets run beside it. PostgreSQL needs none of this: both
doors lead to one pool.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator
from typing import Any

from sqlalchemy import URL, Connection, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.util import LRUCache

from hutch.errors import BadRequestError, UnavailableError
from hutch.storage.migrate import Migrations

_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}
_AWAY_STATES = ("08", "53", "57", "40001", "40P01")
"""How PostgreSQL's codes begin for what another try may find otherwise: no connection, no room for one, a server that starts or
stops, transactions in each other's way."""
BUSY_TIMEOUT_MS = 5000
READERS = 4
MAX_STATEMENTS = 2000
"""How many statements are kept as SQL, for each process."""


class _Statements(LRUCache[Any, Any]):
    """What statements are in SQL, for all engines of this process. Making it takes longer than running it, and is the same for
    all databases of a kind; SQLAlchemy's own cache is one for each engine."""

    def get(self, key: Any, default: Any = None) -> Any:
        return super().get(self._shared(key), default)

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(self._shared(key), value)

    def _shared(self, key: Any) -> Any:
        dialect, *rest = key
        return (dialect.name, *rest)


_STATEMENTS = _Statements(MAX_STATEMENTS)


class _RolledBack(sqlite3.Connection):
    """One that ends its transaction when it is closed. SQLite keeps a closed connection, with its locks, for as long as there is
    an unfinished statement, and that of a task that was canceled lives as long as anybody has the task or its error."""

    def close(self) -> None:
        try:
            self.rollback()
        finally:
            super().close()


class Database:
    """One database. `open` before use, `close` after."""

    def __init__(self, url: str) -> None:
        try:
            parsed = make_url(url)
        except ArgumentError as error:
            raise BadRequestError("invalid_configuration", "`database.url` is not a database URL.") from error
        self.dialect = parsed.get_backend_name()
        if self.dialect not in _DRIVERS:
            raise BadRequestError("invalid_configuration", "`database.url` must start with sqlite:// or postgresql://.")
        parsed = parsed.set(drivername=_DRIVERS[self.dialect])
        if self.dialect == "sqlite":
            rolled_back = {"factory": _RolledBack}
            self._writer = _engine(parsed, pool_size=1, max_overflow=0, connect_args=rolled_back)
            self._reader = _engine(parsed, pool_size=READERS, max_overflow=0, connect_args=rolled_back)
            _prepare_sqlite(self._writer, "BEGIN IMMEDIATE")
            _prepare_sqlite(self._reader, "BEGIN")
        else:
            self._writer = self._reader = _engine(parsed, pool_size=10, max_overflow=10, pool_pre_ping=True)

    async def open(self, migrations: Migrations) -> None:
        """Bring the schema up to date."""
        path = self._writer.url.database
        if self.dialect == "sqlite" and path is not None:
            await asyncio.to_thread(_switch_to_wal, path)
        async with self.write() as connection:
            if self.dialect == "postgresql":
                await connection.execute(text("SELECT pg_advisory_xact_lock(4862719)"))
            await connection.run_sync(migrations.upgrade)

    @contextlib.asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that commits at the end, or rolls back on an error."""
        with _translated():
            async with self._writer.begin() as connection:
                yield connection

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A transaction for reading only."""
        with _translated():
            async with self._reader.begin() as connection:
                yield connection

    async def scrub(self) -> None:
        """Rewrite the file, so that nothing of what was deleted is left in it; writers wait meanwhile. PostgreSQL does so by
        itself, in its own time. Raises `UnavailableError` when it has to be tried again."""
        if self.dialect != "sqlite":
            return
        with _translated():
            # A connection that begins no transaction: neither may stand in one.
            async with self._writer.connect() as connection:
                driver: Any = (await connection.get_raw_connection()).driver_connection
                try:
                    # The process may not be allowed to write files anywhere else.
                    await driver.execute("PRAGMA temp_store=MEMORY")
                    await driver.execute("VACUUM")
                    cursor = await driver.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                    busy = (await cursor.fetchone())[0]
                except sqlite3.OperationalError as error:
                    raise _unavailable() from error
        if busy:
            raise _unavailable()

    async def close(self) -> None:
        await self._writer.dispose()
        if self._reader is not self._writer:
            await self._reader.dispose()


def _engine(url: URL, **pool: Any) -> AsyncEngine:
    return create_async_engine(url, execution_options={"compiled_cache": _STATEMENTS}, **pool)


@contextlib.contextmanager
def _translated() -> Any:
    """A database that is away is a 503, not a fault of ours."""
    try:
        yield
    except DBAPIError as error:
        state = getattr(error.orig, "sqlstate", None) or ""
        is_away = error.connection_invalidated or type(error).__name__ in ("OperationalError", "InterfaceError")
        if is_away or state.startswith(_AWAY_STATES):
            raise _unavailable() from error
        raise
    except (OSError, PoolTimeoutError) as error:
        raise _unavailable() from error


def _unavailable() -> UnavailableError:
    return UnavailableError("database_unavailable", "The database does not answer. Try again.", retry_after_s=1)


def _switch_to_wal(path: str) -> None:
    """Make WAL the file's journal, which it then stays. The switch needs the file for itself and, unlike everything else,
    does not wait for it, so that of several processes that open a new database all but one have to try again."""
    end = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            with contextlib.closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT_MS / 1000)) as connection:
                connection.execute("PRAGMA journal_mode=WAL")
                return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise _unavailable() from error
            time.sleep(0.01)


def _prepare_sqlite(engine: AsyncEngine, begin: str) -> None:
    @event.listens_for(engine.sync_engine, "connect")
    def connect(connection: Any, record: object) -> None:
        # The driver must not begin transactions by itself: it would do so with a deferred BEGIN, and only before writes.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin_transaction(connection: Connection) -> None:
        connection.exec_driver_sql(begin)
