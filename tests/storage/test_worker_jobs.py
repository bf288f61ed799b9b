"""The queue of workers' jobs on both databases: leases, fences, turns, and processes that die at any point."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from hutch import ids
from hutch.control.records import Scope
from hutch.storage import worker_jobs as jobs
from hutch.storage import workers
from hutch.storage.database import Database
from hutch.storage.sealing import Sealer
from hutch.storage.worker_jobs import LEASE_MS, Job
from hutch.storage.workers import Worker
from tests.storage.conftest import new_scope

NOW = 1_700_000_000_000


async def new_worker(database: Database, scope: Scope) -> str:
    assert scope.project_id is not None
    worker = Worker(ids.worker_id(), scope.team_id, scope.project_id, "w", None, NOW, NOW)
    async with database.write() as connection:
        await workers.add(connection, worker)
    return worker.id


async def added(
    database: Database, scope: Scope, sealer: Sealer, worker: str, *, key: str = "k", priority: int = 0, once: str | None = None
) -> Job | None:
    async with database.write() as connection:
        return await jobs.add(
            connection,
            scope,
            sealer,
            NOW,
            job_id=ids.worker_id(),
            worker_id=worker,
            kind="webhook",
            key=key,
            content={"secret": "sealed"},
            input_hash="h",
            idempotency_key=once,
            priority=priority,
            retries=3,
        )


async def claimed(database: Database, owner: str, now: int) -> Job | None:
    async with database.read() as connection:
        projects = await jobs.due_projects(connection, now)
    for project in projects:
        async with database.write() as connection:
            if (job := await jobs.claim(connection, project, owner, now)) is not None:
                return job
    return None


async def test_a_job_is_claimed_once_run_and_ended(database: Database, scope: Scope, sealer: Sealer) -> None:
    worker = await new_worker(database, scope)
    job = await added(database, scope, sealer, worker)
    assert job is not None
    taken = await claimed(database, "a", NOW)
    assert taken is not None
    assert (taken.id, taken.fence, taken.began, taken.status) == (job.id, 1, False, "running")
    assert await claimed(database, "b", NOW + LEASE_MS - 1) is None
    async with database.write() as connection:
        assert await jobs.begin(connection, taken, "run", NOW)
        assert await jobs.finish(connection, taken, jobs.DONE, sealer.seal({"status": "success"}, f"{job.id}/result"), NOW)
        assert not await jobs.finish(connection, taken, jobs.DEAD, b"x", NOW), "it is over"
        assert await jobs.content(connection, scope, job.id, sealer) == ({"secret": "sealed"}, {"status": "success"})
        found = await jobs.find(connection, scope, worker, job.id)
    assert found is not None
    assert (found.status, found.attempts, found.run_id, found.ended_at) == ("done", 1, "run", NOW)
    assert await claimed(database, "b", NOW + 10 * LEASE_MS) is None


async def test_a_lease_that_is_over_is_taken_over_and_its_owner_changes_nothing(
    database: Database, scope: Scope, sealer: Sealer
) -> None:
    worker = await new_worker(database, scope)
    await added(database, scope, sealer, worker)
    first = await claimed(database, "a", NOW)
    assert first is not None
    async with database.write() as connection:
        assert await jobs.begin(connection, first, "run-1", NOW)
        assert await jobs.renew(connection, first, NOW + 1000)
    assert await claimed(database, "b", NOW + LEASE_MS) is None, "it was renewed"
    second = await claimed(database, "b", NOW + LEASE_MS + 1000)
    assert second is not None
    assert (second.fence, second.began, second.run_id, second.attempts) == (2, True, "run-1", 1)
    async with database.write() as connection:
        assert not await jobs.renew(connection, first, NOW)
        assert not await jobs.begin(connection, first, "run-x", NOW)
        assert not await jobs.put_back(connection, first, NOW)
        assert not await jobs.finish(connection, first, jobs.DONE, b"x", NOW)
        assert await jobs.put_back(connection, second, NOW + 5000, b"y")
    assert await claimed(database, "c", NOW + 4999) is None
    third = await claimed(database, "c", NOW + 5000)
    assert third is not None
    assert (third.fence, third.began) == (3, False)


async def test_what_is_over_is_queued_again_and_forgotten_later(database: Database, scope: Scope, sealer: Sealer) -> None:
    worker = await new_worker(database, scope)
    job = await added(database, scope, sealer, worker)
    assert job is not None
    async with database.write() as connection:
        assert not await jobs.again(connection, scope, worker, job.id, NOW), "it is not over"
    taken = await claimed(database, "a", NOW)
    assert taken is not None
    async with database.write() as connection:
        await jobs.begin(connection, taken, "run", NOW)
        await jobs.finish(connection, taken, jobs.DEAD, b"x", NOW)
        stranger = Scope("team_x", "prj_x")
        assert not await jobs.again(connection, stranger, worker, job.id, NOW)
        assert await jobs.again(connection, scope, worker, job.id, NOW + 7)
        assert await jobs.next_due(connection, NOW) == NOW + 7
    again = await claimed(database, "a", NOW + 7)
    assert again is not None
    assert (again.attempts, again.ended_at, again.fence) == (0, None, 2)
    async with database.write() as connection:
        await jobs.finish(connection, again, jobs.DONE, b"x", NOW + 10)
        assert await jobs.forget(connection, NOW + 10) == 0
        assert await jobs.forget(connection, NOW + 11) == 1


async def test_waits_are_counted_until_an_attempt_begins_or_it_is_queued_anew(
    database: Database, scope: Scope, sealer: Sealer
) -> None:
    worker = await new_worker(database, scope)
    job = await added(database, scope, sealer, worker)
    assert job is not None

    async def taken_with(waits: int) -> Job:
        taken = await claimed(database, "a", NOW)
        assert taken is not None
        assert taken.waits == waits
        return taken

    async def put_back(taken: Job, *, waited: bool) -> None:
        async with database.write() as connection:
            assert await jobs.put_back(connection, taken, NOW, waited=waited)

    for waits in range(2):
        await put_back(await taken_with(waits), waited=True)
    await put_back(await taken_with(2), waited=False)
    lost = await taken_with(2)
    async with database.write() as connection:
        await jobs.renew(connection, lost, NOW - LEASE_MS)
    taken = await taken_with(2)
    async with database.write() as connection:
        assert await jobs.begin(connection, taken, "run", NOW)
    await put_back(taken, waited=False)
    await put_back(await taken_with(0), waited=True)
    taken = await taken_with(1)
    async with database.write() as connection:
        assert await jobs.finish(connection, taken, jobs.DEAD, b"x", NOW)
        assert await jobs.again(connection, scope, worker, job.id, NOW)
    await taken_with(0)


async def test_an_idempotency_key_is_a_workers_own(database: Database, scope: Scope, sealer: Sealer) -> None:
    one, two = await new_worker(database, scope), await new_worker(database, scope)
    first = await added(database, scope, sealer, one, once="x")
    assert first is not None
    assert await added(database, scope, sealer, one, once="x") is None
    assert await added(database, scope, sealer, two, once="x") is not None
    async with database.read() as connection:
        found = await jobs.of_key(connection, scope, one, "x")
        assert await jobs.waiting(connection, scope) == 2
    assert found is not None
    assert found.id == first.id


async def test_projects_take_turns_and_priorities_count_within_one(database: Database, scope: Scope, sealer: Sealer) -> None:
    other = await new_scope(database, "other")
    loud, quiet = await new_worker(database, scope), await new_worker(database, other)
    for number in range(6):
        await added(database, scope, sealer, loud, key=f"loud {number}", priority=1 if number == 5 else 0)
    for number in range(2):
        await added(database, other, sealer, quiet, key=f"quiet {number}")
    order = []
    for _ in range(8):
        job = await claimed(database, "a", NOW)
        assert job is not None
        order.append(job.key)
    assert order[:4] == ["loud 5", "quiet 0", "loud 0", "quiet 1"]
    assert order[4:] == ["loud 1", "loud 2", "loud 3", "loud 4"]


async def test_pages_are_newest_first_and_of_one_worker(database: Database, scope: Scope, sealer: Sealer) -> None:
    worker, other = await new_worker(database, scope), await new_worker(database, scope)
    made = [await added(database, scope, sealer, worker, key=f"{number % 2}") for number in range(5)]
    await added(database, scope, sealer, other)
    async with database.read() as connection:
        first = await jobs.page(connection, scope, worker, kind="webhook", key=None, status=None, before=None, limit=3)
        rest = await jobs.page(connection, scope, worker, kind="webhook", key=None, status=None, before=first[-1].number, limit=3)
        ones = await jobs.page(connection, scope, worker, kind="webhook", key="1", status="queued", before=None, limit=9)
        none = await jobs.page(connection, Scope("t", "p"), worker, kind="webhook", key=None, status=None, before=None, limit=9)
    assert [job.id for job in first + rest] == [job.id for job in reversed(made) if job is not None]
    assert [job.key for job in ones] == ["1", "1"]
    assert none == []


@dataclass
class World:
    """A clock that all share, and what was seen of each job."""

    random: random.Random
    now: int = NOW
    applied: Counter[str] = field(default_factory=Counter)
    began: Counter[str] = field(default_factory=Counter)


async def process(database: Database, world: World, name: str, sealer: Sealer) -> None:
    """A process that claims jobs until there are none, and may die, stall beyond its lease, fail or succeed at each."""
    while True:
        job = await claimed(database, name, world.now)
        world.now += world.random.randint(0, 2000)
        await asyncio.sleep(0)
        if job is None:
            async with database.read() as connection:
                if await jobs.next_due(connection, world.now) is None and not await jobs.due_projects(connection, world.now):
                    return
            world.now += LEASE_MS // 4
            continue
        fate = world.random.choice(("dies before", "dies after", "stalls", "fails", "succeeds", "succeeds"))
        if fate == "dies before":
            continue
        async with database.write() as connection:
            if not await jobs.begin(connection, job, f"{name}-{job.fence}", world.now):
                continue
        world.began[job.id] += 1
        if fate == "dies after":
            continue
        if fate == "stalls":
            world.now += LEASE_MS
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        async with database.write() as connection:
            if fate == "fails":
                await jobs.put_back(connection, job, world.now + 1000)
            elif await jobs.finish(connection, job, jobs.DONE, sealer.seal({}, f"{job.id}/result"), world.now):
                world.applied[job.id] += 1


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_dies_no_job_is_lost_and_none_is_ended_twice(
    database: Database, scope: Scope, sealer: Sealer, seed: int
) -> None:
    world = World(random.Random(seed))
    scopes = [scope, await new_scope(database, "second"), await new_scope(database, "third")]
    made: dict[str, tuple[Scope, str]] = {}
    for number in range(15):
        owner = scopes[number % 3]
        worker = await new_worker(database, owner)
        job = await added(database, owner, sealer, worker)
        assert job is not None
        made[job.id] = owner, worker
    async with asyncio.timeout(120):
        await asyncio.gather(*(process(database, world, f"p{number}", sealer) for number in range(4)))
    assert world.applied == Counter(dict.fromkeys(made, 1))
    async with database.read() as connection:
        for job_id, (owner, worker) in made.items():
            job = await jobs.find(connection, owner, worker, job_id)
            assert job is not None
            assert (job.status, job.attempts) == ("done", world.began[job_id])
