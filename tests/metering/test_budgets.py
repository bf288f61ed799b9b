"""Spans, thresholds and paces: values in, values out."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.control.requests import MAX_DISK_BYTES
from hutch.metering.budgets import ALL_TIME, COUNTS, STORAGE, SUMS, Budget, Limits, Period, Span, exhausted, full, spans
from hutch.metering.notices import NoticeKind, Threshold, notice_id, thresholds
from hutch.metering.pace import DISK_BYTES, Pace, soonest_s
from hutch.metering.prices import DEFAULT, DIMENSIONS, PriceTable, Rate
from hutch.metering.quantities import Quantities

DAY_MS = 86_400_000
TIMES = st.integers(0, 4_000_000_000_000)
amounts = st.integers(0, 10**12)


@given(TIMES, st.sampled_from(Period))
def test_a_time_is_in_its_span_and_in_no_other(at_ms: int, period: Period) -> None:
    span = Span.of(period, at_ms)
    assert Span.parse(span.text) == span
    assert span.begin_ms <= at_ms
    former = span.before()
    if period is Period.TOTAL:
        assert former is None
    else:
        assert former is not None
        assert former.period is period
        assert former < span
        assert Span.of(period, span.begin_ms) == span
        assert Span.of(period, span.begin_ms - 1) == former
    if period is Period.DAY:
        assert at_ms < span.begin_ms + DAY_MS


@pytest.mark.parametrize("text", ["x", "2026", "2026-13", "2026-02-30", "2026-1-1-1", "-", "2026-11-26T00"])
def test_what_is_no_span_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="time data|unconverted|day is out of range"):
        Span.parse(text)


def test_usage_counts_for_all_time_its_month_and_its_day() -> None:
    assert [span.text for span in spans("team:t", 1_764_158_400_000)] == ["", "2025-11", "2025-11-26"]
    assert spans("sandbox:s", 1_764_158_400_000) == [ALL_TIME]


def test_every_limit_is_of_one_kind() -> None:
    assert sorted((*SUMS, *COUNTS, STORAGE)) == sorted(Limits.__struct_fields__)
    assert exhausted(Limits(concurrency=0, creations_per_minute=0, storage_bytes=0), Quantities(), DEFAULT) is None
    for name in (*COUNTS, STORAGE):
        assert name in full("team:t", name, 1, 2).message


@given(st.integers(0, 2**62), st.integers(1, 100))
def test_a_threshold_is_the_least_value_that_is_its_percentage(bound: int, percent: int) -> None:
    value = Threshold(NoticeKind.THRESHOLD, "egress_bytes", bound, percent).value
    assert value * 100 >= bound * percent
    assert value == 0 or (value - 1) * 100 < bound * percent


def test_thresholds_are_those_that_a_budget_names_and_its_hard_limits() -> None:
    budget = Budget(key="team:t", limits=Limits(egress_bytes=9, concurrency=5), notify_at=[50], soft=Limits(money_nano=7))
    assert list(thresholds(budget)) == [
        Threshold(NoticeKind.THRESHOLD, "egress_bytes", 9, 50),
        Threshold(NoticeKind.EXCEEDED, "egress_bytes", 9),
        Threshold(NoticeKind.SOFT_LIMIT, "money_nano", 7),
        Threshold(NoticeKind.THRESHOLD, "concurrency", 5, 50),
    ]


def test_a_notice_is_named_by_what_it_is_about() -> None:
    day, one = Span(Period.DAY, "2026-11-26"), Threshold(NoticeKind.THRESHOLD, "egress_bytes", 9, 50)
    same = notice_id("team:t", day, one)
    assert same == notice_id("team:t", day, Threshold(NoticeKind.THRESHOLD, "egress_bytes", 9, 50))
    others = {
        notice_id("team:u", day, one),
        notice_id("team:t", Span(Period.DAY, "2026-11-27"), one),
        notice_id("team:t", day, Threshold(NoticeKind.THRESHOLD, "egress_bytes", 10, 50)),
        notice_id("team:t", day, Threshold(NoticeKind.THRESHOLD, "egress_bytes", 9, 51)),
        notice_id("team:t", day, Threshold(NoticeKind.EXCEEDED, "egress_bytes", 9, 50)),
        notice_id("team:t", day, Threshold(NoticeKind.THRESHOLD, "money_nano", 9, 50)),
    }
    assert same not in others
    assert len(others) == 6


@given(
    st.lists(st.tuples(st.integers(1, 8), st.integers(512, 16384)), min_size=1, max_size=5),
    st.builds(Quantities, active_cpu_us=amounts, memory_byte_seconds=amounts, egress_bytes=amounts, creations=st.integers(0, 9)),
    st.fixed_dictionaries({}, optional={name: st.integers(0, 2**62) for name in SUMS}),
    st.floats(0.0, 1.0, exclude_max=True),
)
def test_nothing_is_used_up_before_it_can_be(
    machines: list[tuple[int, int]], spent: Quantities, limits: dict[str, int], part: float
) -> None:
    """Machines that do all they can for less than that time have not used it up."""
    paces = [Pace.of(*machine) for machine in machines]
    wanted = Limits(**limits)
    soonest = soonest_s(wanted, spent, paces, DEFAULT)
    if not math.isfinite(soonest) or soonest * part > 10**9:
        return
    seconds = soonest * part
    more = Quantities(
        active_cpu_us=int(sum(pace.active_cpu_us for pace in paces) * seconds),
        memory_byte_seconds=int(sum(pace.memory_byte_seconds for pace in paces) * seconds),
        # Somewhat less, for the last bits of a float.
        egress_bytes=int(len(paces) * 12_500_000_000 * seconds * (1 - 1e-9)),
    )
    if exhausted(wanted, spent, DEFAULT) is None and soonest > 1e-3:
        assert exhausted(wanted, spent + more, DEFAULT) is None
    if exhausted(wanted, spent, DEFAULT) is not None:
        assert soonest == 0


def test_everything_that_can_have_a_price_has_a_pace() -> None:
    table = PriceTable(version="v", currency="USD", rates={name: Rate(1, 10**6) for name in DIMENSIONS})
    soonest = soonest_s(Limits(money_nano=10**15), Quantities(), [Pace.of(1, 2048)], table)
    assert 0 < soonest < math.inf
    for name in set(DIMENSIONS) - {"creations", "snapshot_byte_seconds"}:
        table = PriceTable(version="v", currency="USD", rates={name: Rate(1, 1)})
        assert 0 < soonest_s(Limits(money_nano=10**18), Quantities(), [Pace.of(1, 2048)], table) < math.inf, name
    assert DISK_BYTES >= MAX_DISK_BYTES


def test_what_nobody_knows_the_pace_of_can_be_used_up_at_once() -> None:
    distant = Limits(active_cpu_us=10**15)
    assert soonest_s(distant, Quantities(), [None], DEFAULT) == 0
    assert soonest_s(distant, Quantities(), [Pace.of(1, 2048)], DEFAULT) > 10**6
    assert soonest_s(distant, Quantities(), [], DEFAULT) == math.inf
    assert soonest_s(Limits(concurrency=1), Quantities(), [Pace.of(1, 2048)], DEFAULT) == math.inf
    other = PriceTable(version="v", currency="USD", rates={"wall_us": Rate(1, 10**9)})
    assert soonest_s(Limits(money_nano=10**15), Quantities(), [Pace.of(1, 2048)], other) == 0
