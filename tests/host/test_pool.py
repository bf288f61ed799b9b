"""The pool: who gets which machine, what is kept ready and what is removed. Machines here only have a name and a death."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

import pytest

from hutch.errors import GoneError, UnavailableError
from hutch.host import pool as pools
from hutch.host.machine import Machine, MachineKind
from hutch.host.pool import Pool, Recipe
from hutch.host.storage import Source
from hutch.images import Image
from tests.host.guest import guest, real_host


class Machinery:
    """Makes machines that are none, and remembers them."""

    def __init__(self) -> None:
        self.made: list[FakeMachine] = []
        self.discarded: list[FakeMachine] = []
        self.may_start = asyncio.Event()
        self.may_start.set()
        self.failures = 0
        self.failure: Exception = UnavailableError("sandbox_start_failed", "It did not.")

    async def boot(self, kind: MachineKind, source: Source | None) -> Machine:
        await self.may_start.wait()
        if self.failures:
            self.failures -= 1
            raise self.failure
        made = FakeMachine(kind, source)
        self.made.append(made)
        return cast("Machine", made)

    async def discard(self, machine: Machine) -> None:
        self.discarded.append(cast("FakeMachine", machine))


class FakeMachine:
    def __init__(self, kind: MachineKind, source: Source | None) -> None:
        self.kind = kind
        self.source = source
        self.machine_id = "m"
        self.died: asyncio.Future[str] = asyncio.get_running_loop().create_future()


def kind(digest: str = "a", vcpus: int = 1) -> MachineKind:
    image = cast("Image", type("Image", (), {"digest": digest})())
    return MachineKind(image, vcpus, 1 << 30, 1 << 30, "gvisor")


COMMON = kind()
HOT = Recipe(COMMON, Source("snap_hot", 1))


async def made(machinery: Machinery, size: int = 2, most: int = 6) -> Pool:
    pool = Pool([(COMMON, size)] if size else [], machinery.boot, machinery.discard, 2, most)
    pool.start()
    return pool


async def until(pool: Pool, recipe: Recipe, count: int) -> None:
    async with asyncio.timeout(10):
        while pool.ready(recipe) != count:
            await asyncio.sleep(0)


async def test_no_machine_is_handed_out_twice() -> None:
    machinery = Machinery()
    pool = await made(machinery)
    taken = []
    for _ in range(50):
        machine = await pool.take(Recipe(COMMON))
        if machine is not None:
            taken.append(machine)
        await asyncio.sleep(0)
    assert len(taken) > 10
    assert len({id(machine) for machine in taken}) == len(taken)
    await pool.close()
    assert {id(machine) for machine in machinery.discarded} == {id(machine) for machine in machinery.made} - {
        id(machine) for machine in taken
    }


async def test_a_snapshot_that_is_used_again_and_again_is_kept_ready_until_it_is_gone() -> None:
    machinery = Machinery()
    pool = await made(machinery)
    await until(pool, Recipe(COMMON), 2)
    assert [await pool.take(HOT) for _ in range(2)] == [None, None]
    await asyncio.sleep(0.01)
    assert pool.ready(HOT) == 0
    assert await pool.take(HOT) is None
    await until(pool, HOT, 1)
    machine = cast("FakeMachine", await pool.take(HOT))
    assert machine.source == HOT.source
    await until(pool, HOT, 1)
    pool.forget("snap_other")
    assert pool.ready(HOT) == 1
    pool.forget("snap_hot")
    await asyncio.sleep(0)
    assert pool.ready(HOT) == 0
    assert [one.source for one in machinery.discarded] == [HOT.source]
    await pool.close()


async def test_one_that_was_being_started_when_its_snapshot_went_is_not_kept() -> None:
    machinery = Machinery()
    pool = await made(machinery, size=1)
    await until(pool, Recipe(COMMON), 1)
    machinery.may_start.clear()
    for _ in range(3):
        await pool.take(HOT)
    await asyncio.sleep(0.01)
    pool.forget("snap_hot")
    machinery.may_start.set()
    async with asyncio.timeout(5):
        while not machinery.discarded:
            await asyncio.sleep(0)
    assert [one.source for one in machinery.discarded] == [HOT.source]
    await pool.close()


async def test_there_are_never_more_than_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hutch.host.demand.RATE_S", 0.001)
    machinery = Machinery()
    pool = await made(machinery, size=2, most=3)
    recipes = [HOT, Recipe(kind("b")), Recipe(COMMON)]
    for number in range(200):
        await pool.take(recipes[number % 3])
        await asyncio.sleep(0)
        assert len(pool) <= 3
    # What was configured is there before what is only asked for often.
    await until(pool, Recipe(COMMON), 2)
    await pool.close()


async def test_what_nobody_asks_for_any_more_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    machinery = Machinery()
    pool = await made(machinery)
    for _ in range(4):
        await pool.take(HOT)
    await until(pool, HOT, 1)
    pool.trim()
    assert pool.ready(HOT) == 1
    monkeypatch.setattr(pools, "KEEP_S", -1.0)
    monkeypatch.setattr("hutch.host.demand.HOT_S", 0.0001)
    await asyncio.sleep(0.01)
    pool.trim()
    assert pool.ready(HOT) == 0
    assert pool.ready(Recipe(COMMON)) == 2
    await pool.close()


@pytest.mark.parametrize(
    "failure", [UnavailableError("sandbox_start_failed", "It did not."), RuntimeError("nobody thought of it")]
)
async def test_a_start_that_fails_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    monkeypatch.setattr(pools, "RETRY_S", 0.01)
    machinery = Machinery()
    machinery.failures, machinery.failure = 3, failure
    machinery.may_start.clear()
    pool = await made(machinery, size=1)
    await asyncio.sleep(0.01)
    waiting = asyncio.ensure_future(pool.take(Recipe(COMMON)))
    await asyncio.sleep(0.01)
    machinery.may_start.set()
    assert await asyncio.wait_for(waiting, 5) is None
    await until(pool, Recipe(COMMON), 1)
    await pool.close()


async def test_what_does_not_start_keeps_nothing_else_from_being_started() -> None:
    machinery, other = Machinery(), Recipe(kind("b"))

    async def boot(kind: MachineKind, source: Source | None) -> Machine:
        if source is not None:
            raise UnavailableError("sandbox_start_failed", "It never does.")
        return await machinery.boot(kind, source)

    pool = Pool([(COMMON, 1)], boot, machinery.discard, 1, 6)
    pool.start()
    for recipe in (HOT, other):
        for _ in range(3):
            await pool.take(recipe)
            await asyncio.sleep(0.01)
    await until(pool, Recipe(COMMON), 1)
    await until(pool, other, 1)
    await pool.close()


async def test_switched_off_it_starts_and_remembers_nothing() -> None:
    machinery = Machinery()
    pool = await made(machinery, size=0)
    assert [await pool.take(HOT) for _ in range(10)] == [None] * 10
    assert pool._shelves == {}
    assert pool._workers == []
    await pool.close()


async def test_recipes_that_are_asked_for_once_each_are_forgotten() -> None:
    machinery = Machinery()
    pool = await made(machinery, size=1)
    for number in range(pools.MAX_SHELVES * 2):
        await pool.take(Recipe(COMMON, Source(f"snap_{number}", 1)))
    assert len(pool._shelves) <= pools.MAX_SHELVES
    assert Recipe(COMMON).key in pool._shelves
    await pool.close()


@pytest.mark.root
async def test_a_hot_snapshots_files_are_in_machines_that_wait(no_leaks: Path) -> None:
    async with real_host(no_leaks, pool__size=1, sandbox__default_vcpus=1) as service:
        pool = service.supervisor.pool
        first = await guest(service, persistent=True)
        await first.shell("echo here > kept")
        snapshot = (await first.stop()).snapshot
        assert snapshot is not None

        async def waiting() -> Machine:
            while True:
                for shelf in pool._shelves.values():
                    if shelf.recipe.source is not None and shelf.ready:
                        return shelf.ready[0]
                await asyncio.sleep(0.02)

        for number in range(4):
            box = await guest(service, source_snapshot=snapshot.snapshot_id, hostname=f"box-{number}")
            assert (await box.shell("cat kept; hostname; echo mine >> kept")).stdout == f"here\nbox-{number}\n".encode()
        ready = await asyncio.wait_for(waiting(), 30)
        box = await guest(service, source_snapshot=snapshot.snapshot_id)
        assert box.session.machine is ready
        assert (await box.shell("cat kept")).stdout == b"here\n"
        again = await asyncio.wait_for(waiting(), 30)
        await service.supervisor.remove_snapshot(snapshot.snapshot_id)
        await asyncio.wait_for(asyncio.shield(again.died), 10)
        with pytest.raises(GoneError):
            await guest(service, source_snapshot=snapshot.snapshot_id)
