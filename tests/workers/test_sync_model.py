"""After any order of failures, lost runs, restarts, resets, pauses, deployments and changes on the other side, a backfill and a
delta that share a database make its rows what the other side has; and no sweep ever takes a row that was there all the time."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hutch.workers import sync
from hutch.workers.changes import Batch, Change, Delete, Upsert
from hutch.workers.manifest import MINUTE_MS, Schedule
from hutch.workers.merge import merged
from hutch.workers.outcome import Failure, Success
from hutch.workers.sync import (
    Apply,
    Deploy,
    Due,
    Event,
    Finished,
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
    tick,
    writes,
)

KEYS = st.sampled_from("abcdef")
NAMES = st.sampled_from(["backfill", "delta"])
PAGE = 2
ROUNDS = 60


class Row(msgspec.Struct):
    value: int
    changed: int | None
    mark: int


class Upstream:
    """The other side: rows with the time of their change, and a log of changes."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[int, int]] = {}
        self.log: list[tuple[str, int | None, int]] = []
        self.absent: dict[str, int] = dict.fromkeys("abcdef", 0)
        """The last step at which a key was not there."""

    def put(self, key: str, value: int, step: int) -> None:
        self.rows[key] = (value, step)
        self.log.append((key, value, step))

    def delete(self, key: str, step: int) -> None:
        if self.rows.pop(key, None) is not None:
            self.log.append((key, None, step))

    def page(self, cursor: Any) -> Batch:
        """What a program in replace mode returns: the rows after a key."""
        keys = [key for key in sorted(self.rows) if cursor is None or key > cursor]
        found: list[Change] = [upsert(key, *self.rows[key]) for key in keys[:PAGE]]
        more = len(keys) > PAGE
        return Batch(changes=tuple(found), has_more=more, state=keys[PAGE - 1] if more else None, pacers={})

    def news(self, cursor: Any) -> Batch:
        """What a program in incremental mode returns: the changes after a place in the log."""
        at = cursor or 0
        entries = self.log[at : at + PAGE]
        found = [Delete(key=key) if value is None else upsert(key, value, step) for key, value, step in entries]
        end = at + len(entries)
        return Batch(changes=tuple(found), has_more=end < len(self.log), state=end, pacers={})


def upsert(key: str, value: int, step: int) -> Upsert:
    return Upsert(key=key, properties={"value": value}, upstream_updated_at_ms=step)


