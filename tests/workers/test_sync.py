"""The decisions of a sync, event by event. `test_sync_model` drives them against a model in any order."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest

from hutch.workers import sync
from hutch.workers.changes import Batch, Change, Delete, Upsert
from hutch.workers.manifest import MINUTE_MS, Schedule
from hutch.workers.outcome import Failure, Success
from hutch.workers.sync import (
    MANUAL_ATTEMPTS,
    Apply,
    Ask,
    Decision,
    Deploy,
    Due,
    Event,
    Finished,
    Label,
    Pause,
    Reschedule,
    Reset,
    Restart,
    Resume,
    Run,
    SyncConfig,
    SyncState,
    Trigger,
    advance,
    backoff_ms,
    tick,
    writes,
)

NOW = 1_000_000
HALF_HOUR = 30 * MINUTE_MS
MANUAL = Schedule(type="manual")


def config(replaces: bool = True, schedule: Schedule | None = None, database: str = "d") -> SyncConfig:
    return SyncConfig(schedule=schedule, replaces=replaces, database=database)


def upsert(key: str) -> Upsert:
    return Upsert(key=key, properties={})


def good(*changes: Change, more: bool = False, state: Any = None) -> Success:
    return Success(Batch(changes=changes, has_more=more, state=state, pacers={}))


def bad(**fields: Any) -> Failure:
    return Failure(**({"name": "ExecutionError", "message": "m"} | fields))


class Life:
    """A sync and its clock."""

    def __init__(self, config: SyncConfig) -> None:
        self.now = NOW
        self.state = sync.new(config, NOW)
        self.mark = 0

    def send(self, event: Event) -> tuple[Decision, ...]:
        # What is stored is what counts.
        stored = msgspec.json.encode(self.state)
        state, decisions = advance(msgspec.json.decode(stored, type=SyncState), event)
        self.state = state
        return decisions

    def due(self, after_ms: int = 0) -> tuple[Decision, ...]:
        self.now += after_ms
        self.mark = tick(self.mark, self.now)
        return self.send(Due(now_ms=self.now, mark=self.mark))

    def trigger(self) -> tuple[Decision, ...]:
        self.mark = tick(self.mark, self.now)
        return self.send(Trigger(now_ms=self.now, mark=self.mark))

    def finish(self, outcome: Success | Failure, after_ms: int = 10, run: int | None = None) -> tuple[Decision, ...]:
        self.now += after_ms
        self.mark = tick(self.mark, self.now)
        number = run if run is not None else self.state.running.run if self.state.running else 0
        return self.send(Finished(run=number, outcome=outcome, now_ms=self.now, mark=self.mark))

    def label(self) -> Label:
        return self.state.label

    def wait_ms(self) -> int | None:
        return None if self.state.due_ms is None else self.state.due_ms - self.now


def started(decisions: tuple[Decision, ...]) -> Run:
    (run,) = decisions
    assert isinstance(run, Run)
    return run


def applied(decisions: tuple[Decision, ...]) -> Apply:
    assert isinstance(decisions[0], Apply)
    return decisions[0]


def test_a_cycle_is_a_chain_of_runs_that_ends_with_a_sweep() -> None:
    life = Life(config())
    assert life.label() is Label.INITIALIZING
    run = started(life.due())
    assert run.cursor is None
    mark = life.mark
    apply, following = life.finish(good(upsert("1"), more=True, state={"page": 2}))
    assert isinstance(apply, Apply)
    assert apply.sweep_before is None
    assert isinstance(following, Run)
    assert (following.cursor, following.cycle) == ({"page": 2}, run.cycle)
    (last,) = life.finish(good(upsert("2")))
    assert isinstance(last, Apply)
    assert (last.database, last.sweep_before) == ("d", mark)
    assert last.mark > mark
    assert life.state.cycle is None
    assert life.label() is Label.HEALTHY
    assert life.state.stats.cycle_upserts == 2


def test_an_interval_counts_from_start_to_start() -> None:
    life = Life(config())
    life.due()
    life.finish(good(), after_ms=MINUTE_MS)
    assert life.state.due_ms == NOW + HALF_HOUR
    assert life.due(after_ms=MINUTE_MS) == ()
    started(life.due(after_ms=HALF_HOUR))


def test_a_cycle_that_outlasts_its_interval_is_followed_by_one_at_once() -> None:
    life = Life(config())
    life.due()
    life.finish(good(), after_ms=5 * HALF_HOUR)
    started(life.due())
    life.finish(good())
    assert life.wait_ms() == HALF_HOUR - 10


def test_an_incremental_cycle_sweeps_nothing_and_keeps_its_state() -> None:
    life = Life(config(replaces=False))
    life.due()
    assert applied(life.finish(good(Delete(key="1"), state="token"))).sweep_before is None
    assert life.state.stats.total_deletes == 1
    assert started(life.due(after_ms=HALF_HOUR)).cursor == "token"


def test_a_failed_cycle_goes_on_where_it_was_and_sweeps_by_its_own_mark() -> None:
    life = Life(config())
    life.due()
    mark = life.mark
    life.finish(good(upsert("1"), more=True, state=2))
    assert life.finish(bad()) == ()
    assert (life.label(), life.state.failures, life.state.last_error) == (Label.WARNING, 1, "ExecutionError: m")
    run = started(life.due(after_ms=HALF_HOUR))
    assert (run.cursor, run.cycle) == (2, 1)
    assert applied(life.finish(good())).sweep_before == mark
    assert (life.label(), life.state.failures) == (Label.HEALTHY, 0)


def test_labels_follow_failures() -> None:
    life = Life(config())
    for expected in (Label.WARNING, Label.WARNING, Label.ERROR, Label.ERROR):
        life.due(after_ms=2 * sync.BACKOFF_CAP_MS)
        life.finish(bad())
        assert life.label() is expected
    life.send(Pause(now_ms=life.now))
    assert life.label() is Label.DISABLED


@pytest.mark.parametrize(
    ("schedule", "failures", "failure", "expected"),
    [
        (None, 1, bad(), HALF_HOUR),
        (None, 2, bad(), 2 * HALF_HOUR),
        (None, 3, bad(), 3_600_000),
        (Schedule(type="interval", interval_ms=MINUTE_MS), 3, bad(), 4 * MINUTE_MS),
        (Schedule(type="interval", interval_ms=7 * 24 * 60 * MINUTE_MS), 1, bad(), 3_600_000),
        (Schedule(type="continuous"), 1, bad(), 30_000),
        (MANUAL, 2, bad(), 60_000),
        (None, 1, bad(tag="rate_limit"), 30_000),
        (None, 1, bad(tag="rate_limit", retry_after_ms=45_000), 45_000),
        (None, 3, bad(tag="rate_limit", retry_after_ms=45_000), 120_000),
        (None, 1, bad(tag="rate_limit", retry_after_ms=86_400_000), 86_400_000),
        (None, 10**6, bad(), 3_600_000),
    ],
)
def test_backoff(schedule: Schedule | None, failures: int, failure: Failure, expected: int) -> None:
    assert backoff_ms(schedule, failures, failure) == expected
    for jitter in (0.0, 1.0, -5.0, 5.0):
        found = backoff_ms(schedule, failures, failure, jitter)
        assert found >= (failure.retry_after_ms or 0)
        assert found >= expected * 0.9
        assert found <= expected * 1.1


def test_a_result_counts_once_and_only_of_the_run_that_is_waited_for() -> None:
    life = Life(config())
    run = started(life.due())
    life.finish(good(more=True, state=2))
    before = life.state
    assert life.finish(good(upsert("late")), run=run.run) == ()
    assert life.finish(good(upsert("forged")), run=99) == ()
    assert life.state == before
    life.finish(good())
    assert life.finish(good(upsert("again")), run=2) == ()


def test_two_cycles_never_run_at_once() -> None:
    life = Life(config())
    life.due()
    assert life.due(after_ms=10 * HALF_HOUR) == ()
    assert life.trigger() == ()
    life.finish(good())
    assert life.wait_ms() == 0
    started(life.due())
    life.finish(good())
    assert (life.wait_ms() or 0) > 0


def test_a_trigger_runs_a_manual_sync_and_nothing_else_does() -> None:
    life = Life(config(schedule=MANUAL))
    assert life.state.due_ms is None
    assert life.due(after_ms=10**9) == ()
    started(life.trigger())
    life.finish(good())
    assert life.state.due_ms is None


def test_a_manual_cycle_that_fails_is_tried_again_and_gives_up_at_last() -> None:
    life = Life(config(schedule=MANUAL))
    life.trigger()
    for _ in range(sync.MANUAL_ATTEMPTS - 1):
        life.finish(bad())
        started(life.due(after_ms=2 * sync.BACKOFF_CAP_MS))
    life.finish(bad())
    assert life.state.due_ms is None
    started(life.trigger())
    life.finish(bad())
    assert life.wait_ms() == sync.BACKOFF_BASE_MS


def test_a_paused_sync_starts_nothing_and_finishes_what_runs() -> None:
    life = Life(config())
    life.due()
    life.send(Pause(now_ms=life.now))
    (apply,) = life.finish(good(upsert("1"), more=True, state=2))
    assert isinstance(apply, Apply)
    assert life.due(after_ms=10 * HALF_HOUR) == ()
    life.send(Resume(now_ms=life.now))
    run = started(life.due())
    assert (run.cursor, run.cycle) == (2, 1)


def test_a_trigger_runs_a_whole_cycle_of_a_paused_sync() -> None:
    life = Life(config())
    life.send(Pause(now_ms=life.now))
    assert life.due(after_ms=HALF_HOUR) == ()
    life.trigger()
    _, following = life.finish(good(more=True, state=2))
    assert isinstance(following, Run)
    life.finish(bad())
    started(life.due(after_ms=HALF_HOUR))
    life.trigger()
    life.finish(good())
    started(life.due())
    life.finish(good())
    assert life.due(after_ms=HALF_HOUR) == ()
    assert life.label() is Label.DISABLED


def test_pausing_ends_what_a_trigger_began() -> None:
    life = Life(config())
    life.trigger()
    life.trigger()
    life.send(Pause(now_ms=life.now))
    assert len(life.finish(good(more=True, state=2))) == 1
    assert life.due(after_ms=HALF_HOUR) == ()


def test_a_resumed_sync_that_missed_times_runs_once() -> None:
    life = Life(config())
    life.due()
    life.finish(good())
    life.send(Pause(now_ms=life.now))
    life.now += 50 * HALF_HOUR
    life.send(Resume(now_ms=life.now))
    started(life.due())
    life.finish(good())
    assert life.due() == ()
    assert life.wait_ms() == HALF_HOUR - 10


def test_a_reset_begins_from_nothing_and_forgets_statistics() -> None:
    life = Life(config(replaces=False))
    life.due()
    life.finish(good(upsert("1"), state="token"))
    due = life.state.due_ms
    life.send(Reset(now_ms=life.now))
    assert life.state.stats == sync.Stats()
    assert life.label() is Label.INITIALIZING
    assert life.state.due_ms == due
    assert started(life.due(after_ms=HALF_HOUR)).cursor is None


def test_a_reset_waits_for_the_run_and_does_not_apply_it() -> None:
    life = Life(config())
    life.due()
    life.finish(good(more=True, state=2))
    life.send(Reset(now_ms=life.now))
    assert life.due(after_ms=HALF_HOUR) == ()
    assert life.finish(good(upsert("old"), state=3)) == ()
    run = started(life.due())
    assert (run.cursor, run.cycle) == (None, 2)
    assert life.state.cycle is not None
    assert life.state.cycle.started_ms == life.now


def test_a_deployment_keeps_the_state_and_the_cycle() -> None:
    life = Life(config())
    life.due()
    mark = life.mark
    life.finish(good(more=True, state=2))
    life.send(Deploy(now_ms=life.now, config=config(schedule=Schedule(type="interval", interval_ms=MINUTE_MS))))
    apply = applied(life.finish(good(state=7)))
    assert apply.sweep_before == mark
    assert life.state.cursor == 7
    assert (life.state.due_ms or 0) == NOW + MINUTE_MS


def test_a_deployment_tries_at_once_what_failed_but_not_before_it_may() -> None:
    life = Life(config())
    life.due()
    life.finish(bad())
    life.send(Deploy(now_ms=life.now, config=config()))
    started(life.due())
    life.finish(bad(tag="rate_limit", retry_after_ms=50_000))
    life.send(Deploy(now_ms=life.now, config=config()))
    assert life.wait_ms() == 50_000


@pytest.mark.parametrize("changed", [config(replaces=False), config(database="other")])
def test_a_cycle_whose_mode_or_database_changes_sweeps_nothing(changed: SyncConfig) -> None:
    life = Life(config())
    life.due()
    life.finish(good(more=True, state=2))
    life.send(Deploy(now_ms=life.now, config=changed))
    life.send(Deploy(now_ms=life.now, config=config()))
    assert applied(life.finish(good())).sweep_before is None
    life.due(after_ms=HALF_HOUR)
    swept = applied(life.finish(good())).sweep_before
    assert swept is not None


def test_the_state_of_incremental_cycles_does_not_lead_to_a_sweep() -> None:
    life = Life(config(replaces=False))
    life.due()
    life.finish(good(state="token"))
    life.send(Deploy(now_ms=life.now, config=config()))
    life.due(after_ms=HALF_HOUR)
    assert applied(life.finish(good(state="token2"))).sweep_before is None
    life.due(after_ms=HALF_HOUR)
    assert applied(life.finish(good())).sweep_before is not None


def test_the_state_of_a_cycle_that_was_partly_incremental_does_not_lead_to_a_sweep() -> None:
    life = Life(config(replaces=False))
    life.due()
    life.send(Deploy(now_ms=life.now, config=config()))
    life.finish(good(state="token"))
    life.due(after_ms=HALF_HOUR)
    assert applied(life.finish(good(state="token2"))).sweep_before is None
    life.due(after_ms=HALF_HOUR)
    assert applied(life.finish(good())).sweep_before is not None


def test_another_schedule_counts_from_now_on() -> None:
    life = Life(config())
    life.due()
    life.finish(good())
    life.send(Deploy(now_ms=life.now, config=config(schedule=MANUAL)))
    assert life.state.due_ms is None
    life.send(Deploy(now_ms=life.now, config=config(schedule=Schedule(type="interval", interval_ms=5 * MINUTE_MS))))
    assert life.state.due_ms == NOW + 5 * MINUTE_MS


def test_a_schedule_that_was_asked_for_counts_whatever_is_deployed() -> None:
    life = Life(config())
    life.due()
    life.finish(good())
    noon = Schedule(type="cron", expression="0 12 * * *", time_zone="Europe/Berlin")
    life.send(Reschedule(now_ms=life.now, schedule=noon))
    due = life.state.due_ms
    assert due is not None
    assert datetime.fromtimestamp(due / 1000, ZoneInfo("Europe/Berlin")).strftime("%H:%M:%S") == "12:00:00"
    assert life.now < due <= life.now + 86_400_000
    life.send(Deploy(now_ms=life.now, config=config(schedule=MANUAL)))
    assert life.state.due_ms == due
    life.send(Reschedule(now_ms=life.now, schedule=None))
    assert life.state.due_ms is None


def test_times_of_a_new_cron_schedule_that_were_before_it_were_not_missed() -> None:
    life = Life(config())
    life.due()
    life.finish(good())
    life.now += 48 * 60 * MINUTE_MS
    life.send(Reschedule(now_ms=life.now, schedule=Schedule(type="cron", expression="0 12 * * *")))
    assert life.state.due_ms is not None
    assert life.state.due_ms > life.now


def test_another_schedule_leaves_a_retry_and_what_was_asked_for_alone() -> None:
    life = Life(config())
    life.due()
    life.finish(bad())
    retry = life.state.due_ms
    life.send(Reschedule(now_ms=life.now, schedule=Schedule(type="interval", interval_ms=MINUTE_MS)))
    assert life.state.due_ms == retry
    life.send(Ask(now_ms=life.now))
    life.send(Reschedule(now_ms=life.now, schedule=MANUAL))
    assert life.state.due_ms == life.now
    started(life.due())


@pytest.mark.parametrize("by_deployment", [False, True])
def test_a_manual_cycle_that_was_given_up_goes_on_by_its_new_schedule(by_deployment: bool) -> None:
    life = Life(config(schedule=MANUAL))
    life.trigger()
    for _ in range(MANUAL_ATTEMPTS):
        life.finish(bad())
        life.due(after_ms=2 * 3_600_000)
    assert life.state.due_ms is None
    hourly = Schedule(type="interval", interval_ms=60 * MINUTE_MS)
    event = (
        Deploy(now_ms=life.now, config=config(schedule=hourly)) if by_deployment else Reschedule(now_ms=life.now, schedule=hourly)
    )
    life.send(event)
    started(life.due())


def test_a_lost_run_is_run_again_at_once_from_the_same_state() -> None:
    life = Life(config())
    life.due()
    life.finish(good(more=True, state=2))
    life.send(Restart(now_ms=life.now))
    run = started(life.due())
    assert (run.cursor, life.state.failures) == (2, 0)
    assert life.finish(good(upsert("dead")), run=run.run - 1) == ()


def test_an_endless_cycle_is_an_error_and_does_not_spin() -> None:
    life = Life(config())
    life.due()
    for _ in range(sync.NO_PROGRESS_RUNS - 1):
        assert len(life.finish(good(upsert("1"), more=True))) == 2
    decisions = life.finish(good(upsert("1"), more=True))
    assert len(decisions) == 1
    assert life.state.running is None
    assert "SyncStuckError" in (life.state.last_error or "")
    assert (life.wait_ms() or 0) > 0


def test_a_queue_that_is_emptied_without_a_state_is_no_endless_cycle() -> None:
    life = Life(config(replaces=False))
    life.due()
    for number in range(20):
        assert len(life.finish(good(upsert(str(number)), more=True))) == 2
    life.finish(good())
    assert life.state.failures == 0


def test_older_upserts_do_not_replace_newer_rows() -> None:
    assert [writes(5, 4), writes(5, 5), writes(5, 6), writes(None, 4), writes(5, None)] == [False, True, True, True, True]


def test_marks_never_go_back() -> None:
    assert [tick(0, 100), tick(100, 100), tick(100, 50)] == [100, 101, 101]


def test_durations_are_kept_and_clocks_that_go_back_do_no_harm() -> None:
    life = Life(config(schedule=Schedule(type="continuous")))
    for _ in range(12):
        started(life.due(after_ms=5000))
        life.finish(good(), after_ms=7)
    life.due(after_ms=5000)
    life.finish(good(), after_ms=-1000)
    assert life.state.stats.recent_run_durations_ms == (7,) * 9 + (0,)
