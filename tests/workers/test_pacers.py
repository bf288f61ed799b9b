"""Runs that share a pacer stay within its budget together, whatever they report."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hutch.workers import pacers
from hutch.workers.changes import PacerState
from hutch.workers.manifest import PacerDeclaration
from hutch.workers.pacers import MAX_AHEAD_MS, failed, pace_ms, start, succeeded

NOW = 10**12
API = PacerDeclaration(key="api", allowed_requests=10, interval_ms=1000)
SLOW = PacerDeclaration(key="slow", allowed_requests=1, interval_ms=3_600_000)


def calls(sent: dict[str, float], now: int, until: int) -> list[int]:
    """When a run calls that does nothing else, by the SDK's algorithm."""
    last, found = sent["lastScheduledAtMs"], []
    while (last := max(last + pace_ms(sent["allowedRequests"], sent["intervalMs"]), now)) < until:
        found.append(int(last))
    return found


def test_all_pacers_are_sent_with_their_budget() -> None:
    assert start([API, SLOW], {"api": 5, "gone": 7}, 1, NOW) == {
        "api": {"lastScheduledAtMs": 5, "allowedRequests": 10, "intervalMs": 1000},
        "slow": {"lastScheduledAtMs": 0, "allowedRequests": 1, "intervalMs": 3_600_000},
    }


def test_the_first_call_ever_is_immediate() -> None:
    assert calls(start([API], {}, 1, NOW)["api"], NOW, NOW + 250) == [NOW, NOW + 100, NOW + 200]


@given(st.integers(1, 20), st.integers(1, 500), st.integers(1, 100_000), st.integers(0, NOW))
def test_runs_that_start_together_keep_the_budget(running: int, allowed: int, interval: int, last: int) -> None:
    pacer = PacerDeclaration(key="p", allowed_requests=allowed, interval_ms=interval)
    whole = 3 * max(interval, running * pace_ms(allowed, interval))
    found: list[int] = []
    for number in range(1, running + 1):
        # Each is told how many run; the last ones know of all.
        sent = start([pacer], {"p": last}, number if number > 1 else running, NOW)["p"]
        if number == running:
            found = calls(sent, NOW, NOW + whole)
    assert len(found) <= whole / (interval * running / allowed) + 1


def test_runs_that_start_together_do_not_call_together() -> None:
    first = [calls(start([API], {}, running, NOW)["api"], NOW, NOW + 10_000)[0] - NOW for running in (1, 2, 3)]
    assert first == [0, 100, 200]


def test_what_a_run_reports_counts_forward_only_and_is_bounded() -> None:
    def report(last: float) -> dict[str, PacerState]:
        return {"api": PacerState(last_scheduled_at_ms=last, allowed_requests=10, interval_ms=1000)}

    assert succeeded([API], {"api": NOW}, report(NOW + 50), NOW) == {"api": NOW + 50}
    assert succeeded([API], {"api": NOW}, report(5), NOW) == {"api": NOW}
    assert succeeded([API], {"api": NOW}, report(1e300), NOW) == {"api": NOW + MAX_AHEAD_MS}
    assert succeeded([API], {}, {"other": report(1)["api"]}, NOW) == {"api": 0}


def test_a_run_that_failed_counts_as_if_it_had_called_at_its_end() -> None:
    assert failed([API, SLOW], {"api": NOW + 5, "gone": 1}, NOW) == {"api": NOW + 5, "slow": NOW}


def test_a_pace_is_rounded_up() -> None:
    assert pacers.pace_ms(3, 1000) == 334
