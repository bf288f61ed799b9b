"""Usage of sessions: windows that add up to the kernel's counters whatever dies, and budgets that end a session in time."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

import msgspec
import pytest

from hutch.clock import now_ms
from hutch.errors import ConflictError, NotFoundError, PaymentRequiredError
from hutch.host import kernel
from hutch.host.journal import Journal
from hutch.host.protocol import NumberedWindow, RuleTraffic, SessionStatus
from hutch.host.service import Service
from hutch.host.usage import Usage
from hutch.metering.budgets import Budget, Limits, Period, UsageOwner
from hutch.metering.prices import DEFAULT
from hutch.metering.quantities import Quantities
from hutch.metering.windows import Reading
from tests.host.guest import Guest, cpu_us, differs, guest, real_host

MIB = 2**20
OWNER = UsageOwner("team_1", "prj_1", "sb_1")
HOLDING = """
import time
held = bytearray(200 * 2**20)
held[::4096] = b"x" * len(held[::4096])
print(1, flush=True)
time.sleep(60)
"""
BUSY = "import time\nend = time.process_time() + {}\nwhile time.process_time() < end: pass"


@contextlib.asynccontextmanager
async def opened(path: Path, window_ms: int = 1) -> AsyncIterator[tuple[Usage, Journal]]:
    """Usage over a journal, as a host that starts has it."""
    journal = Journal(path)
    journal.open()
    usage = Usage(journal, DEFAULT, window_ms)
    usage.load()
    journal.start()
    try:
        yield usage, journal
    finally:
        await asyncio.to_thread(journal.close)


async def sent(usage: Usage, after: int, count: int) -> list[NumberedWindow]:
    """The next windows that the control plane would be told."""
    found: list[NumberedWindow] = []
    enough = asyncio.Event()

    async def send(numbered: NumberedWindow) -> None:
        found.append(numbered)
        if len(found) >= count:
            enough.set()

    telling = asyncio.ensure_future(usage.windows(after, send))
    try:
        await asyncio.wait_for(enough.wait(), 10)
    finally:
        telling.cancel()
    return found


async def all_windows(usage: Usage) -> list[NumberedWindow]:
    """All windows of the only session, which ended."""
    windows = await sent(usage, 0, 1)
    while not windows[-1].window.final:
        windows += await sent(usage, windows[-1].seq, 1)
    return windows


def reading(at_ms: int, cpu: int = 0, memory: int = 0, sent_bytes: int = 0) -> Reading:
    return Reading(at_ms=at_ms, active_cpu_us=cpu, memory_bytes=memory, egress_bytes=sent_bytes)


async def end(usage: Usage, at_ms: int, cpu: int, sent_bytes: int = 0, session: str = "s") -> Quantities:
    return await usage.end(session, at_ms=at_ms, active_cpu_us=cpu, ingress_bytes=0, egress_bytes=sent_bytes)


async def test_what_was_forgotten_is_nowhere_and_others_is_where_it_was(tmp_path: Path) -> None:
    sibling = UsageOwner("team_1", "prj_2", "sb_2")
    path = tmp_path / "journal.db"
    async with opened(path) as (usage, journal):
        for session, owner in (("s", OWNER), ("t", sibling)):
            usage.begin(session, owner, now_ms(), memory_bytes=0, startup_cpu_us=0)
        for key in ("team:team_1", "project:prj_1", "project:prj_2", "sandbox:sb_1"):
            await usage.budgets.put(Budget(key=key, limits=Limits(active_cpu_us=99)))
        await end(usage, now_ms() + 1, 7, session="t")
        with pytest.raises(ConflictError, match="not over"):
            await usage.forget_owners(["project:prj_1", "sandbox:sb_1"])
        await end(usage, now_ms() + 1, 5)
        await usage.forget_owners(["project:prj_1", "sandbox:sb_1"])
        # As if an answer had been lost.
        await usage.forget_owners(["project:prj_1", "sandbox:sb_1"])
        await journal.scrub()
        assert not usage.budgets.watched()
    written = path.read_bytes()
    for mark, left in ((b"prj_1", False), (b"sb_1", False), (b"prj_2", True), (b"sb_2", True)):
        assert (mark in written) is left, mark
    async with opened(path) as (usage, _journal):
        with pytest.raises(NotFoundError):
            usage.usage("s")
        assert usage.budgets.states("project:prj_1") == []
        assert usage.spent("project:prj_1") == usage.spent("sandbox:sb_1") == Quantities()
        assert usage.spent("team:team_1").active_cpu_us == 12, "what the team has used it has used"
        assert [state.spent.active_cpu_us for state in usage.budgets.states("project:prj_2")] == [7]
        assert [told.owner for told in await sent(usage, 0, 1)] == [sibling]


@pytest.mark.parametrize("seed", range(8))
async def test_windows_add_up_whenever_the_host_dies(tmp_path: Path, seed: int) -> None:
    """A host that dies has the counters of its journal; the machine's go on."""
    choose = random.Random(seed)
    at = start = now_ms()
    cpu = bytes_sent = 0
    for _ in range(choose.randrange(2, 8)):
        async with opened(tmp_path / "journal.db") as (usage, _journal):
            usage.begin("s", OWNER, start, memory_bytes=0, startup_cpu_us=5)
            for _ in range(choose.randrange(6)):
                at, cpu = at + choose.randrange(2000), cpu + choose.randrange(10**6)
                bytes_sent += choose.randrange(10**6)
                usage.take("s", reading(at, cpu, choose.randrange(10**9), bytes_sent))
                if choose.random() < 0.4:
                    await usage.close_due()
    async with opened(tmp_path / "journal.db") as (usage, _journal):
        usage.begin("s", OWNER, start, memory_bytes=0, startup_cpu_us=5)
        at, cpu = at + 10, cpu + 77
        used = await end(usage, at, cpu, bytes_sent)
        assert used == await end(usage, at + 10, cpu, bytes_sent), "ended once"
        number = usage.usage("s").quantities
    async with opened(tmp_path / "journal.db") as (usage, _journal):
        assert usage.usage("s").final
        told = await sent(usage, 0, 1)
        total = sum((numbered.window.quantities for numbered in told), Quantities())
        assert total == used == number
        assert (total.active_cpu_us, total.egress_bytes, total.wall_us) == (cpu, bytes_sent, (at - start) * 1000)
        assert (total.creations, total.startup_cpu_us) == (1, 5)
        assert [numbered.window.number for numbered in told] == list(range(1, len(told) + 1))
        assert [numbered.window.final for numbered in told] == [False] * (len(told) - 1) + [True]
        for key in ("team:team_1", "project:prj_1", "sandbox:sb_1"):
            assert usage.spent(key) == total


