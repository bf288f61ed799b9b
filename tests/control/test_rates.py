"""Token buckets never admit more than they say, and always admit when they said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.control.rates import Bucket, Buckets, Rate

RATES = st.builds(Rate, st.integers(1, 50), st.sampled_from([7, 1_000, 60_000]))


@given(RATES, st.lists(st.integers(0, 2_000), max_size=200), st.integers(0, 10**13))
def test_no_stretch_of_time_admits_more_than_a_burst_and_what_it_refills(rate: Rate, pauses: list[int], start: int) -> None:
    bucket, now, admitted = Bucket(), start, []
    for pause in pauses:
        now += pause
        if bucket.take(rate, now).admitted:
            admitted.append(now)
    for first in range(len(admitted)):
        for last in range(first, len(admitted)):
            most = rate.burst * (1 + (admitted[last] - admitted[first]) / rate.period_ms)
            assert last - first + 1 <= most + 1e-6


@given(RATES, st.integers(0, 200), st.integers(0, 10**13))
def test_who_comes_when_the_refusal_said_is_admitted_and_not_before(rate: Rate, more: int, now: int) -> None:
    bucket = Bucket()
    decisions = [bucket.take(rate, now) for _ in range(rate.burst + more + 1)]
    assert [decision.admitted for decision in decisions] == [True] * rate.burst + [False] * (more + 1)
    assert [decision.remaining for decision in decisions[: rate.burst]] == list(range(rate.burst - 1, -1, -1))
    wait = decisions[-1].wait_ms
    assert 0 < wait <= rate.period_ms
    assert not bucket.take(rate, now + wait - 1).admitted
    assert bucket.take(rate, now + wait).admitted


@given(RATES, st.integers(0, 10**13))
def test_a_bucket_is_full_again_when_it_said(rate: Rate, now: int) -> None:
    bucket = Bucket()
    for _ in range(rate.burst):
        full_in = bucket.take(rate, now).full_in_ms
    assert full_in == rate.period_ms
    assert bucket.take(rate, now + full_in).remaining == rate.burst - 1


@given(RATES, st.integers(0, 60), st.integers(1, 60), st.integers(0, 10**13))
def test_many_at_once_are_admitted_all_or_none(rate: Rate, before: int, amount: int, now: int) -> None:
    bucket = Bucket()
    for _ in range(before):
        bucket.take(rate, now)
    left = max(0, rate.burst - before)
    decision = bucket.take(rate, now, amount)
    assert decision.admitted == (amount <= left)
    assert decision.remaining == (left - amount if decision.admitted else left)
    if not decision.admitted and amount <= rate.burst:
        assert not bucket.take(rate, now + decision.wait_ms - 1, amount).admitted
        assert bucket.take(rate, now + decision.wait_ms, amount).admitted


@given(RATES, st.lists(st.integers(0, 500), max_size=20), st.integers(0, 10**13))
def test_what_came_is_counted_whole_and_waited_for(rate: Rate, came: list[int], now: int) -> None:
    bucket = Bucket()
    for amount in came:
        bucket.charge(rate, now, amount)
    wait = bucket.overdrawn_ms(rate, now)
    over = max(0, sum(came) - rate.burst)
    assert wait == -(-over * rate.period_ms // rate.burst)
    assert bucket.overdrawn_ms(rate, now + wait) == 0


def test_more_than_a_bucket_holds_are_never_admitted() -> None:
    bucket = Bucket()
    for now in range(0, 10**6, 10_000):
        assert not bucket.take(Rate(3, 1_000), now, 4).admitted
    assert bucket.take(Rate(3, 1_000), 10**6, 3).admitted


def test_time_that_runs_backwards_admits_nothing_more() -> None:
    rate, bucket = Rate(1, 1_000), Bucket()
    assert bucket.take(rate, 5_000).admitted
    assert not bucket.take(rate, 1_000).admitted
    assert bucket.take(rate, 6_000).admitted


def test_callers_have_buckets_of_their_own_and_a_bounded_number_is_kept() -> None:
    buckets = Buckets(Rate(1, 60_000), 3)
    for caller in ("a", "b", "c"):
        decision = buckets.take(caller, 0)
        assert decision is not None
        assert decision.admitted
    again = buckets.take("a", 0)
    assert again is not None
    assert not again.admitted
    buckets.take("d", 0)
    assert len(buckets) == 3
    # `b` asked longest ago.
    forgotten = buckets.take("b", 0)
    assert forgotten is not None
    assert forgotten.admitted


@pytest.mark.parametrize("period", [1_000, 60_000])
def test_without_a_limit_nothing_is_counted(period: int) -> None:
    buckets = Buckets(Rate(0, period), 3)
    assert buckets.take("a", 0) is None
    assert len(buckets) == 0
