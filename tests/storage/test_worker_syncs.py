"""Syncs on a real database with processes that die anywhere: the rows are what the other side has, and nothing counts twice."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from hutch import ids
from hutch.control.records import Scope
from hutch.storage import worker_rows, worker_syncs, workers
from hutch.storage.database import Database
from hutch.storage.sealing import Sealer
from hutch.storage.workers import Deployment, Worker
from hutch.workers import manifest, reconcile, runs, scheduler
from hutch.workers.changes import Batch, Change, Delete, PacerState, Upsert
from hutch.workers.outcome import Failure, Outcome, Success
from hutch.workers.scheduler import LEASE_MS, Job
from hutch.workers.sync import Ask, Event, Label, Pause, Reset, Resume
from tests.storage.conftest import new_scope

KEYS = "abcdefgh"
PAGE = 2
STEPS = 120
DATABASE = {
    "key": "d",
    "config": {
        "type": "managed",
        "initialTitle": "D",
        "primaryKeyProperty": "Id",
        "schema": {"properties": {"Id": {"type": "title"}, "value": {"type": "number"}}},
    },
}


def declared(*syncs: tuple[str, str, dict[str, Any]]) -> dict[str, Any]:
    return {
        "sdkVersion": "0.9.2",
        "capabilities": [
            {
                "_tag": "sync",
                "key": key,
                "config": {"databaseKey": "d", "primaryKeyProperty": "Id", "mode": mode, "schedule": schedule},
            }
            for key, mode, schedule in syncs
        ],
        "databases": [DATABASE],
        "pacers": [{"key": "p", "config": {"allowedRequests": 10, "intervalMs": 1000}}],
    }


MINUTES = {"type": "interval", "intervalMs": 300_000}
TWO = declared(("backfill", "replace", {"type": "manual"}), ("delta", "incremental", MINUTES))


class KilledError(Exception):
    """The process is gone."""


class Mortal:
    """A database whose user may die before or after a transaction is over."""

    def __init__(self, database: Database, chance: random.Random) -> None:
        self._database, self._random = database, chance
        self.risk = 0.0
        self.read = database.read

    @contextlib.asynccontextmanager
    async def write(self) -> AsyncIterator[Any]:
        fate = self._random.random()
        async with self._database.write() as connection:
            yield connection
            if fate < self.risk / 2:
                raise KilledError
        if fate < self.risk:
            raise KilledError


class Upstream:
    """The other side: rows with the step of their change, and a log."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[int, int]] = {}
        self.log: list[tuple[str, int | None, int]] = []
        self.step = 0

    def change(self, chance: random.Random) -> None:
        self.step += 1
        key = chance.choice(KEYS)
        if chance.random() < 0.3:
            if self.rows.pop(key, None) is not None:
                self.log.append((key, None, self.step))
            return
        value = chance.randrange(100)
        self.rows[key] = (value, self.step)
        self.log.append((key, value, self.step))

    def page(self, cursor: Any) -> Batch:
        keys = [key for key in sorted(self.rows) if cursor is None or key > cursor]
        more = len(keys) > PAGE
        changes: list[Change] = [upsert(key, *self.rows[key]) for key in keys[:PAGE]]
        return batch(changes, more, keys[PAGE - 1] if more else None)

    def news(self, cursor: Any) -> Batch:
        at = cursor or 0
        entries = self.log[at : at + PAGE]
        changes: list[Change] = [Delete(key=key) if value is None else upsert(key, value, step) for key, value, step in entries]
        return batch(changes, at + len(entries) < len(self.log), at + len(entries))


def batch(changes: list[Change], more: bool, state: Any) -> Batch:
    pacer = PacerState(last_scheduled_at_ms=10**12 + 5, allowed_requests=10, interval_ms=1000)
    return Batch(changes=tuple(changes), has_more=more, state=state, pacers={"p": pacer})


def upsert(key: str, value: int, step: int) -> Upsert:
    return Upsert(key=key, properties={"Id": key, "value": value}, upstream_updated_at_ms=step)