async def test_a_window_that_can_not_be_written_is_in_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path / "journal.db") as (usage, journal):
        start = now_ms() - 5000
        usage.begin("s", OWNER, start, memory_bytes=0, startup_cpu_us=0)
        usage.take("s", reading(start + 1000, 100))

        async def full(*_: object) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        with monkeypatch.context() as broken:
            broken.setattr(journal, "put_window", full)
            await usage.close_due()
            await end(usage, start + 2000, 250)
            assert not usage.usage("s").final
            assert usage.spent("sandbox:sb_1").active_cpu_us == 250
        await usage.close_due()
        [only] = await sent(usage, 0, 1)
        assert (only.window.number, only.window.final, only.window.quantities.active_cpu_us) == (1, True, 250)
        assert usage.spent("sandbox:sb_1").active_cpu_us == 250


async def test_windows_are_told_until_they_are_delivered_and_numbers_go_on(tmp_path: Path) -> None:
    start = now_ms()
    async with opened(tmp_path / "journal.db") as (usage, journal):
        for session in ("a", "b"):
            usage.begin(session, OWNER, start, memory_bytes=0, startup_cpu_us=0)
            await end(usage, start + 5, 1, session=session)
        first, second = await sent(usage, 0, 2)
        assert [second] == await sent(usage, first.seq, 1)
        assert first.owner == OWNER
        await usage.delivered(second.seq)
        assert [first, second] == await sent(usage, 0, 2), "kept for a day, for a control plane that lost some"
        await journal.forget_windows(second.seq, [], second.seq)
    async with opened(tmp_path / "journal.db") as (usage, _journal):
        usage.begin("c", OWNER, start, memory_bytes=0, startup_cpu_us=0)
        await end(usage, start + 5, 1, session="c")
        [third] = await sent(usage, 0, 1)
        assert third.seq > second.seq


