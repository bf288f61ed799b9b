"""Windows are written once however often they are told, and add up exactly; budgets are those of their team."""

from __future__ import annotations

import msgspec

from hutch.control.records import Scope
from hutch.host.protocol import NumberedWindow, RuleTraffic
from hutch.metering.budgets import Budget, Limits, Period, UsageOwner
from hutch.metering.quantities import Quantities
from hutch.metering.windows import UsageWindow
from hutch.storage import budgets, removals, sandboxes, sessions, usage
from hutch.storage.database import Database
from hutch.storage.sealing import Sealer
from tests.storage.conftest import new_scope, sandbox, session_of

DAY = usage.DAY_MS
MOST = 2**62


def told(
    scope: Scope, session_id: str, number: int, *, sandbox_id: str = "sb", at: int = 0, final: bool = False, **used: int
) -> NumberedWindow:
    owner = UsageOwner(scope.team_id, scope.project_id or "", sandbox_id)
    window = UsageWindow(
        session_id=session_id, number=number, from_ms=at, to_ms=at + 5, final=final, quantities=Quantities(**used)
    )
    return NumberedWindow(number, owner, window)


async def write(database: Database, *windows: NumberedWindow) -> None:
    async with database.write() as connection:
        await usage.apply(connection, list(windows))


async def test_a_window_counts_once_however_often_it_is_told(database: Database, scope: Scope) -> None:
    one = told(scope, "s", 1, active_cpu_us=5, memory_peak_bytes=9, creations=1)
    two = told(scope, "s", 2, active_cpu_us=7, memory_peak_bytes=3, final=True)
    await write(database, one, one)
    await write(database, one, two)
    await write(database, two)
    async with database.read() as connection:
        assert await usage.of_session(connection, scope, "s") == (
            Quantities(active_cpu_us=12, memory_peak_bytes=9, creations=1),
            True,
        )
    again = told(scope, "s", 2, active_cpu_us=8, final=True)
    await write(database, again)
    async with database.read() as connection:
        assert (await usage.of_session(connection, scope, "s"))[0].active_cpu_us == 13, "what came last counts"
        assert await usage.of_session(connection, scope, "other") == (Quantities(), False)
    await write(database)


async def test_what_passed_by_rule_comes_once_with_the_last_window(database: Database, scope: Scope) -> None:
    other = await new_scope(database, "other")
    passed = {"00ff": RuleTraffic(sent_bytes=1, received_bytes=2, connections=3, requests=4), "": RuleTraffic(sent_bytes=9)}
    more = {"00ff": RuleTraffic(sent_bytes=10), "*": RuleTraffic(requests=5)}
    windows = [
        told(scope, "s", 1, gateway_cpu_us=5, disk_byte_seconds=6, disk_peak_bytes=7),
        msgspec.structs.replace(told(scope, "s", 2, final=True, gateway_cpu_us=1, disk_peak_bytes=3), network=passed),
        msgspec.structs.replace(told(scope, "t", 1, final=True), network=more),
        msgspec.structs.replace(told(other, "theirs", 1, final=True), network=passed),
    ]
    await write(database, *windows)
    await write(database, *windows)
    async with database.read() as connection:
        total = await usage.of_sandbox(connection, scope, "sb")
        assert (total.gateway_cpu_us, total.disk_byte_seconds, total.disk_peak_bytes) == (6, 6, 7)
        assert await usage.network_of_sandbox(connection, scope, "sb") == {
            "00ff": RuleTraffic(sent_bytes=11, received_bytes=2, connections=3, requests=4),
            "": RuleTraffic(sent_bytes=9),
            "*": RuleTraffic(requests=5),
        }
        assert await usage.network_of_sandbox(connection, scope, "sb", without=["s"]) == more
        assert await usage.network_of_sandbox(connection, scope, "another") == {}


async def test_sums_are_exact_beyond_64_bits(database: Database, scope: Scope) -> None:
    await write(database, *(told(scope, "s", number, memory_byte_seconds=MOST + number) for number in range(9)))
    async with database.read() as connection:
        total = await usage.of_sandbox(connection, scope, "sb")
    assert total.memory_byte_seconds == 9 * MOST + sum(range(9)) > 2**64