class World:
    """One worker, and processes that run its syncs."""

    def __init__(self, database: Database, scope: Scope, sealer: Sealer, worker: Worker, chance: random.Random) -> None:
        self.now = 10**12
        self.database, self.scope, self.sealer, self.worker, self.random = database, scope, sealer, worker, chance
        self.mortal = Mortal(database, chance)
        self.services: Any = SimpleNamespace(database=self.mortal, sealer=sealer, clock=lambda: self.now, worker_rates=None)
        self.upstream = Upstream()
        self.dead: list[tuple[Job, Outcome]] = []
        """Runs of dead processes, whose results may still come."""

    async def deploy(self, content: dict[str, Any]) -> None:
        async with self.database.write() as connection:
            parsed = manifest.parse(json.dumps(content).encode())
            deployment = Deployment(
                ids.worker_id(), self.worker.id, self.worker.team_id, self.worker.project_id, "ready", "", None, None, 1
            )
            await workers.add_deployment(connection, deployment)
            sealed = self.sealer.seal(content, deployment.id)
            await workers.change_deployment(
                connection, self.scope, deployment.id, 1, status="ready", before=("ready",), manifest=sealed
            )
            await reconcile.apply(connection, self.scope, self.worker.id, parsed, self.sealer, self.now)
            await workers.touch(connection, self.scope, self.worker.id, 1, deployment_id=deployment.id)

    async def take(self) -> Job | None:
        async with self.mortal.write() as connection:
            waiting = await worker_syncs.waiting(connection, self.now)
            if not waiting:
                return None
            assert self.scope.project_id is not None
            found = await worker_syncs.take(connection, self.scope.project_id, self.now, self.now + LEASE_MS, self.sealer)
            assert found is not None
            return await scheduler.begin(self.services, connection, found, self.now)

    def outcome(self, job: Job, failing: float = 0.0) -> Outcome:
        if self.random.random() < failing:
            return Failure(name="E", message="no luck", tag="rate_limit" if self.random.random() < 0.3 else None)
        read = self.upstream.page if job.sync.key == "backfill" else self.upstream.news
        assert set(job.context["pacers"]) == {"p"}
        return Success(read(job.context.get("state")))

    async def tell(self, key: str, event: Event) -> None:
        async with self.database.write() as connection:
            await scheduler.tell(self.services, connection, self.scope, self.worker.id, key, event)

    async def sync(self, key: str) -> worker_syncs.Sync:
        return await scheduler.find(self.services, self.scope, self.worker.id, key)

    async def rows(self) -> dict[str, Any]:
        async with self.database.read() as connection:
            known = await worker_rows.databases(connection, self.scope, self.worker.id)
            found, _ = await worker_rows.page(connection, self.scope, self.worker.id, known, "d", limit=100)
        return {row.key: row.properties["value"] for row in found}

    async def settle(self) -> None:
        """Run until nothing is due, with processes that live."""
        self.mortal.risk = 0
        for _ in range(400):
            job = await self.take()
            if job is not None:
                await scheduler.finish(self.services, job, self.outcome(job))
            else:
                async with self.database.read() as connection:
                    found = await worker_syncs.of_worker(connection, self.scope, self.worker.id, self.sealer)
                states = [item.state for item in found.values()]
                if all(state.running is None and state.cycle is None and not state.triggered for state in states):
                    return
                self.now += LEASE_MS + 1
        raise AssertionError("it does not come to rest")


@pytest.fixture
async def world(database: Database, scope: Scope, sealer: Sealer) -> World:
    return await new_world(database, scope, sealer, 1)