async def test_more_windows_than_are_read_at_once_are_all_told(tmp_path: Path) -> None:
    async with opened(tmp_path / "journal.db") as (usage, _journal):
        start = now_ms() - 10_000
        for number in range(1005):
            usage.begin(f"s{number}", OWNER, start, memory_bytes=0, startup_cpu_us=0)
        await asyncio.gather(*(end(usage, start + 5, 1, session=f"s{number}") for number in range(1005)))
        assert len({one.window.session_id for one in await sent(usage, 0, 1005)}) == 1005


async def test_windows_end_with_the_day(tmp_path: Path) -> None:
    day = 86_400_000
    async with opened(tmp_path / "journal.db", window_ms=3_600_000) as (usage, _journal):
        yesterday = now_ms() // day * day - 500
        usage.begin("s", OWNER, yesterday, memory_bytes=0, startup_cpu_us=0)
        usage.take("s", reading(yesterday + 600, 40))
        await usage.close_due()
        await end(usage, yesterday + 700, 50)
        assert len(await sent(usage, 0, 2)) == 2
        assert usage.spent("team:team_1").active_cpu_us == 50
        days = [usage.spent("team:team_1", period).active_cpu_us for (key, period) in usage._spent if key == "team:team_1"]
        assert sorted(days)[:2] == [10, 40], "each day has its own"


async def test_what_was_not_used_here_is_not_found(tmp_path: Path) -> None:
    async with opened(tmp_path / "journal.db") as (usage, _journal):
        with pytest.raises(NotFoundError):
            usage.usage("s")
        assert usage.spent("team:nobody") == Quantities()
        assert usage.budgets.states("team:nobody") == []


async def test_what_passed_by_rule_is_told_with_the_last_window_alone(tmp_path: Path) -> None:
    start = now_ms()
    passed = {"00ff": RuleTraffic(sent_bytes=5, requests=1), "": RuleTraffic(received_bytes=7)}
    async with opened(tmp_path / "journal.db") as (usage, journal):
        usage.begin("s", OWNER, start - 1000, memory_bytes=0, startup_cpu_us=0)
        usage.take("s", reading(start - 500, 1))
        await usage.close_due()
        with pytest.MonkeyPatch.context() as patch:
            # A full disk: it is written with the next try.
            patch.setattr(journal, "put_window", _no_room)
            await usage.end("s", at_ms=start, active_cpu_us=2, ingress_bytes=0, egress_bytes=0, gateway_cpu_us=9, network=passed)
        assert not usage.usage("s").final
        await usage.close_due()
        first, last = await all_windows(usage)
        assert (first.network, last.network) == ({}, passed)
        assert (last.window.quantities.gateway_cpu_us, last.window.final) == (9, True)


async def _no_room(*_: object) -> None:
    raise sqlite3.OperationalError("database or disk is full")


async def test_budgets_hold_across_restarts_until_they_are_taken_away(tmp_path: Path) -> None:
    start = now_ms()
    budget = Budget(key="project:prj_1", limits=Limits(active_cpu_us=100), period=Period.DAY)
    async with opened(tmp_path / "journal.db") as (usage, _journal):
        await usage.budgets.put(budget)
        usage.begin("s", OWNER, start, memory_bytes=0, startup_cpu_us=0)
        usage.take("s", reading(start + 10, 99))
        usage.budgets.require(OWNER)
        assert (usage.budgets.watched(), usage.budgets.overrun()) == ({"s"}, {})
        usage.take("s", reading(start + 11, 100))
        assert usage.budgets.overrun() == {"s": "project active_cpu_us"}
        with pytest.raises(PaymentRequiredError, match="project's budget of active_cpu_us"):
            usage.budgets.require(OWNER)
        await end(usage, start + 12, 105)
    async with opened(tmp_path / "journal.db") as (usage, _journal):
        with pytest.raises(PaymentRequiredError):
            usage.budgets.require(OWNER)
        [state] = usage.budgets.states("project:prj_1")
        assert (state.budget, state.spent.active_cpu_us) == (budget, 105)
        await usage.budgets.keep([])
        usage.budgets.require(OWNER)
    async with opened(tmp_path / "journal.db") as (usage, _journal):
        usage.budgets.require(OWNER)


