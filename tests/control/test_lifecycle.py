"""States: reports in any order lead to the same end, and never back."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.control.lifecycle import duration_ms, fetched, is_live, lost, merge, sandbox_status
from hutch.control.records import SessionRow
from hutch.host.protocol import SessionRecord, SessionStatus

STATUSES = st.sampled_from(list(SessionStatus))


def row(status: SessionStatus = SessionStatus.PENDING) -> SessionRow:
    return SessionRow(
        id="sbx_1",
        sandbox_id="s",
        team_id="t",
        project_id="p",
        sandbox_name="n",
        status=status,
        image="i",
        runtime="r",
        region="x",
        cwd="",
        vcpus=2,
        memory_mb=4096,
        timeout_ms=1000,
        requested_at=1,
        created_at=1,
        updated_at=1,
    )


def report(status: SessionStatus, **values: object) -> SessionRecord:
    base: dict[str, object] = {
        "session_id": "sbx_1",
        "sandbox_name": "n",
        "project_id": "p",
        "status": status,
        "image": "i",
        "cwd": "/v",
        "vcpus": 2,
        "memory_mb": 4096,
        "timeout_ms": 1000,
        "requested_at": 1,
        "started_at": 10,
    }
    return SessionRecord(**(base | values))  # type: ignore[arg-type]


@given(st.lists(STATUSES, max_size=12))
def test_a_final_state_is_final_and_ends_once(statuses: list[SessionStatus]) -> None:
    session, ends, final = row(), 0, None
    for now, status in enumerate(statuses):
        merged = merge(session, report(status), now)
        ends += merged.ended
        session = merged.session
        if final is not None:
            assert session.status is final
        if not is_live(session.status):
            final = session.status
    assert ends == (final is not None)


@given(STATUSES, STATUSES)
def test_a_report_merged_twice_changes_nothing_more(first: SessionStatus, second: SessionStatus) -> None:
    once = merge(merge(row(), report(first), 5).session, report(second), 6)
    assert not merge(once.session, report(second), 7).changed


@pytest.mark.section("5.2")
def test_every_order_of_the_reports_of_one_life_ends_alike() -> None:
    life = [
        report(SessionStatus.RUNNING),
        report(SessionStatus.RUNNING, timeout_ms=2000),
        report(SessionStatus.STOPPING, timeout_ms=2000, requested_stop_at=50),
        report(SessionStatus.STOPPED, timeout_ms=2000, requested_stop_at=50, stopped_at=60, active_cpu_us=7, stop_reason="stop"),
    ]
    ends = set()
    for order in permutations(life):
        session = row()
        for item in order:
            session = merge(session, item, 99).session
        ends.add(
            (
                session.status,
                session.timeout_ms,
                session.requested_stop_at,
                session.stopped_at,
                session.active_cpu_us,
                session.stop_reason,
            )
        )
    assert ends == {(SessionStatus.STOPPED, 2000, 50, 60, 7, "stop")}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (SessionStatus.PENDING, SessionStatus.FAILED),
        (SessionStatus.RUNNING, SessionStatus.ABORTED),
        (SessionStatus.STOPPED, SessionStatus.STOPPED),
    ],
)
def test_what_the_host_lost_failed_before_it_ran_and_is_aborted_after(before: SessionStatus, after: SessionStatus) -> None:
    assert lost(row(before), 5).session.status is after


@given(st.lists(STATUSES, max_size=12))
def test_a_session_whose_source_is_missing_never_looks_ready(statuses: list[SessionStatus]) -> None:
    session = replace(row(), fetching=True)
    for now, status in enumerate(statuses):
        session = merge(session, report(status), now).session
        assert session.status is not SessionStatus.RUNNING


def test_a_session_runs_once_its_source_is_there_unless_it_ended_before() -> None:
    pending = merge(replace(row(), fetching=True), report(SessionStatus.RUNNING), 1).session
    assert (pending.status, pending.started_at) == (SessionStatus.PENDING, 10)
    running = fetched(pending, report(SessionStatus.RUNNING), 2).session
    assert (running.status, running.fetching) == (SessionStatus.RUNNING, False)
    ended = merge(pending, report(SessionStatus.STOPPED), 2).session
    assert not fetched(ended, report(SessionStatus.RUNNING), 3).changed


def test_duration_is_from_start_to_stop() -> None:
    stopped = merge(row(), report(SessionStatus.STOPPED, stopped_at=110), 200).session
    assert duration_ms(stopped) == 100
    assert duration_ms(row()) is None
    never = merge(row(), report(SessionStatus.FAILED, started_at=None, stopped_at=50), 200).session
    assert duration_ms(never) == 0


@pytest.mark.section("5.1", "13.1")
@given(STATUSES)
def test_a_sandbox_shows_only_the_public_states(status: SessionStatus) -> None:
    assert sandbox_status(status) in ("running", "stopping", "stopped")
