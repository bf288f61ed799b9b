"""How many machines are kept ready: pure decisions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.host.demand import Demand

START_S = 0.2


def asked(times: list[float]) -> Demand:
    demand = Demand()
    for time in times:
        demand.arrived(time)
    return demand


def test_what_was_asked_for_once_or_twice_is_not_kept_ready() -> None:
    assert Demand().wanted(0, START_S, 0, 16) == 0
    assert asked([0, 1]).wanted(1, START_S, 0, 16) == 0
    assert asked([0, 1, 2]).wanted(2, START_S, 0, 16) == 1


def test_what_nobody_asks_for_any_more_is_not_kept_ready() -> None:
    demand = asked([0, 1, 2, 3])
    assert demand.wanted(60, START_S, 0, 16) == 1
    assert demand.wanted(600, START_S, 0, 16) == 0
    assert demand.wanted(600, START_S, 2, 16) == 2


@pytest.mark.parametrize(
    ("per_second", "start_s", "least", "most"), [(10, 0.2, 2, 7), (50, 0.2, 10, 20), (10, 2.0, 18, 32), (0.1, 0.2, 1, 1)]
)
def test_as_many_as_come_while_one_starts_with_room_for_chance(per_second: float, start_s: float, least: int, most: int) -> None:
    times = [number / per_second for number in range(int(per_second * 60))]
    assert least <= asked(times).wanted(times[-1], start_s, 0, 100) <= most


@given(st.lists(st.floats(0, 1000), max_size=50), st.floats(0, 2000), st.floats(0, 60), st.integers(0, 20), st.integers(0, 20))
def test_never_less_than_the_floor_or_more_than_the_cap(
    times: list[float], now: float, start_s: float, floor: int, more: int
) -> None:
    wanted = asked(sorted(times)).wanted(now, start_s, floor, floor + more)
    assert floor <= wanted <= floor + more


def test_a_clock_that_stands_still_or_goes_back_does_no_harm() -> None:
    demand = asked([10, 10, 5])
    assert demand.wanted(0, START_S, 1, 4) >= 1