async def test_sums_by_day_and_by_sandbox_are_those_of_the_scope(database: Database, scope: Scope, sealer: Sealer) -> None:
    other = await new_scope(database, "other")
    record = sandbox(scope, "named")
    run = session_of(record)
    async with database.write() as connection:
        await sandboxes.add(connection, record, sealer)
        await sessions.add(connection, run, sealer)
    await write(
        database,
        told(scope, run.id, 1, sandbox_id=record.id, at=DAY - 1, active_cpu_us=1),
        told(scope, run.id, 2, sandbox_id=record.id, at=DAY, active_cpu_us=10),
        told(scope, "gone", 1, sandbox_id="sb_gone", at=DAY + 5, active_cpu_us=100),
        told(other, "theirs", 1, at=DAY, active_cpu_us=1000),
    )
    async with database.read() as connection:
        days = await usage.by_day(connection, scope, 0, 3 * DAY)
        boxes = await usage.by_sandbox(connection, scope, DAY, 3 * DAY)
        assert {day: used.active_cpu_us for day, used in days.items()} == {0: 1, 1: 110}
        assert {key: (name, used.active_cpu_us) for key, (name, used) in boxes.items()} == {
            record.id: ("named", 10),
            "sb_gone": ("sb_gone", 100),
        }
        assert (await usage.of_sandbox(connection, scope, record.id, without=[run.id])) == Quantities()
        assert await usage.of_session(connection, other, run.id) == (Quantities(), False)
        whole = Scope(scope.team_id)
        assert sum(used.active_cpu_us for used in (await usage.by_day(connection, whole, 0, 3 * DAY)).values()) == 111


async def test_windows_of_a_deleted_team_are_dropped(database: Database, scope: Scope) -> None:
    nobody = Scope("team_gone", "prj_gone")
    await write(database, told(nobody, "s", 1, active_cpu_us=1), told(scope, "t", 1, active_cpu_us=2))
    async with database.read() as connection:
        assert await usage.of_session(connection, nobody, "s") == (Quantities(), False)
        assert (await usage.of_session(connection, scope, "t"))[0].active_cpu_us == 2


async def test_windows_of_what_is_being_deleted_are_dropped(database: Database, scope: Scope) -> None:
    sibling = await new_scope(database, "acme", "web")
    going = await new_scope(database, "acme", "jobs")
    whole = await new_scope(database, "leaving")
    async with database.write() as connection:
        await removals.begin(connection, going, 5)
        await removals.begin(connection, Scope(whole.team_id), 5)
    for number, one in enumerate((sibling, going, whole)):
        await write(database, told(one, f"s{number}", 1, active_cpu_us=1))
    async with database.read() as connection:
        used = [(await usage.of_session(connection, one, f"s{number}"))[0] for number, one in enumerate((sibling, going, whole))]
    assert [one.active_cpu_us for one in used] == [1, 0, 0]


async def test_budgets_are_kept_by_key_and_period(database: Database, scope: Scope, sealer: Sealer) -> None:
    day = Budget(key="team:t", limits=Limits(active_cpu_us=1), period=Period.DAY)
    total = Budget(key="team:t", limits=Limits(money_nano=MOST))
    record = sandbox(scope, "named", budget={"egress_bytes": 7})
    async with database.write() as connection:
        await sandboxes.add(connection, record, sealer)
        for budget in (day, total, Budget(key="team:t", limits=Limits(active_cpu_us=2), period=Period.DAY)):
            await budgets.put(connection, scope.team_id, budget, None)
    async with database.read() as connection:
        found = await budgets.of_key(connection, "team:t")
        assert [(period, stored.budget.limits) for period, stored in found.items()] == [
            (Period.DAY, Limits(active_cpu_us=2)),
            (Period.TOTAL, Limits(money_nano=MOST)),
        ]
        assert [budget.key for budget in await budgets.every(connection)] == [
            "team:t",
            "team:t",
            f"sandbox:{record.id}",
        ]
    async with database.write() as connection:
        await budgets.put(connection, scope.team_id, Budget(key="team:t", limits=Limits(), period=Period.DAY), None)
        assert list(await budgets.of_key(connection, "team:t")) == [Period.TOTAL]