async def new_world(database: Database, scope: Scope, sealer: Sealer, seed: int) -> World:
    assert scope.project_id is not None
    worker = Worker(ids.worker_id(), scope.team_id, scope.project_id, "w", None, 1, 1)
    async with database.write() as connection:
        await workers.add(connection, worker)
    return World(database, scope, sealer, worker, random.Random(seed))


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_dies_the_rows_are_those_of_the_other_side(
    database: Database, scope: Scope, sealer: Sealer, seed: int
) -> None:
    world = await new_world(database, scope, sealer, seed)
    chance = world.random
    await world.deploy(TWO)
    world.mortal.risk = 0.25
    for _ in range(STEPS):
        world.now += chance.choice([1, 100, LEASE_MS, 60_000])
        action = chance.random()
        key = chance.choice(["backfill", "delta"])
        if action < 0.35:
            world.upstream.change(chance)
        elif action < 0.85:
            with contextlib.suppress(KilledError):
                job = await world.take()
                if job is None:
                    continue
                outcome = world.outcome(job, failing=0.15)
                world.dead.append((job, outcome))
                if chance.random() < 0.8:
                    await scheduler.finish_once(world.services, job, outcome)
        elif action < 0.9 and world.dead:
            # Somebody who was believed to be dead writes after all, perhaps once more.
            with contextlib.suppress(KilledError):
                await scheduler.finish_once(world.services, *chance.choice(world.dead))
        elif action < 0.94:
            await world.tell(key, Ask(now_ms=world.now))
        elif action < 0.96:
            await world.tell(key, Pause(now_ms=world.now) if chance.random() < 0.5 else Resume(now_ms=world.now))
        elif action < 0.98:
            await world.tell(key, Reset(now_ms=world.now))
        else:
            await world.deploy(TWO)
    for key in ("backfill", "delta"):
        await world.tell(key, Resume(now_ms=world.now))
    await world.settle()
    for key in ("delta", "backfill", "delta"):
        await world.tell(key, Ask(now_ms=world.now))
        await world.settle()
    assert await world.rows() == {key: value for key, (value, _) in world.upstream.rows.items()}
    assert (await world.sync("delta")).state.cursor == len(world.upstream.log)
    for job, outcome in world.dead:
        await scheduler.finish(world.services, job, outcome)
    assert await world.rows() == {key: value for key, (value, _) in world.upstream.rows.items()}, "late results count for nothing"


async def test_a_sync_has_one_taker_until_that_is_silent(world: World) -> None:
    await world.deploy(declared(("delta", "incremental", MINUTES)))
    first = await world.take()
    assert first is not None
    assert await world.take() is None
    world.now += LEASE_MS - 1
    async with world.database.write() as connection:
        assert await worker_syncs.prolong(connection, first.sync, world.now + LEASE_MS)
    world.now += LEASE_MS - 1
    assert await world.take() is None, "it lives"
    world.now += 2
    second = await world.take()
    assert second is not None
    async with world.database.write() as connection:
        assert not await worker_syncs.prolong(connection, first.sync, world.now + LEASE_MS)
    await scheduler.finish(world.services, first, Success(batch([upsert("a", 1, 1)], False, 9)))
    assert await world.rows() == {}
    await scheduler.finish(world.services, second, Success(batch([upsert("b", 1, 1)], False, 7)))
    assert await world.rows() == {"b": 1}
    assert (await world.sync("delta")).state.cursor == 7
    async with world.database.read() as connection:
        assert await worker_syncs.pacers(connection, world.scope, world.worker.id) == {"p": 10**12 + 5}


async def test_what_fails_is_labelled_and_tried_later(world: World) -> None:
    await world.deploy(declared(("delta", "incremental", MINUTES)))
    labels = [(await world.sync("delta")).state.label]
    for _ in range(3):
        job = await world.take()
        assert job is not None
        await scheduler.finish(world.services, job, Failure(name="E", message="away"))
        found = (await world.sync("delta")).state
        labels.append(found.label)
        assert found.last_error == "E: away"
        assert await world.take() is None
        world.now += 3_700_000 * 2
    assert labels == [Label.INITIALIZING, Label.WARNING, Label.WARNING, Label.ERROR]
    await world.settle()
    assert (await world.sync("delta")).state.label is Label.HEALTHY


