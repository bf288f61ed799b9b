"""Times that are due: intervals, and cron in time zones whose clocks change."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.workers.manifest import MINUTE_MS, Schedule
from hutch.workers.schedule import CONTINUOUS_GAP_MS, first_due, next_due, period_ms, wrong_expression

NOW = 1_000_000
BERLIN = "Europe/Berlin"


def cron(expression: str, zone: str | None = None) -> Schedule:
    return Schedule(type="cron", expression=expression, time_zone=zone)


def at(text: str, zone: str = "UTC", fold: int = 0) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp() * 1000)


def following(schedule: Schedule, start_ms: int, count: int) -> list[str]:
    found = []
    for _ in range(count):
        due = next_due(schedule, start_ms, start_ms)
        assert due is not None
        found.append(datetime.fromtimestamp(due / 1000, UTC).strftime("%m-%d %H:%M"))
        start_ms = due
    return found


def test_a_new_sync_is_due_at_once_unless_it_is_manual_or_has_times() -> None:
    assert first_due(None, NOW) == NOW
    assert first_due(Schedule(type="continuous"), NOW) == NOW
    assert first_due(Schedule(type="manual"), NOW) is None
    assert first_due(cron("0 9 * * *"), at("2026-01-01T09:00")) == at("2026-01-02T09:00")


def test_intervals_count_from_starts_and_the_default_is_half_an_hour() -> None:
    assert next_due(None, NOW, NOW + 5) == NOW + 30 * MINUTE_MS
    assert next_due(Schedule(type="interval", interval_ms=60_000), NOW, NOW + 10**9) == NOW + 60_000
    assert next_due(Schedule(type="continuous"), NOW, NOW + 5) == NOW + 5 + CONTINUOUS_GAP_MS
    assert next_due(Schedule(type="manual"), NOW, NOW) is None
    assert [period_ms(None), period_ms(cron("* * * * *"))] == [30 * MINUTE_MS, None]


def test_a_time_in_a_gap_comes_right_after_it() -> None:
    # 2026-03-29: 02:00 is 03:00 in Berlin.
    assert following(cron("30 2 * * *", BERLIN), at("2026-03-28T00:00"), 3) == ["03-28 01:30", "03-29 01:00", "03-30 00:30"]


def test_a_time_that_comes_twice_counts_once() -> None:
    # 2026-10-25: 03:00 is 02:00 in Berlin.
    assert following(cron("30 2 * * *", BERLIN), at("2026-10-24T12:00"), 2) == ["10-25 00:30", "10-26 01:30"]


def test_every_hour_is_every_hour_whatever_clocks_do() -> None:
    assert following(cron("0 * * * *", BERLIN), at("2026-10-24T22:30"), 4) == [
        "10-24 23:00",
        "10-25 00:00",
        "10-25 01:00",
        "10-25 02:00",
    ]
    assert following(cron("0 * * * *", BERLIN), at("2026-03-28T23:30"), 3) == ["03-29 00:00", "03-29 01:00", "03-29 02:00"]


def test_what_was_missed_is_one_run() -> None:
    hourly = cron("0 * * * *")
    missed = next_due(hourly, at("2026-01-01T08:00"), at("2026-01-01T08:01"))
    assert missed == at("2026-01-01T09:00")
    # Down until 15:30, then it runs once, and next at 16:00.
    assert next_due(hourly, at("2026-01-01T15:30"), at("2026-01-01T15:31")) == at("2026-01-01T16:00")


def test_without_a_zone_times_are_in_utc() -> None:
    assert next_due(cron("0 9 * * *"), at("2026-07-01T00:00"), 0) == at("2026-07-01T09:00")
    assert next_due(cron("0 9 * * *", BERLIN), at("2026-07-01T00:00"), 0) == at("2026-07-01T07:00")


@pytest.mark.parametrize("expression", ["* * * * *", "*/5 0-6 1,15 JAN-MAR MON", "0 0 L * *", "0 0 29 2 *"])
def test_good_expressions(expression: str) -> None:
    assert wrong_expression(expression) is None


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "* * * *",
        "* * * * * *",
        "60 * * * *",
        "a b c d e",
        "0 0 31 2 *",
        "*/0 * * * *",
        "１ * * * *",
        "1," * 100 + "1 * * * *",
        "@daily",
    ],
)
def test_bad_expressions_say_what_is_wrong(expression: str) -> None:
    assert wrong_expression(expression)


@given(st.text("0123456789*/,-L#WMON ", max_size=40) | st.text(max_size=20))
def test_any_text_is_an_expression_or_refused(expression: str) -> None:
    if wrong_expression(expression) is None:
        due = next_due(cron(expression, BERLIN), NOW, NOW)
        assert due is None or due > NOW


@given(
    st.sampled_from(["0 * * * *", "30 2 * * *", "*/15 1-3 * * *", "0 0 * * 0"]),
    st.sampled_from([BERLIN, "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca", "UTC"]),
    st.integers(at("2020-01-01T00:00"), at("2030-01-01T00:00")),
)
def test_times_go_forward(expression: str, zone: str, start: int) -> None:
    times = [start]
    for _ in range(5):
        due = next_due(cron(expression, zone), times[-1], times[-1])
        assert due is not None
        times.append(due)
    assert all(one < other for one, other in pairwise(times))
