"""Events of budgets on both databases: one of each, whose they are, and who sends them when."""

from __future__ import annotations

import pytest

from hutch.control.records import Scope
from hutch.metering.budgets import ALL_TIME, Budget, Limits, Period, Span, project_key, sandbox_key, team_key
from hutch.metering.notices import Notice, NoticeKind, Threshold, notice_id
from hutch.storage import budget_events, budgets, removals, sandboxes, sessions
from hutch.storage.database import Database
from hutch.storage.sealing import Sealer
from tests.storage.conftest import new_scope, sandbox, session_of


def notice(key: str, bound: int = 100, span: Span = ALL_TIME, at_ms: int = 50) -> Notice:
    threshold = Threshold(NoticeKind.EXCEEDED, "active_cpu_us", bound)
    return Notice(
        id=notice_id(key, span, threshold), key=key, span=span, threshold=threshold, used=2**62, at_ms=at_ms, session_ids=["s"]
    )


async def test_an_event_is_written_once_and_read_by_its_owners(database: Database, scope: Scope, sealer: Sealer) -> None:
    theirs, sibling = await new_scope(database, "theirs"), await new_scope(database, "acme", "jobs")
    box, gone = sandbox(scope, "one"), sandbox(scope, "two")
    keys = [team_key(scope.team_id), project_key(scope.project_id or ""), sandbox_key(box.id), sandbox_key(gone.id)]
    async with database.write() as connection:
        await sandboxes.add(connection, box, sealer)
        # Of this one only a session is left.
        await sessions.add(connection, session_of(gone), sealer)
        told = [notice(key) for key in keys]
        assert await budget_events.apply(connection, [*told, told[0], notice("project:unknown"), notice("sandbox:unknown")]) == 4
        assert await budget_events.apply(connection, told) == 0
        assert await budget_events.apply(connection, [notice(project_key(sibling.project_id or ""))]) == 1
    async with database.read() as connection:
        of_team = await budget_events.page(connection, Scope(scope.team_id), after=0, limit=10)
        own = await budget_events.page(connection, scope, after=0, limit=10)
        assert await budget_events.page(connection, theirs, after=0, limit=10) == []
        assert len(of_team) == 5
        assert [event.seq for event in of_team] == sorted(event.seq for event in of_team)
        assert {event.key for event in own} == set(keys[1:])
        assert await budget_events.page(connection, scope, after=own[0].seq, limit=1) == [own[1]]
        assert {(event.project_id, event.due_at, event.delivery) for event in own} == {(scope.project_id, None, "none")}
        assert own[0].data["used"] == 2**62
    async with database.write() as connection:
        await removals.begin(connection, scope, 5)
        assert await budget_events.apply(connection, [notice(keys[1], 7), notice(keys[2], 7), notice(keys[3], 7)]) == 0
        assert await budget_events.apply(connection, [notice(keys[0], 7)]) == 1


async def test_what_is_due_is_taken_once_until_its_time_is_over(database: Database, scope: Scope) -> None:
    key = project_key(scope.project_id or "")
    budget = Budget(key=key, limits=Limits(active_cpu_us=1), period=Period.MONTH)
    month = Span(Period.MONTH, "2026-11")
    async with database.write() as connection:
        await budgets.put(connection, scope.team_id, budget, b"sealed")
        await budget_events.apply(connection, [notice(key, bound, month, at_ms=bound) for bound in range(1, 6)])
        # The budget of all time has no webhook.
        await budget_events.apply(connection, [notice(key, 9)])

    async def taken(now: int, of_team: int = 9, without: tuple[str, ...] = ()) -> list[int]:
        async with database.write() as connection:
            found = await budget_events.take_due(connection, now, until=now + 100, limit=3, of_team=of_team, without=without)
            return [event.data["bound"] for event in found]

    async with database.read() as connection:
        assert await budget_events.next_due(connection, ()) == 1
        assert await budget_events.next_due(connection, [scope.team_id]) is None
        assert await budget_events.next_due(connection, ["another"]) == 1
    assert await taken(0) == []
    assert await taken(50, without=(scope.team_id,)) == []
    assert await taken(50, of_team=2) == [1, 2]
    assert await taken(50) == [3, 4, 5]
    assert await taken(149) == []
    async with database.read() as connection:
        events = await budget_events.page(connection, scope, after=0, limit=10)
        assert [event.delivery for event in events] == ["pending"] * 5 + ["none"]
    async with database.write() as connection:
        await budget_events.delivered(connection, events[0].seq, 60)
        await budget_events.failed(connection, events[1].seq, "x" * 500, None)
        await budget_events.failed(connection, events[2].seq, "later", 70)
    assert await taken(70) == [3]
    assert await taken(160) == [4, 5]
    async with database.read() as connection:
        events = await budget_events.page(connection, scope, after=0, limit=3)
    assert [(event.delivery, event.attempts) for event in events] == [("delivered", 1), ("given_up", 1), ("pending", 2)]
    assert events[1].failure == "x" * 200
    assert events[2].first_sent_at == 50


async def test_what_a_webhook_is_sealed_for_is_its_budget(database: Database, scope: Scope, sealer: Sealer) -> None:
    key = team_key(scope.team_id)
    sealed = sealer.seal({"url": "https://hooks.example.com"}, budgets.webhook_row(key, Period.DAY))
    async with database.write() as connection:
        soft = Budget(key=key, limits=Limits(), soft=Limits(concurrency=1), period=Period.DAY, notify_at=[1, 100], set_at=2**50)
        await budgets.put(connection, scope.team_id, soft, sealed)
        found = await budgets.of_key(connection, key)
    assert list(found) == [Period.DAY]
    assert (found[Period.DAY].budget, found[Period.DAY].team_id) == (soft, scope.team_id)
    assert sealer.open(found[Period.DAY].webhook or b"", budgets.webhook_row(key, Period.DAY)) == {
        "url": "https://hooks.example.com"
    }
    with pytest.raises(Exception, match="sealed|opened|key"):
        sealer.open(found[Period.DAY].webhook or b"", budgets.webhook_row(key, Period.MONTH))