async def test_after_a_long_silence_there_is_one_cycle(world: World) -> None:
    await world.deploy(declared(("delta", "incremental", MINUTES)))
    await world.settle()
    world.now += 100 * 300_000
    await world.settle()
    assert (await world.sync("delta")).state.stats.cycles == 2
    assert await world.take() is None


async def test_state_survives_deployments_also_those_without_the_sync(world: World) -> None:
    await world.deploy(TWO)
    world.upstream.change(random.Random(4))
    await world.settle()
    cursor = (await world.sync("delta")).state.cursor
    rows = await world.rows()
    assert cursor == 1
    world.now += 300_001
    job = await world.take()
    assert job is not None
    await world.deploy(declared(("other", "replace", {"type": "manual"})))
    await scheduler.finish(world.services, job, Success(batch([upsert("z", 1, 1)], False, 99)))
    assert await world.rows() == rows, "nobody waits for it any more"
    await world.deploy(TWO)
    assert (await world.sync("delta")).state.cursor == cursor
    await world.settle()
    assert (await world.sync("delta")).state.label is Label.HEALTHY


async def test_a_batch_that_can_not_be_written_is_a_failure(world: World) -> None:
    await world.deploy(declared(("delta", "incremental", MINUTES)))
    job = await world.take()
    assert job is not None
    impossible = Upsert(key="\ud800", properties={"Id": "x"})
    await scheduler.finish(world.services, job, Success(batch([upsert("a", 1, 1), impossible], False, 1)))
    assert await world.rows() == {}
    state = (await world.sync("delta")).state
    assert (state.label, state.last_error is not None and state.last_error[:10]) == (Label.WARNING, "WriteError")


async def test_projects_are_told_apart(world: World) -> None:
    await world.deploy(TWO)
    await world.settle()
    stranger = await new_scope(world.database, "strangers")
    async with world.database.write() as connection:
        assert await worker_syncs.of_worker(connection, stranger, world.worker.id, world.sealer) == {}
        assert await worker_rows.databases(connection, stranger, world.worker.id) == {}
        assert await worker_syncs.next_mark(connection, stranger, world.worker.id, 1) is None
        assert not await workers.remove(connection, stranger, world.worker.id)
    assert (await world.sync("delta")).state.label is Label.HEALTHY
    async with world.database.write() as connection:
        assert await workers.remove(connection, world.scope, world.worker.id)