@pytest.mark.parametrize(
    ("limits", "used"),
    [
        (Limits(active_cpu_us=10), {"cpu": 10}),
        (Limits(egress_bytes=10), {"sent_bytes": 10}),
        (Limits(memory_byte_seconds=10), {"memory": 10_000}),
        (Limits(money_nano=600), {}),  # a creation alone
        (Limits(active_cpu_us=0), {}),
    ],
    ids=["cpu", "egress", "memory", "money", "nothing"],
)
async def test_each_limit_is_one(tmp_path: Path, limits: Limits, used: dict[str, int]) -> None:
    async with opened(tmp_path / "journal.db") as (usage, _journal):
        start = now_ms()
        await usage.budgets.put(Budget(key="sandbox:sb_1", limits=limits))
        usage.begin("s", OWNER, start, memory_bytes=0, startup_cpu_us=0)
        usage.take("s", reading(start + 2000, **used))
        [reason] = usage.budgets.overrun().values()
        assert getattr(limits, reason.removeprefix("sandbox ")) is not None


async def test_a_reading_that_fails_once_does_not_end_the_watch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with opened(tmp_path / "journal.db") as (usage, _journal):
        start = now_ms()
        await usage.budgets.put(Budget(key="sandbox:sb_1", limits=Limits(active_cpu_us=5)))
        usage.begin("s", OWNER, start, memory_bytes=0, startup_cpu_us=0)
        rounds, stopped = 0, asyncio.Event()

        async def read(session_ids: Iterable[str]) -> list[tuple[str, Reading]]:
            nonlocal rounds
            rounds += 1
            if rounds == 1:
                raise OSError("a counter can't be read")
            return [(session_id, reading(start + 10, 6)) for session_id in session_ids]

        watching = asyncio.ensure_future(usage.budgets.watch_for_ever(read, lambda *_: stopped.set()))
        try:
            await asyncio.wait_for(stopped.wait(), 10)
        finally:
            watching.cancel()
        assert "budgets could not be watched" in caplog.text


# -- on real sandboxes -------------------------------------------------------------------------------


def total_of(windows: list[NumberedWindow], session_id: str) -> Quantities:
    mine = [numbered.window.quantities for numbered in windows if numbered.window.session_id == session_id]
    return sum(mine, Quantities())


@pytest.mark.root
@pytest.mark.sandbox
async def test_a_session_is_billed_what_its_cgroup_counted(no_leaks: Path) -> None:
    async with real_host(no_leaks, billing__window_s=1) as host:
        box = await guest(host)
        await box.run("python3", "-c", BUSY.format(1.5))
        machine = box.session.machine
        assert machine is not None
        before = cpu_us(box)
        record = await box.stop()
        windows = await all_windows(host.supervisor.metered.usage)
        total = total_of(windows, box.session_id)
        assert total.active_cpu_us == record.active_cpu_us
        # What ending it took is in it too.
        assert before - machine.cpu_zero_us <= total.active_cpu_us <= before - machine.cpu_zero_us + 300_000
        # Not compared with the guest's own clocks: they count time in which a busy host let it wait.
        assert total.active_cpu_us >= 300_000
        assert total.startup_cpu_us == machine.cpu_zero_us > 0
        assert total.memory_byte_seconds > 0
        assert total.memory_peak_bytes >= total.memory_byte_seconds * 10**6 // total.wall_us


@pytest.mark.root
@pytest.mark.sandbox
async def test_waiting_costs_next_to_nothing(box: Guest) -> None:
    await box.run("true")
    before = (await box.supervisor.metered.read(box.session_id)).quantities
    await box.run("sleep", "2")
    after = (await box.supervisor.metered.read(box.session_id)).quantities
    assert after.wall_us - before.wall_us >= 2_000_000
    assert after.active_cpu_us - before.active_cpu_us < 200_000, "starting and ending `sleep` is all that it costs"