class Syncs(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.step = 1
        self.now = 10**12
        self.mark = 0
        self.upstream = Upstream()
        self.rows: dict[str, Row] = {}
        self.configs = {
            "backfill": SyncConfig(schedule=Schedule(type="manual"), replaces=True, database="d"),
            "delta": SyncConfig(schedule=Schedule(type="interval", interval_ms=5 * MINUTE_MS), replaces=False, database="d"),
        }
        self.states = {name: sync.new(config, self.now) for name, config in self.configs.items()}
        self.flying: dict[str, list[Run]] = {"backfill": [], "delta": []}
        """Runs that a sandbox may still answer, also those that nobody waits for."""
        self.answers: dict[tuple[str, int], Success | Failure] = {}
        self.cycle_steps: dict[str, int] = {}

    # The world

    @rule(key=KEYS, value=st.integers(0, 3))
    def other_side_changes(self, key: str, value: int) -> None:
        self.step += 1
        self.upstream.put(key, value, self.step)

    @rule(key=KEYS)
    def other_side_deletes(self, key: str) -> None:
        self.step += 1
        self.upstream.delete(key, self.step)

    @rule(by=st.sampled_from([1, 1000, MINUTE_MS, 10 * MINUTE_MS, 120 * MINUTE_MS, -MINUTE_MS]))
    def time_passes(self, by: int) -> None:
        self.now += by

    # The platform

    def send(self, name: str, event: Event) -> None:
        self.step += 1
        for key in set("abcdef") - set(self.upstream.rows):
            self.upstream.absent[key] = self.step
        before = self.states[name]
        state, decisions = advance(before, event)
        # Nothing is kept but what is stored.
        self.states[name] = msgspec.json.decode(msgspec.json.encode(state), type=SyncState)
        assert self.states[name] == state
        for decision in decisions:
            if isinstance(decision, Apply):
                self.apply(name, decision)
            else:
                if state.cycle is not None and (before.cycle is None or before.cycle.id != state.cycle.id):
                    self.cycle_steps[name] = self.step
                self.flying[name].append(decision)

    def apply(self, name: str, decision: Apply) -> None:
        assert decision.database == "d"
        found, warnings = merged(decision.changes, "d", {"d"})
        assert warnings == []
        for write in found:
            row = self.rows.get(write.key)
            if write.fresh:
                self.rows.pop(write.key, None)
                row = None
            if write.upsert is None:
                continue
            changed = write.upsert.upstream_updated_at_ms
            value = write.upsert.properties["value"]
            if row is None or writes(row.changed, changed):
                self.rows[write.key] = Row(value, changed, decision.mark)
            else:
                row.mark = decision.mark
        if decision.sweep_before is not None:
            for key in [key for key, row in self.rows.items() if row.mark < decision.sweep_before]:
                assert self.upstream.absent[key] >= self.cycle_steps[name], f"{key} was there all the time, and was swept"
                del self.rows[key]

    def tick(self) -> int:
        self.mark = tick(self.mark, self.now)
        return self.mark

    @rule(name=NAMES)
    def due_comes(self, name: str) -> None:
        self.send(name, Due(now_ms=self.now, mark=self.tick()))

    @rule(name=NAMES)
    def somebody_triggers(self, name: str) -> None:
        self.send(name, Trigger(now_ms=self.now, mark=self.tick()))

    @rule(name=NAMES, fate=st.sampled_from(["good", "good", "good", "fails", "limited"]), pick=st.integers(0, 5))
    def a_sandbox_answers(self, name: str, fate: str, pick: int) -> None:
        """The program reads the other side now; what it returns arrives later."""
        if not self.flying[name]:
            return
        run = self.flying[name][pick % len(self.flying[name])]
        if (name, run.run) in self.answers:
            return
        if fate == "good":
            read = self.upstream.page if name == "backfill" else self.upstream.news
            self.answers[name, run.run] = Success(read(run.cursor))
        else:
            limited = fate == "limited"
            self.answers[name, run.run] = Failure(name="E", message="", tag="rate_limit" if limited else "generic")

    @rule(name=NAMES, pick=st.integers(0, 5), again=st.booleans(), jitter=st.floats(0, 1))
    def an_answer_arrives(self, name: str, pick: int, again: bool, jitter: float) -> None:
        runs = sorted(run for owner, run in self.answers if owner == name)
        if not runs:
            return
        self.arrived(name, runs[pick % len(runs)], jitter, again=again)

    def arrived(self, name: str, run: int, jitter: float, *, again: bool) -> None:
        outcome = self.answers[name, run] if again else self.answers.pop((name, run))
        if not again:
            self.flying[name] = [item for item in self.flying[name] if item.run != run]
        self.send(name, Finished(run=run, outcome=outcome, now_ms=self.now, mark=self.tick(), jitter=jitter))

    @rule(name=NAMES, times=st.integers(1, 4), by=st.sampled_from([0, 0, 1000, -MINUTE_MS]))
    def runs_go_well(self, name: str, times: int, by: int) -> None:
        for _ in range(times):
            if self.states[name].running is None:
                self.somebody_triggers(name)
            running = self.states[name].running
            assert running is not None
            pick = [run.run for run in self.flying[name]].index(running.run)
            self.a_sandbox_answers(name, "good", pick)
            self.now += by
            self.arrived(name, running.run, 0.5, again=False)

    @rule(name=NAMES)
    def the_platform_restarts(self, name: str) -> None:
        self.send(name, Restart(now_ms=self.now))

    @rule(name=NAMES)
    def somebody_pauses(self, name: str) -> None:
        self.send(name, Pause(now_ms=self.now))

    @rule(name=NAMES)
    def somebody_resumes(self, name: str) -> None:
        self.send(name, Resume(now_ms=self.now))

    @precondition(lambda self: self.step % 3 == 0)
    @rule(name=NAMES)
    def somebody_resets(self, name: str) -> None:
        self.send(name, Reset(now_ms=self.now))

    @rule(name=NAMES, minutes=st.sampled_from([1, 5, 30]))
    def a_deployment_changes_the_schedule(self, name: str, minutes: int) -> None:
        schedule = Schedule(type="interval", interval_ms=minutes * MINUTE_MS)
        self.configs[name] = msgspec.structs.replace(self.configs[name], schedule=schedule)
        self.send(name, Deploy(now_ms=self.now, config=self.configs[name]))

    @rule(name=NAMES, minutes=st.sampled_from([None, 1, 5, 30]))
    def somebody_wants_another_schedule(self, name: str, minutes: int | None) -> None:
        wanted = None if minutes is None else Schedule(type="interval", interval_ms=minutes * MINUTE_MS)
        self.send(name, Reschedule(now_ms=self.now, schedule=wanted))

    @rule(replaces=st.booleans())
    def a_deployment_changes_the_mode(self, replaces: bool) -> None:
        self.configs["backfill"] = msgspec.structs.replace(self.configs["backfill"], replaces=replaces)
        self.send("backfill", Deploy(now_ms=self.now, config=self.configs["backfill"]))

    # What always holds

    @invariant()
    def a_sync_waits_for_one_run_at_most_and_is_never_forgotten(self) -> None:
        for name, state in self.states.items():
            waited = [run for run in self.flying[name] if state.running and run.run == state.running.run]
            assert len(waited) <= 1
            if state.running:
                assert state.due_ms is None
            elif state.cycle is not None and not state.paused:
                gave_up = self.configs[name].schedule == Schedule(type="manual") and state.failures >= sync.MANUAL_ATTEMPTS
                assert state.due_ms is not None or gave_up

    def teardown(self) -> None:
        """Left alone, a whole backfill makes the rows what the other side has, and so it stays."""
        self.a_deployment_changes_the_mode(replaces=True)
        for name in ("backfill", "delta", "backfill"):
            self.send(name, Resume(now_ms=self.now))
            self.send(name, Restart(now_ms=self.now))
            self.send(name, Trigger(now_ms=self.now, mark=self.tick()))
            done = self.states[name].stats.cycles
            for _ in range(ROUNDS):
                # The one that was in the middle, and a whole one.
                if self.states[name].stats.cycles >= done + 2:
                    break
                if self.states[name].running is None:
                    self.send(name, Trigger(now_ms=self.now, mark=self.tick()))
                running = self.states[name].running
                assert running is not None
                read = self.upstream.page if name == "backfill" else self.upstream.news
                outcome = Success(read(self.states[name].cursor))
                self.send(name, Finished(run=running.run, outcome=outcome, now_ms=self.now, mark=self.tick()))
            else:
                raise AssertionError("the cycles do not end")
            rows = {key: row.value for key, row in self.rows.items()}
            assert rows == {key: value for key, (value, _) in self.upstream.rows.items()}


Syncs.TestCase.settings = settings(max_examples=500, stateful_step_count=50, deadline=None)
TestSyncs = Syncs.TestCase