async def test_several_processes_share_syncs_and_none_runs_one_that_another_has(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [f"s{number}" for number in range(12)]
    await world.deploy(declared(*((key, "incremental", MINUTES) for key in keys)))
    active: set[str] = set()
    runs_of: list[tuple[str, int]] = []

    async def outcome(services: Any, *arguments: Any) -> Outcome:
        capability, context = arguments[-2:]
        assert capability.key not in active, "somebody else runs it"
        active.add(capability.key)
        runs_of.append((services.name, context.get("state") or 0))
        await asyncio.sleep(0.02)
        active.remove(capability.key)
        at = (context.get("state") or 0) + 1
        return Success(batch([upsert(f"{capability.key}-{at}", at, at)], at < 5, at))

    monkeypatch.setattr(runs, "outcome", outcome)

    def process(name: str) -> asyncio.Task[None]:
        settings = SimpleNamespace(workers=SimpleNamespace(sync_concurrency=3))
        mine = {"name": name, "settings": settings, "syncs_due": asyncio.Event(), "draining": False}
        mine |= {"warm": None, "worker_rates": None, "working": set()}
        services: Any = SimpleNamespace(database=world.database, sealer=world.sealer, clock=lambda: world.now, **mine)
        return asyncio.create_task(scheduler.Scheduler(services).work())

    processes = [process("one"), process("two")]
    try:
        async with asyncio.timeout(60):
            while len(await world.rows()) < 5 * len(keys):
                await asyncio.sleep(0.05)
    finally:
        for task in processes:
            task.cancel()
        await asyncio.gather(*processes, return_exceptions=True)
    assert len(runs_of) == 5 * len(keys), "each page was asked for once"
    assert {name for name, _ in runs_of} == {"one", "two"}
    assert active == set()


async def test_a_process_that_ends_hands_its_runs_to_the_next(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.deploy(declared(("delta", "incremental", MINUTES)))
    begun = asyncio.Event()

    async def outcome(*arguments: Any) -> Outcome:
        begun.set()
        await asyncio.sleep(3600)
        raise AssertionError("unreachable")

    monkeypatch.setattr(runs, "outcome", outcome)
    settings = SimpleNamespace(workers=SimpleNamespace(sync_concurrency=3))
    services: Any = SimpleNamespace(
        database=world.database,
        sealer=world.sealer,
        clock=lambda: world.now,
        settings=settings,
        syncs_due=asyncio.Event(),
        draining=True,
        warm=None,
        worker_rates=None,
        working=set(),
    )
    first = asyncio.create_task(scheduler.Scheduler(services).work())
    await asyncio.sleep(0.2)
    assert not begun.is_set(), "a server that drains begins nothing"
    services.draining = False
    services.syncs_due.set()
    async with asyncio.timeout(20):
        await begun.wait()
    assert await world.take() is None
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert (await world.sync("delta")).leased_until is None
    job = await world.take()
    assert job is not None, "at once, without waiting for the lease"


async def test_what_can_not_be_read_holds_up_nobody_else(world: World, sealer: Sealer, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.deploy(declared(("delta", "incremental", MINUTES)))
    others = await new_world(world.database, await new_scope(world.database, "others"), Sealer(b"x" * 32), 1)
    others.sealer = sealer
    await others.deploy(declared(("delta", "incremental", MINUTES)))
    async with world.database.write() as connection:
        found = await worker_syncs.find(connection, world.scope, world.worker.id, "delta", sealer)
        assert found is not None
        await worker_syncs.put(connection, found, found.state, Sealer(b"lost" * 8))

    async def outcome(*arguments: Any) -> Outcome:
        return Success(batch([upsert("a", 1, 1)], False, 1))

    monkeypatch.setattr(runs, "outcome", outcome)
    settings = SimpleNamespace(workers=SimpleNamespace(sync_concurrency=1))
    services: Any = SimpleNamespace(
        database=world.database,
        sealer=sealer,
        clock=lambda: world.now,
        settings=settings,
        syncs_due=asyncio.Event(),
        draining=False,
        worker_rates=None,
        warm=None,
        ahead=None,
        working=set(),
    )
    working = asyncio.create_task(scheduler.Scheduler(services).work())
    try:
        async with asyncio.timeout(20):
            while await others.rows() != {"a": 1}:
                await asyncio.sleep(0.02)
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


async def test_what_was_used_is_left_alone_while_syncs_that_are_due_wait_for_their_turn(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.deploy(declared(*((key, "incremental", MINUTES) for key in ("a", "b", "c"))))
    begun: asyncio.Queue[str] = asyncio.Queue()
    go_on = asyncio.Event()

    async def outcome(*arguments: Any) -> Outcome:
        begun.put_nowait(arguments[-2].key)
        await go_on.wait()
        return Success(batch([], False, 1))

    monkeypatch.setattr(runs, "outcome", outcome)
    calm, taken = asyncio.Event(), asyncio.Event()
    services: Any = SimpleNamespace(
        database=world.database,
        sealer=world.sealer,
        clock=lambda: world.now,
        settings=SimpleNamespace(workers=SimpleNamespace(sync_concurrency=2)),
        syncs_due=asyncio.Event(),
        draining=False,
        worker_rates=None,
        warm=SimpleNamespace(calm=calm, taken=taken),
        ahead=None,
        working=set(),
    )
    working = asyncio.create_task(scheduler.Scheduler(services).work())
    try:
        async with asyncio.timeout(20):
            first = {await begun.get(), await begun.get()}
            # It looks for more, and there is no room for the third.
            services.syncs_due.set()
            await asyncio.sleep(0.1)
            assert not calm.is_set()
            await taken.wait()
            go_on.set()
            assert {await begun.get()} | first == {"a", "b", "c"}
            await calm.wait()
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
