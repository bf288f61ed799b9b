"""The same contract on both databases: every test that takes `database` runs twice."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from hutch.control.records import SandboxConfig, SandboxRecord, Scope, SessionRow
from hutch.host.protocol import SessionStatus
from hutch.ids import sandbox_id, session_id
from hutch.storage import tenants
from hutch.storage.database import Database
from hutch.storage.migrate import Migrations
from hutch.storage.sealing import Sealer
from tests.storage.postgres import cluster


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    with cluster() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
async def empty(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    """A database without tables."""
    url = f"sqlite:///{tmp_path / 'hutch.db'}" if request.param == "sqlite" else request.getfixturevalue("postgres")
    database = Database(url)
    if request.param == "postgresql":
        async with database.write() as connection:
            await connection.execute(text("DROP SCHEMA public CASCADE"))
            await connection.execute(text("CREATE SCHEMA public"))
    yield database
    await database.close()


@pytest.fixture
async def database(empty: Database) -> Database:
    """A database with the newest schema."""
    await empty.open(Migrations())
    return empty


@pytest.fixture
def sealer() -> Sealer:
    return Sealer(b"k" * 32)


@pytest.fixture
async def scope(database: Database) -> Scope:
    return await new_scope(database, "acme")


async def new_scope(database: Database, team: str, project: str = "web") -> Scope:
    async with database.write() as connection:
        found = await tenants.ensure_team(connection, team, 1)
        return Scope(found.id, (await tenants.ensure_project(connection, found.id, project, 1)).id)


def sandbox(scope: Scope, name: str, *, created_at: int = 1000, **config: object) -> SandboxRecord:
    values: dict[str, object] = {
        "image": "i",
        "timeout_ms": 300_000,
        "vcpus": 2,
        "memory_mb": 4096,
        "persistent": True,
        "runtime": "node22",
        "region": "iad1",
        "cwd": "/vercel",
    }
    assert scope.project_id is not None
    return SandboxRecord(
        id=sandbox_id(),
        team_id=scope.team_id,
        project_id=scope.project_id,
        name=name,
        config=SandboxConfig(**(values | config)),  # type: ignore[arg-type]
        routes=(),
        status="pending",
        status_updated_at=created_at,
        created_at=created_at,
        updated_at=created_at,
        current_session_id=session_id(),
    )


def session_of(record: SandboxRecord, **values: object) -> SessionRow:
    base: dict[str, object] = {
        "id": record.current_session_id,
        "sandbox_id": record.id,
        "team_id": record.team_id,
        "project_id": record.project_id,
        "sandbox_name": record.name,
        "status": SessionStatus.PENDING,
        "image": "i",
        "runtime": "node22",
        "region": "iad1",
        "cwd": "/vercel",
        "vcpus": 2,
        "memory_mb": 4096,
        "timeout_ms": 300_000,
        "requested_at": record.created_at,
        "created_at": record.created_at,
        "updated_at": record.created_at,
    }
    return SessionRow(**(base | values))  # type: ignore[arg-type]
