"""The life of one sync: when it runs, from which state, what is applied, what is swept. Events in, decisions out.

    Due, Trigger ──▶ Run ──(sandbox)──▶ Finished ──▶ Apply (rows + state + sweep, one transaction) ──▶ Run … or wait for `due_ms`

A *cycle* is a chain of runs up to the first that says it has no more. `advance` is called in the transaction that stores what it
returns and applies what it decides, so that whatever dies meanwhile, a batch and the state after it count together or not at
all. A result counts once, and only that of the run that was decided last (`SyncState.running`): late, doubled and forged ones do
nothing, so there are never two cycles at once.

Rows carry a mark, the time when any sync last wrote or confirmed them; a worker's marks never go back, whatever clocks do
(`tick`). A cycle remembers the mark that it began with. When a complete cycle in replace mode ends, rows of the sync's own
database with an older mark go. What a delta writes while a backfill runs has a newer one, and stays.

Gaps of the contract and what fills them are in `docs/workers-engine.md`; the constants are here.
"""

from __future__ import annotations

import enum
import hashlib
from typing import Any, TypeAlias

import msgspec

from hutch.workers import schedule as times
from hutch.workers.changes import Batch, Change, Delete, PacerState, TableDelete
from hutch.workers.manifest import DEFAULT_SCHEDULE, Schedule
from hutch.workers.outcome import Failure, Success

BACKOFF_BASE_MS = 30_000
"""After the first failure: of a rate limit, and of syncs without an interval; others wait their interval."""
BACKOFF_FACTOR = 2
BACKOFF_CAP_MS = 3_600_000
JITTER = 0.1
"""A backoff is up to this part shorter or longer."""
MANUAL_ATTEMPTS = 8
"""Failures in a row after which a cycle of a manual sync waits for its next trigger."""
NO_PROGRESS_RUNS = 3
"""Runs in a row with the same state and the same changes that say they have more: then it is an error."""
WARNING_FAILURES = 1
ERROR_FAILURES = 3
KEPT_DURATIONS = 10


class Label(enum.StrEnum):
    """What people read. Of several the first counts."""

    DISABLED = "DISABLED"
    ERROR = "ERROR"
    WARNING = "WARNING"
    INITIALIZING = "INITIALIZING"
    HEALTHY = "HEALTHY"


class SyncConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What the deployed manifest says. `database` is the key of the sync's own, None where it has none to sweep."""

    schedule: Schedule | None = None
    replaces: bool = False
    database: str | None = None


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of changes, and times in milliseconds since the epoch."""

    last_succeeded_ms: int | None = None
    """The last run that succeeded."""
    last_completed_ms: int | None = None
    """The last cycle that was completed."""
    last_failed_ms: int | None = None
    recent_run_durations_ms: tuple[int, ...] = ()
    total_upserts: int = 0
    total_deletes: int = 0
    cycle_upserts: int = 0
    cycle_deletes: int = 0
    cycles: int = 0


class Cycle(msgspec.Struct, frozen=True, kw_only=True):
    """A cycle that began. `sweeps` is whether its end may delete rows, `replaces` whether all of it ran in replace mode, `forced`
    that it goes on although the sync is paused."""

    id: int
    started_ms: int
    mark: int
    sweeps: bool
    replaces: bool
    forced: bool = False


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """The run whose result counts. `discarded` when a reset came meanwhile: it is waited for, and not applied."""

    run: int
    started_ms: int
    discarded: bool = False


class SyncState(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is stored about a sync. `due_ms` is when `Due` should come, None while it runs or nothing is scheduled;
    it means nothing while `paused`."""

    config: SyncConfig
    override: Schedule | None = None
    """What somebody wants instead of the manifest's schedule."""
    cursor: Any = None
    cursor_replaces: bool = False
    """Whether the cursor was left by a cycle in replace mode."""
    cycle: Cycle | None = None
    running: Running | None = None
    due_ms: int | None = None
    triggered: bool = False
    """Somebody asked for a cycle while one ran: it begins after that, also of a paused sync."""
    paused: bool = False
    failures: int = 0
    not_before_ms: int = 0
    """Until when the other side asked not to be called."""
    last_error: str | None = None
    repeats: int = 0
    digest: str = ""
    last_run: int = 0
    last_cycle: int = 0
    last_started_ms: int | None = None
    last_ended_ms: int | None = None
    stats: Stats = Stats()

    @property
    def schedule(self) -> Schedule:
        """The one that counts."""
        return self.override or self.config.schedule or DEFAULT_SCHEDULE

    @property
    def label(self) -> Label:
        if self.paused:
            return Label.DISABLED
        if self.failures >= ERROR_FAILURES:
            return Label.ERROR
        if self.failures >= WARNING_FAILURES:
            return Label.WARNING
        return Label.HEALTHY if self.stats.cycles else Label.INITIALIZING


