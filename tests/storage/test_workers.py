"""Workers' deployments and logins on both databases."""

from __future__ import annotations

from hutch.control.records import Scope
from hutch.storage import worker_oauth, workers
from hutch.storage.database import Database
from hutch.storage.sealing import Sealer
from hutch.storage.workers import Deployment, Worker
from hutch.workers.oauth import Token


async def a_worker(database: Database, scope: Scope) -> Worker:
    assert scope.project_id is not None
    made = Worker("w", scope.team_id, scope.project_id, "one", None, 1, 1)
    async with database.write() as connection:
        await workers.add(connection, made)
    return made


async def test_only_deployments_that_wait_are_forgotten_and_the_newest_stay(database: Database, scope: Scope) -> None:
    worker = await a_worker(database, scope)
    states = {"a": "uploading", "b": "built", "c": "uploaded", "d": "building", "e": "uploaded", "f": "uploading"}
    async with database.write() as connection:
        for name, status in states.items():
            made = Deployment(name, worker.id, worker.team_id, worker.project_id, status, name, None, None, 1)
            await workers.add_deployment(connection, made)
        assert sorted(await workers.forget_waiting(connection, scope, worker.id, 2)) == ["a", "c"]
        assert await workers.forget_waiting(connection, scope, worker.id, 2) == []
        assert await workers.awaited_uploads(connection) == {"b", "d", "e", "f"}


async def test_a_login_is_known_by_its_refresh_token(database: Database, scope: Scope, sealer: Sealer) -> None:
    worker = await a_worker(database, scope)
    async with database.write() as connection:
        assert not await worker_oauth.holds(connection, scope, worker.id, "n", "sent", sealer)
        kept = Token(access_token="a", refresh_token="sent")
        await worker_oauth.put_token(connection, scope, worker.id, "n", kept, sealer, 1)
        assert await worker_oauth.holds(connection, scope, worker.id, "n", "sent", sealer)
        assert not await worker_oauth.holds(connection, scope, worker.id, "n", "another", sealer)