@pytest.mark.root
@pytest.mark.sandbox
@differs("what it held before counts too")
async def test_memory_is_billed_while_it_is_held(box: Guest) -> None:
    holds = await box.start("python3", "-c", HOLDING)
    reader = holds.output.reader()
    await reader.next()
    reader.close()
    before = (await box.supervisor.metered.read(box.session_id)).quantities
    await asyncio.sleep(1)
    after = (await box.supervisor.metered.read(box.session_id)).quantities
    held = (after.memory_byte_seconds - before.memory_byte_seconds) * 10**6 // (after.wall_us - before.wall_us)
    assert 200 * 2**20 <= held < 400 * 2**20
    assert after.memory_peak_bytes >= 200 * 2**20


@pytest.mark.root
@pytest.mark.sandbox
@differs("the tables of its file system count")
async def test_disk_is_what_was_written_and_not_removed(box: Guest) -> None:
    entry = box.session.entry
    assert entry is not None

    async def held() -> int:
        # What the file system says is that of its last commit.
        layers = box.supervisor.metered._machines._layers
        await asyncio.to_thread(layers.sync)
        await asyncio.to_thread(kernel.sync_file_system, layers.path(entry.layer))
        await box.supervisor.metered.read(box.session_id)
        return box.supervisor.metered.usage._meters[box.session_id].state.last.disk_bytes

    async def until(condition: Callable[[int], bool]) -> int:
        async with asyncio.timeout(40):
            while not condition(found := await held()):
                await asyncio.sleep(0.1)
            return found

    empty = await held()
    assert empty < 2 * MIB, "its image is not in it"
    assert (await box.shell("head -c 50000000 /dev/urandom > file && sync")).exit_code == 0
    full = await until(lambda found: found >= 50_000_000)
    assert full < empty + 50_000_000 + 3 * MIB
    assert (await box.shell("rm file && sync")).exit_code == 0
    await until(lambda found: found < empty + 3 * MIB)
    await box.stop()
    used = box.supervisor.metered.usage.usage(box.session_id).quantities
    assert full <= used.disk_peak_bytes < full + MIB
    assert 0 < used.disk_byte_seconds < full * used.wall_us // 1_000_000


ASKING = """
import socket, struct
question = struct.pack("!6H", 7, 256, 1, 0, 0, 0) + b"\\x01a\\x04test\\x00" + struct.pack("!2H", 1, 1)
server = next(line.split()[1] for line in open("/etc/resolv.conf") if line.startswith("nameserver"))
for _ in range(3000):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asks:
        asks.sendto(question, (server, 53))
        asks.recv(512)
"""


@pytest.mark.root
@pytest.mark.sandbox
async def test_what_a_guest_has_the_gateway_do_is_in_its_usage_and_free(host: Service) -> None:
    busy, idle = await guest(host, sandbox_id="sb_busy"), await guest(host, sandbox_id="sb_idle")
    before = host.supervisor.platform_cpu_us["gateway"]
    assert (await busy.run("python3", "-c", ASKING)).exit_code == 0
    live = (await busy.supervisor.metered.read(busy.session_id)).quantities
    spent = host.supervisor.platform_cpu_us["gateway"] - before
    print(f"{spent} us by the gateway, {live.gateway_cpu_us} us counted to the guest")
    assert live.gateway_cpu_us >= 0.7 * spent - 20_000
    assert 10_000 < live.gateway_cpu_us <= spent + 20_000
    assert (await idle.supervisor.metered.read(idle.session_id)).quantities.gateway_cpu_us < 0.02 * live.gateway_cpu_us + 1000
    await busy.stop()
    usage = host.supervisor.metered.usage
    used = usage.usage(busy.session_id).quantities
    assert used.gateway_cpu_us >= live.gateway_cpu_us
    [state] = [told.window for told in await sent(usage, 0, 1)]
    assert state.quantities.gateway_cpu_us == used.gateway_cpu_us
    assert DEFAULT.amount_nano(used) == DEFAULT.amount_nano(msgspec.structs.replace(used, gateway_cpu_us=0))


