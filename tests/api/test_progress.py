"""Progress is late when too little was made for too long, and not before."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hutch.api.progress import Progress


@given(st.lists(st.tuples(st.floats(0.01, 1), st.integers(10, 1000)), max_size=100))
def test_who_makes_enough_in_time_is_never_late(steps: list[tuple[float, int]]) -> None:
    progress, now = Progress(1.01, 10), 5.0
    progress.begin(now)
    for pause, amount in steps:
        now += pause
        progress.add(amount)
        assert not progress.is_late(now)


@given(st.lists(st.integers(0, 3), min_size=30, max_size=30))
def test_who_makes_too_little_is_late_soon(amounts: list[int]) -> None:
    progress = Progress(1.0, 31)
    progress.begin(0)
    late = []
    for number, amount in enumerate(amounts, 1):
        progress.add(amount)
        late.append(progress.is_late(number / 10))
    assert late[:9] == [False] * 9 or sum(amounts) >= 31
    assert any(late) or sum(amounts) >= 31


def test_what_was_made_before_a_beginning_does_not_count() -> None:
    progress = Progress(1.0, 10)
    progress.begin(0)
    progress.add(9)
    progress.begin(0.9)
    progress.add(1)
    assert not progress.is_late(1.8)
    assert progress.is_late(1.95)
