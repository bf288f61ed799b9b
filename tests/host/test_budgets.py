"""Budgets of a host: how many may begin, who is told, and that they are read no more often than they have to be."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from pathlib import Path

import pytest

from hutch.clock import now_ms
from hutch.errors import PaymentRequiredError
from hutch.host.protocol import SessionStatus
from hutch.host.service import Service
from hutch.host.usage import Usage
from hutch.metering.budgets import Budget, Limits, Period, Span, UsageOwner
from hutch.metering.notices import Notice, NoticeKind, NumberedNotice, Threshold, notice_id
from hutch.metering.pace import MIB, Pace
from hutch.metering.windows import Reading
from tests.host.guest import Guest, guest, real_host
from tests.host.test_usage import BUSY, OWNER, end, opened, reading

TEAM, PROJECT = "team:team_1", "project:prj_1"
DAY_MS = 86_400_000


async def told(usage: Usage, after: int, count: int) -> list[NumberedNotice]:
    """The next notices that the control plane would be told; fewer when there are no more."""
    found: list[NumberedNotice] = []
    enough = asyncio.Event()

    async def send(numbered: NumberedNotice) -> None:
        found.append(numbered)
        if len(found) >= count:
            enough.set()

    telling = asyncio.ensure_future(usage.budgets.notices.tell(after, send))
    try:
        await asyncio.wait_for(enough.wait(), 10)
    finally:
        telling.cancel()
    return found


def begin(usage: Usage, session_id: str, owner: UsageOwner = OWNER) -> None:
    usage.begin(session_id, owner, now_ms(), memory_bytes=0, startup_cpu_us=0, pace=Pace.of(1, 2048))


# -- how many may begin ------------------------------------------------------------------------------


async def test_as_many_run_at_once_as_may(tmp_path: Path) -> None:
    async with opened(tmp_path / "journal.db") as (usage, _journal):
        budgets = usage.budgets
        await budgets.put(Budget(key=PROJECT, limits=Limits(concurrency=3)))
        begin(usage, "a")
        budgets.admit("b", OWNER)
        budgets.admit("c", OWNER)
        with pytest.raises(PaymentRequiredError, match="project's budget of concurrency is used up: 3 of its sandboxes"):
            budgets.admit("d", OWNER)
        budgets.admit("e", UsageOwner("team_1", "prj_2", "sb_9"))
        begin(usage, "b")
        budgets.admissions.give_back("b")
        budgets.admissions.give_back("c")
        budgets.admit("d", OWNER)
        with pytest.raises(PaymentRequiredError):
            budgets.admit("f", OWNER)
        await end(usage, now_ms() + 1, 1, session="a")
        budgets.admit("f", OWNER)
        [state] = budgets.states(PROJECT)
        assert state.counts == {"concurrency": 3, "creations_per_minute": 3}


async def test_nothing_begins_where_none_may(tmp_path: Path) -> None:
    async with opened(tmp_path / "journal.db") as (usage, _journal):
        for limits in (Limits(concurrency=0), Limits(creations_per_minute=0)):
            await usage.budgets.put(Budget(key=TEAM, limits=limits))
            with pytest.raises(PaymentRequiredError, match="budget"):
                usage.budgets.admit("a", OWNER)
        assert usage.budgets.states(TEAM)[0].counts == {"concurrency": 0, "creations_per_minute": 0}


async def test_a_minute_has_as_many_beginnings_as_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [now_ms()]
    monkeypatch.setattr("hutch.host.budgets.now_ms", lambda: clock[0])
    async with opened(tmp_path / "journal.db") as (usage, _journal):
        budgets = usage.budgets
        await budgets.put(Budget(key=TEAM, limits=Limits(creations_per_minute=2)))
        budgets.admit("a", OWNER)
        clock[0] += 40_000
        budgets.admit("b", OWNER)
        with pytest.raises(
            PaymentRequiredError, match="team's budget of creations_per_minute is used up: 2 of its sandboxes began"
        ):
            budgets.admit("c", OWNER)
        clock[0] += 20_000
        budgets.admit("c", OWNER)
        with pytest.raises(PaymentRequiredError):
            budgets.admit("d", OWNER)
        budgets.admissions.give_back("c")
        budgets.admit("d", OWNER)


@pytest.mark.parametrize("seed", range(5))
async def test_of_many_at_once_no_more_begin_than_may(tmp_path: Path, seed: int) -> None:
    """Whatever begins, fails and ends in between."""
    choose = random.Random(seed)
    async with opened(tmp_path / "journal.db") as (usage, _journal):
        most = choose.randrange(1, 6)
        await usage.budgets.put(Budget(key=PROJECT, limits=Limits(concurrency=most)))
        running: set[str] = set()
        highest = 0

        async def one(name: str) -> None:
            nonlocal highest
            try:
                usage.budgets.admit(name, OWNER)
            except PaymentRequiredError:
                assert len(running) >= most
                return
            running.add(name)
            highest = max(highest, usage.budgets.states(PROJECT)[0].counts["concurrency"])
            for _ in range(choose.randrange(4)):
                await asyncio.sleep(0)
            if choose.random() < 0.3:
                running.discard(name)
                usage.budgets.admissions.give_back(name)
                return
            begin(usage, name)
            usage.budgets.admissions.give_back(name)
            for _ in range(choose.randrange(4)):
                await asyncio.sleep(0)
            await end(usage, now_ms() + 1, 1, session=name)
            running.discard(name)

        names = [f"s{number}" for number in range(60)]
        for at in range(0, 60, 10):
            await asyncio.gather(*(one(name) for name in names[at : at + 10]))
        assert highest <= most
        assert usage.budgets.states(PROJECT)[0].counts["concurrency"] == 0


# -- who is told -------------------------------------------------------------------------------------


async def test_each_threshold_is_told_once_and_never_lost(tmp_path: Path) -> None:
    """The host dies between each two steps."""
    path, start = tmp_path / "journal.db", now_ms() - 5000
    budget = Budget(
        key=PROJECT, limits=Limits(active_cpu_us=1000), period=Period.MONTH, notify_at=[50, 80], soft=Limits(egress_bytes=5)
    )
    async with opened(path) as (usage, _journal):
        await usage.budgets.put(budget)
        usage.begin("s", OWNER, start, memory_bytes=0, startup_cpu_us=0, pace=Pace.of(1, 2048))
        usage.take("s", reading(start + 10, 499))
        await usage.budgets.notify()
        await usage.close_due()
        assert not usage.budgets.notices._known
    async with opened(path) as (usage, _journal):
        usage.take("s", reading(start + 20, 500))
        await usage.close_due()
        # Dies before it is written down.
    async with opened(path) as (usage, _journal):
        await usage.budgets.notify()
        # Dies before anybody is told.
    async with opened(path) as (usage, _journal):
        usage.take("s", reading(start + 30, 600))
        await usage.budgets.notify()
        [first] = await told(usage, 0, 1)
        span = Span.of(Period.MONTH, start)
        assert (first.notice.key, first.notice.span, first.notice.used) == (PROJECT, span, 500)
        assert (first.notice.threshold.kind, first.notice.threshold.percent) == (NoticeKind.THRESHOLD, 50)
        usage.take("s", reading(start + 40, 1200, sent_bytes=5))
        await usage.budgets.notify()
        rest = await told(usage, first.seq, 3)
        assert [(one.notice.threshold.kind.value, one.notice.threshold.percent) for one in rest] == [
            ("budget.threshold", 80),
            ("budget.exceeded", 100),
            ("budget.soft_limit", 100),
        ]
        assert [one.notice.session_ids for one in rest] == [[], ["s"], []]
    async with opened(path) as (usage, _journal):
        await usage.budgets.notify()
        assert [first, *rest] == await told(usage, 0, 4), "and no other"
        assert len(usage.budgets.notices._known) == 4
        await usage.budgets.put(Budget(key=PROJECT, limits=Limits(active_cpu_us=2000), period=Period.MONTH, notify_at=[60]))
        usage.take("s", reading(start + 50, 1300))
        await usage.budgets.notify()
        [again] = await told(usage, rest[-1].seq, 1)
        assert (again.notice.threshold.bound, again.notice.threshold.percent) == (2000, 60), "another limit, another threshold"


async def test_more_notices_than_are_read_at_once_are_all_told(tmp_path: Path) -> None:
    async with opened(tmp_path / "journal.db") as (usage, _journal):
        begin(usage, "s")
        keys = [f"team:t{number}" for number in range(1005)]
        span = Span.of(Period.TOTAL, 0)
        threshold = Threshold(NoticeKind.EXCEEDED, "money_nano", 1)
        made = [
            Notice(id=notice_id(key, span, threshold), key=key, span=span, threshold=threshold, used=1, at_ms=1) for key in keys
        ]
        await usage.budgets.notices.add([*made, *made])
        assert [one.notice.key for one in await told(usage, 0, len(keys))] == keys


async def test_counts_that_are_nearly_full_are_told(tmp_path: Path) -> None:
    async with opened(tmp_path / "journal.db") as (usage, _journal):
        await usage.budgets.put(Budget(key=TEAM, limits=Limits(concurrency=4, storage_bytes=1), notify_at=[50]))
        begin(usage, "a")
        await usage.budgets.notify()
        assert not usage.budgets.notices._known
        begin(usage, "b")
        await usage.budgets.notify()
        [only] = await told(usage, 0, 1)
        assert (only.notice.threshold.limit, only.notice.used) == ("concurrency", 2)


async def test_what_a_day_reached_in_its_last_moment_is_told_on_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    midnight = now_ms() // DAY_MS * DAY_MS
    clock = [midnight - 1000]
    monkeypatch.setattr("hutch.host.budgets.now_ms", lambda: clock[0])
    async with opened(tmp_path / "journal.db", window_ms=3_600_000) as (usage, _journal):
        limits = Limits(active_cpu_us=100)
        await usage.budgets.put(Budget(key=TEAM, limits=limits, period=Period.DAY, notify_at=[80], set_at=midnight - 5000))
        await usage.budgets.put(Budget(key=PROJECT, limits=limits, period=Period.DAY, notify_at=[80], set_at=midnight + 500))
        usage.begin("s", OWNER, midnight - 2000, memory_bytes=0, startup_cpu_us=0)
        usage.take("s", reading(midnight - 900, 10))
        await usage.budgets.notify()
        clock[0] = midnight + 1000
        usage.take("s", reading(midnight + 900, 85))
        await usage.close_due()
        await usage.budgets.notify()
        [only] = await told(usage, 0, 1)
        assert (only.notice.key, only.notice.span) == (TEAM, Span.of(Period.DAY, midnight - 1))
        assert len(usage.budgets.notices._known) == 1, "a budget that is younger than the day had nothing to say about it"


async def test_old_notices_are_forgotten_and_those_of_all_time_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [now_ms() - 100 * DAY_MS]
    monkeypatch.setattr("hutch.host.budgets.now_ms", lambda: clock[0])
    async with opened(tmp_path / "journal.db") as (usage, _journal):
        begin(usage, "s")
        usage.take("s", reading(now_ms() + 1, 5))
        for period in (Period.DAY, Period.MONTH, Period.TOTAL):
            await usage.budgets.put(Budget(key=TEAM, limits=Limits(creations_per_minute=0), period=period, notify_at=[100]))
        await usage.budgets.notify()
        assert len(await told(usage, 0, 3)) == 3
        await usage.delivered(0)
        [left] = await told(usage, 0, 1)
        assert left.notice.span.period is Period.TOTAL
        await end(usage, now_ms() + 2, 5)
        await usage.forget_owners([TEAM])
        assert not usage.budgets.notices._known
    async with opened(tmp_path / "journal.db") as (usage, _journal):
        assert not usage.budgets.notices._known


# -- how often they are read -------------------------------------------------------------------------


class Machine:
    """What a session uses, by time: at another rate now and then, never at more than it can."""

    def __init__(self, choose: random.Random, began_s: float) -> None:
        vcpus = choose.choice([1, 2, 4])
        self.pace = Pace.of(vcpus, 2048 * vcpus)
        self.memory = choose.choice([0, 100 * MIB, self.pace.memory_byte_seconds])
        self._choose = choose
        self.at, self.cpu = began_s, 0.0

    def run(self, until_s: float) -> None:
        while self.at < until_s:
            step = min(until_s - self.at, 0.2)
            self.cpu += step * self.pace.active_cpu_us * self._choose.choice([0, 0.1, 1, 1, 1])
            self.at += step


@pytest.mark.parametrize("seed", range(12))
async def test_a_budget_is_seen_to_be_used_up_with_the_first_look(tmp_path: Path, seed: int) -> None:
    """Simulated time, a look each fifth of a second, and machines that may do all they can at any moment."""
    choose = random.Random(seed)
    origin = now_ms()
    async with opened(tmp_path / "journal.db", window_ms=3_600_000) as (usage, _journal):
        budgets, machines = usage.budgets, dict[str, Machine]()
        now_s = 0.0

        def at() -> int:
            return origin + round(now_s * 1000)

        async def read(session_ids: Iterable[str]) -> list[tuple[str, Reading]]:
            return [(name, reading(at(), int(machines[name].cpu), machines[name].memory)) for name in session_ids]

        def begun() -> None:
            name = f"s{len(machines)}"
            machines[name] = Machine(choose, now_s)
            usage.begin(name, OWNER, at(), memory_bytes=machines[name].memory, startup_cpu_us=0, pace=machines[name].pace)

        begun()
        cpu, memory = choose.randrange(10**6, 10**8), choose.randrange(10**9, 10**11)
        await budgets.put(Budget(key=TEAM, limits=Limits(active_cpu_us=cpu, memory_byte_seconds=memory)))
        stopped: list[str] = []
        looks = 0
        while not stopped and now_s < 600:
            now_s += 0.2
            looks += len(machines)
            for machine in machines.values():
                machine.run(now_s)
            if choose.random() < 0.005:
                begun()
            if looks % 10 == 0:
                for name, one in await read(machines):
                    usage.take(name, one)
            await budgets.watch(now_s, read, lambda name, _: stopped.append(name))
            used = sum(int(machine.cpu) for machine in machines.values())
            held = sum(
                machine.memory * (round(now_s * 1000) - _began(usage, name, origin)) // 1000 for name, machine in machines.items()
            )
            if used >= cpu or held >= memory:
                assert stopped, f"not seen at {now_s:.1f} s: {used} of {cpu} us, {held} of {memory} byte-seconds"
        if stopped:
            assert budgets.overrun()
            assert set(stopped) == set(machines)
        print(f"{budgets.readings} readings in {now_s:.1f} s; {looks} with every look")


def _began(usage: Usage, name: str, origin: int) -> int:
    return usage.usage(name).from_ms - origin


async def test_a_distant_budget_is_hardly_read(tmp_path: Path) -> None:
    """200 sandboxes that do all they can under a budget for a month of them."""
    origin = now_ms()
    async with opened(tmp_path / "journal.db", window_ms=3_600_000) as (usage, _journal):
        now_s = 0.0
        pace = Pace.of(2, 4096)
        for number in range(200):
            owner = UsageOwner("team_1", "prj_1", f"sb_{number}")
            usage.begin(f"s{number}", owner, origin, memory_bytes=0, startup_cpu_us=0, pace=pace)

        async def read(session_ids: Iterable[str]) -> list[tuple[str, Reading]]:
            at = origin + round(now_s * 1000)
            return [(name, reading(at, int(now_s * 2_000_000), 10**9, int(now_s * 10**6))) for name in session_ids]

        limits = Limits(active_cpu_us=200 * 2 * 30 * DAY_MS * 1000, money_nano=10**15, egress_bytes=10**18)
        await usage.budgets.put(Budget(key=TEAM, limits=limits))
        for look in range(5 * 60):
            now_s = look / 5
            await usage.budgets.watch(now_s, read, lambda *_: pytest.fail("it is not used up"))
        print(f"200 sandboxes, a minute: {usage.budgets.readings / 60:.1f} readings a second; with every look 1000")
        assert usage.budgets.readings <= 60 * 10


# -- on real sandboxes -------------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.sandbox
async def test_real_sandboxes_begin_until_as_many_run_as_may(no_leaks: Path) -> None:
    own = {"team_id": "team_1"}
    async with real_host(no_leaks, end_all=False) as first:
        await first.supervisor.metered.usage.budgets.put(Budget(key=TEAM, limits=Limits(concurrency=3, creations_per_minute=4)))
        made = await asyncio.gather(
            *(guest(first, **own, sandbox_id=f"sb_{number}") for number in range(5)), return_exceptions=True
        )
        boxes = [one for one in made if isinstance(one, Guest)]
        refused = [one for one in made if isinstance(one, PaymentRequiredError)]
        assert (len(boxes), len(refused)) == (3, 2)
        assert {error.code for error in refused} == {"budget_exceeded"}
    async with real_host(no_leaks) as second:
        # It knows of the three that it has adopted.
        with pytest.raises(PaymentRequiredError, match="concurrency"):
            await guest(second, **own, sandbox_id="sb_6")
        for box in boxes[:2]:
            await Guest(second.supervisor, box.session_id).stop()
        last = await guest(second, **own, sandbox_id="sb_7")
        assert (await last.run("true")).exit_code == 0
        # Four began within this minute, two of which are over, and three under the former host.
        with pytest.raises(PaymentRequiredError, match="creations_per_minute is used up: 4"):
            await guest(second, **own, sandbox_id="sb_8")


@pytest.mark.root
@pytest.mark.sandbox
async def test_a_teams_budget_ends_a_runaway_that_it_was_not_looked_at_for(host: Service) -> None:
    """A budget that is some seconds away is hardly read, and seen to be used up in time all the same."""
    limit = 2_500_000
    budgets = host.supervisor.metered.usage.budgets
    await budgets.put(Budget(key="team:team_far", limits=Limits(active_cpu_us=limit), notify_at=[50]))
    box = await guest(host, sandbox_id="sb_far", team_id="team_far")
    ended = asyncio.Event()

    async def seen(event: object) -> None:
        if box.record.stopped_at is not None:
            ended.set()

    watching = asyncio.ensure_future(host.supervisor.events(0, seen))
    await box.start("python3", "-c", BUSY.format(60))
    try:
        await asyncio.wait_for(ended.wait(), 60)
    finally:
        watching.cancel()
    record = box.record
    assert (record.status, record.stop_reason) == (SessionStatus.STOPPED, "budget_exceeded")
    assert record.active_cpu_us is not None
    assert limit <= record.active_cpu_us <= limit + 1_000_000
    notices = await told(host.supervisor.metered.usage, 0, 2)
    assert sorted(one.notice.threshold.kind.value for one in notices) == ["budget.exceeded", "budget.threshold"]