@pytest.mark.root
@pytest.mark.sandbox
async def test_a_budget_ends_a_runaway_within_a_second_of_its_rate(host: Service) -> None:
    limit = 700_000
    own = {"sandbox_id": "sb_runaway", "team_id": "team_1", "budget": Limits(active_cpu_us=limit)}
    box = await guest(host, **own, persistent=True)
    ended = asyncio.Event()

    async def seen(event: object) -> None:
        if box.record.stopped_at is not None:
            ended.set()

    watching = asyncio.ensure_future(host.supervisor.events(0, seen))
    await box.start("python3", "-c", BUSY.format(60))
    try:
        await asyncio.wait_for(ended.wait(), 30)
    finally:
        watching.cancel()
    record = box.record
    assert (record.status, record.stop_reason) == (SessionStatus.STOPPED, "budget_exceeded")
    assert record.snapshot is not None, "a persistent one keeps its files"
    assert record.active_cpu_us is not None
    assert limit <= record.active_cpu_us <= limit + 1_000_000
    with pytest.raises(PaymentRequiredError) as refused:
        await guest(host, **own)
    assert refused.value.code == "budget_exceeded"
    other = await guest(host, sandbox_id="sb_other", team_id="team_1")
    assert (await other.run("true")).exit_code == 0


@pytest.mark.root
@pytest.mark.sandbox
async def test_windows_go_on_when_a_host_takes_over(no_leaks: Path) -> None:
    async with real_host(no_leaks, end_all=False, billing__window_s=1) as first:
        box = await guest(first)
        await box.run("python3", "-c", BUSY.format(0.5))
        await sent(first.supervisor.metered.usage, 0, 1)
        running = await box.start("python3", "-c", BUSY.format(0.5))
    assert not running.finished.done() or running.finished.exception() is not None
    async with real_host(no_leaks, billing__window_s=1) as second:
        again = Guest(second.supervisor, box.session_id)
        record = await again.stop()
        numbers = []
        windows = await all_windows(second.supervisor.metered.usage)
        numbers = [numbered.window.number for numbered in windows]
        assert numbers == list(range(1, len(windows) + 1))
        total = total_of(windows, box.session_id)
        assert total.active_cpu_us == record.active_cpu_us
        assert total.creations == 1


MIXED = (
    ["python3", "-c", BUSY.format(0.3)],
    ["sleep", "1"],
    ["sh", "-c", "for n in 1 2 3 4 5 6 7 8 9 10; do /bin/true; done"],
    ["sh", "-c", "dd if=/dev/zero of=f bs=1M count=20 conv=fsync"],
    ["sh", "-c", "(sh -c 'i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done' &) ; exit 0"],
)
"""The last one hides its work in a daemon that survives its command."""


@pytest.mark.root
@pytest.mark.sandbox
@pytest.mark.campaign
@differs("the monitor's own threads are on nobody's bill")
async def test_the_sum_of_many_is_the_machines_own_accounting(no_leaks: Path, full_campaign: bool) -> None:
    """The cgroup above all sandboxes counts those that are gone too; with what starting took, theirs is all of it."""
    count = 100 if full_campaign else 6
    async with real_host(no_leaks, billing__window_s=1) as host:
        machines = host.supervisor._machines
        parent, cgroups = machines._names.cgroup_parent, machines.cgroups
        before = cgroups.cpu_us(parent) or 0
        boxes = [await guest(host, sandbox_id=f"sb_{number}", team_id="team_1") for number in range(count)]
        await asyncio.gather(*(box.run(*MIXED[number % len(MIXED)]) for number, box in enumerate(boxes)))
        await asyncio.gather(*(box.stop() for box in boxes))
        usage = host.supervisor.metered.usage
        used = sum((usage.usage(box.session_id).quantities for box in boxes), Quantities())
        truth = (cgroups.final_cpu_us(parent) or 0) - before
        counted = used.active_cpu_us + used.startup_cpu_us
        print(f"{count} sandboxes: {counted} us counted, {truth} us by the machine: {100 * (counted - truth) / truth:+.3f} %")
        assert abs(counted - truth) <= truth * 0.02
        assert used.creations == count
        assert usage.spent("team:team_1") == used