class Due(msgspec.Struct, frozen=True, kw_only=True):
    """`due_ms` is reached. `mark` is the worker's next one (`tick`)."""

    now_ms: int
    mark: int


class Trigger(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody wants a cycle now, whatever the schedule says, also of a paused sync."""

    now_ms: int
    mark: int


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """As `Trigger`, by somebody who can't start a run: the cycle begins with the next `Due`, which is due now."""

    now_ms: int


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """A run ended. `jitter` is a random number from 0 to 1."""

    run: int
    outcome: Success | Failure
    now_ms: int
    mark: int
    jitter: float = 0.5


class Pause(msgspec.Struct, frozen=True, kw_only=True):
    now_ms: int


class Resume(msgspec.Struct, frozen=True, kw_only=True):
    now_ms: int


class Reset(msgspec.Struct, frozen=True, kw_only=True):
    """State and statistics go; rows stay. The next run begins a cycle from nothing."""

    now_ms: int


class Deploy(msgspec.Struct, frozen=True, kw_only=True):
    """The manifest says something else, or the code is another. State stays, and a run goes on."""

    now_ms: int
    config: SyncConfig


class Reschedule(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody wants another schedule than the manifest's, whatever is deployed; None: the manifest's again."""

    now_ms: int
    schedule: Schedule | None


class Restart(msgspec.Struct, frozen=True, kw_only=True):
    """The run is known to be gone without a result, and nobody is to blame: it is run again at once."""

    now_ms: int


Event: TypeAlias = Due | Trigger | Ask | Finished | Pause | Resume | Reset | Deploy | Reschedule | Restart


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """Start a run with this state, and all pacers of the worker (`hutch.workers.pacers`)."""

    run: int
    cycle: int
    cursor: Any


class Apply(msgspec.Struct, frozen=True, kw_only=True):
    """Write these changes with this mark, keep the pacers, then delete rows of `database` with a mark older than `sweep_before`,
    where there is one."""

    changes: tuple[Change, ...]
    pacers: dict[str, PacerState]
    mark: int
    database: str | None
    sweep_before: int | None


Decision: TypeAlias = Run | Apply


def tick(last: int, now_ms: int) -> int:
    """The next mark of a worker whose last one was `last`: the time, as long as that goes on."""
    return max(last + 1, now_ms)


def new(config: SyncConfig, now_ms: int) -> SyncState:
    """A sync that was just declared: due at once, unless its schedule says otherwise."""
    return SyncState(config=config, due_ms=times.first_due(config.schedule, now_ms))


def advance(state: SyncState, event: Event) -> tuple[SyncState, tuple[Decision, ...]]:
    """The state after an event, and what to do, in order. An event that means nothing in a state changes nothing."""
    if isinstance(event, Due):
        return _due(state, event)
    if isinstance(event, Trigger):
        return _trigger(state, event)
    if isinstance(event, Ask):
        return _ask(state, event.now_ms), ()
    if isinstance(event, Finished):
        return _finish(state, event)
    if isinstance(event, Pause):
        cycle = replace(state.cycle, forced=False) if state.cycle else None
        return replace(state, paused=True, triggered=False, cycle=cycle), ()
    if isinstance(event, Resume):
        return _resume(state, event.now_ms), ()
    if isinstance(event, Reset):
        return _reset(state, event.now_ms), ()
    if isinstance(event, Deploy):
        return _deploy(state, event), ()
    if isinstance(event, Reschedule):
        return _rescheduled(replace(state, override=event.schedule), state.schedule, event.now_ms), ()
    return _restart(state, event.now_ms), ()


replace = msgspec.structs.replace


def _due(state: SyncState, event: Due) -> tuple[SyncState, tuple[Decision, ...]]:
    forced = state.triggered or bool(state.cycle and state.cycle.forced)
    if state.running or (state.paused and not forced) or state.due_ms is None or event.now_ms < state.due_ms:
        return state, ()
    return _run(replace(state, triggered=False), event.now_ms, event.mark, forced=state.triggered)


def _restart(state: SyncState, now_ms: int) -> SyncState:
    if state.running is None:
        return state
    due = _after_reset(state, now_ms) if state.running.discarded else now_ms
    return replace(state, running=None, due_ms=due)


def _run(state: SyncState, now_ms: int, mark: int, *, forced: bool = False) -> tuple[SyncState, tuple[Decision, ...]]:
    cycle = state.cycle
    if cycle is None:
        # A state that incremental cycles left may lead to a part of the data alone: the first cycle from it sweeps nothing.
        whole = state.cursor is None or state.cursor_replaces
        cycle = Cycle(
            id=state.last_cycle + 1,
            started_ms=now_ms,
            mark=mark,
            sweeps=state.config.replaces and whole,
            replaces=state.config.replaces,
            forced=forced,
        )
        state = replace(
            state,
            cycle=cycle,
            last_cycle=cycle.id,
            repeats=0,
            digest="",
            stats=replace(state.stats, cycle_upserts=0, cycle_deletes=0),
        )
    elif forced and not cycle.forced:
        state = replace(state, cycle=replace(cycle, forced=True))
    run = state.last_run + 1
    state = replace(state, running=Running(run=run, started_ms=now_ms), last_run=run, due_ms=None)
    return state, (Run(run=run, cycle=cycle.id, cursor=state.cursor),)


def _trigger(state: SyncState, event: Trigger) -> tuple[SyncState, tuple[Decision, ...]]:
    if state.running:
        return replace(state, triggered=True), ()
    return _run(_asked(state), event.now_ms, event.mark, forced=True)


def _ask(state: SyncState, now_ms: int) -> SyncState:
    if state.running:
        return replace(state, triggered=True)
    return replace(_asked(state), triggered=True, due_ms=now_ms)


def _asked(state: SyncState) -> SyncState:
    # A retry, or the rest of a cycle, is the cycle that was asked for. What failed before does not count against it.
    manual = state.schedule.type == "manual"
    return replace(state, failures=0) if manual else state


def _finish(state: SyncState, event: Finished) -> tuple[SyncState, tuple[Decision, ...]]:
    running = state.running
    if running is None or running.run != event.run:
        return state, ()
    durations = (*state.stats.recent_run_durations_ms, max(0, event.now_ms - running.started_ms))[-KEPT_DURATIONS:]
    state = replace(state, running=None)
    if running.discarded:
        return replace(state, due_ms=_after_reset(state, event.now_ms)), ()
    state = replace(state, stats=replace(state.stats, recent_run_durations_ms=durations))
    if isinstance(event.outcome, Failure):
        return _fail(state, event.outcome, event), ()
    assert isinstance(event.outcome.value, Batch)
    return _succeed(state, event.outcome.value, event)


def _succeed(state: SyncState, batch: Batch, event: Finished) -> tuple[SyncState, tuple[Decision, ...]]:
    cycle = state.cycle
    assert cycle is not None
    deletes = sum(isinstance(change, Delete | TableDelete) for change in batch.changes)
    upserts = len(batch.changes) - deletes
    stats = replace(
        state.stats,
        last_succeeded_ms=event.now_ms,
        total_upserts=state.stats.total_upserts + upserts,
        total_deletes=state.stats.total_deletes + deletes,
        cycle_upserts=state.stats.cycle_upserts + upserts,
        cycle_deletes=state.stats.cycle_deletes + deletes,
    )
    sweep_before = None if batch.has_more or not cycle.sweeps else cycle.mark
    applied = Apply(
        changes=batch.changes, pacers=batch.pacers, mark=event.mark, database=state.config.database, sweep_before=sweep_before
    )
    digest = _digest(batch)
    repeats = state.repeats + 1 if batch.has_more and batch.state == state.cursor and digest == state.digest else 0
    state = replace(state, cursor=batch.state, stats=stats, repeats=repeats, digest=digest)
    if not batch.has_more:
        return _complete(state, event.now_ms), (applied,)
    if repeats + 1 >= NO_PROGRESS_RUNS:
        stuck = Failure(
            name="SyncStuckError",
            message=f"{NO_PROGRESS_RUNS} runs returned the same changes and the same state with `hasMore`. Return a `nextState` "
            "from which the next run goes on, or `hasMore: false`.",
            made_here=True,
        )
        return _fail(state, stuck, event), (applied,)
    state = replace(state, failures=0, last_error=None, not_before_ms=0)
    if state.paused and not cycle.forced:
        return replace(state, due_ms=event.now_ms), (applied,)
    state, decisions = _run(state, event.now_ms, event.mark)
    return state, (applied, *decisions)


def _complete(state: SyncState, now_ms: int) -> SyncState:
    cycle = state.cycle
    assert cycle is not None
    due = times.next_due(state.schedule, cycle.started_ms, now_ms)
    return replace(
        state,
        cycle=None,
        cursor_replaces=cycle.replaces,
        failures=0,
        last_error=None,
        not_before_ms=0,
        last_started_ms=cycle.started_ms,
        last_ended_ms=now_ms,
        stats=replace(state.stats, last_completed_ms=now_ms, cycles=state.stats.cycles + 1),
        due_ms=now_ms if state.triggered else due,
    )


def _fail(state: SyncState, failure: Failure, event: Finished) -> SyncState:
    failures = state.failures + 1
    delay = backoff_ms(state.schedule, failures, failure, event.jitter)
    manual = state.schedule.type == "manual"
    gives_up = manual and failures >= MANUAL_ATTEMPTS and not state.triggered
    not_before = event.now_ms + (failure.retry_after_ms or 0)
    return replace(
        state,
        failures=failures,
        last_error=f"{failure.name}: {failure.message}" if failure.message else failure.name,
        stats=replace(state.stats, last_failed_ms=event.now_ms),
        # Who asked for a cycle meanwhile does not wait, unless the other side does.
        due_ms=None if gives_up else not_before if state.triggered else event.now_ms + delay,
        not_before_ms=not_before,
        repeats=0,
    )


def backoff_ms(schedule: Schedule | None, failures: int, failure: Failure, jitter: float = 0.5) -> int:
    """How long to wait after so many failures in a row: at least as long as the other side asked for."""
    period = None if failure.rate_limited else times.period_ms(schedule)
    base = BACKOFF_BASE_MS if period is None else period
    delay = min(BACKOFF_CAP_MS, base * int(BACKOFF_FACTOR ** min(failures - 1, 20)))
    return max(failure.retry_after_ms or 0, round(delay * (1 - JITTER + 2 * JITTER * min(max(jitter, 0.0), 1.0))))


def _resume(state: SyncState, now_ms: int) -> SyncState:
    if not state.paused:
        return state
    state = replace(state, paused=False)
    if state.running:
        return state
    if state.cycle is not None:
        return replace(state, due_ms=max(now_ms, state.due_ms or 0) if state.failures else now_ms)
    return replace(state, due_ms=_scheduled(state, now_ms))


def _scheduled(state: SyncState, now_ms: int) -> int | None:
    """When the next cycle is due by the schedule, between cycles."""
    if state.last_started_ms is None or state.last_ended_ms is None:
        return times.first_due(state.schedule, now_ms)
    return times.next_due(state.schedule, state.last_started_ms, state.last_ended_ms)


def _reset(state: SyncState, now_ms: int) -> SyncState:
    running = replace(state.running, discarded=True) if state.running else None
    was_in_cycle = state.cycle is not None
    state = replace(
        state,
        cursor=None,
        cursor_replaces=False,
        cycle=None,
        running=running,
        failures=0,
        last_error=None,
        not_before_ms=0,
        repeats=0,
        digest="",
        stats=Stats(),
    )
    return replace(state, due_ms=_after_reset(state, now_ms)) if was_in_cycle and running is None else state


def _after_reset(state: SyncState, now_ms: int) -> int | None:
    """A cycle that was cut off begins anew, if that is what the schedule or somebody wants."""
    return now_ms if state.triggered else times.first_due(state.schedule, now_ms)


def _deploy(state: SyncState, event: Deploy) -> SyncState:
    old, before, cycle = state.config, state.schedule, state.cycle
    state = replace(state, config=event.config)
    if cycle is not None and (old.database, old.replaces) != (event.config.database, event.config.replaces):
        # What this cycle wrote so far is elsewhere, or not all that there is.
        same_mode = old.replaces == event.config.replaces
        state = replace(state, cycle=replace(cycle, sweeps=False, replaces=cycle.replaces and same_mode))
    if state.running:
        return state
    if state.failures and state.due_ms is not None:
        # The new code may be the remedy.
        return replace(state, due_ms=max(event.now_ms, state.not_before_ms))
    return _rescheduled(state, before, event.now_ms)


def _rescheduled(state: SyncState, before: Schedule, now_ms: int) -> SyncState:
    """Between cycles the next one is due by another schedule from now on. The rest of a cycle, or what was asked for, is due when
    it was; a manual cycle that was given up is gone on with."""
    if state.schedule == before or state.running or state.triggered:
        return state
    if state.cycle is not None:
        given_up = state.due_ms is None and state.schedule.type != "manual"
        return replace(state, due_ms=max(now_ms, state.not_before_ms)) if given_up else state
    if state.schedule.type == "cron":
        # No time of it was missed: it was not its time yet.
        return replace(state, due_ms=times.first_due(state.schedule, now_ms))
    return replace(state, due_ms=_scheduled(state, now_ms))


def _digest(batch: Batch) -> str:
    return hashlib.sha256(msgspec.json.encode(batch.changes)).hexdigest()


def writes(stored_ms: int | None, incoming_ms: int | None) -> bool:
    """Whether an upsert is written over a row: not when both say when the other side changed it and the upsert is the older one.
    (The row counts as seen in any case.)"""
    return stored_ms is None or incoming_ms is None or incoming_ms >= stored_ms
