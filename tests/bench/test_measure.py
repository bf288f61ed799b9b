"""Percentiles, targets, and the page made of them."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import report
from bench.catalogue import BENCHMARKS
from bench.measure import Result, Series, at_least, at_most


def test_percentiles_are_measured_values_by_nearest_rank() -> None:
    series = Series.of([float(number) for number in range(1, 101)])
    assert (series.p50, series.p95, series.p99, series.max, series.n) == (50, 95, 99, 100, 100)
    assert Series.of([7.0]).p99 == 7.0


@given(st.lists(st.floats(min_value=0, max_value=1e9), min_size=1))
def test_percentiles_are_ordered_and_among_the_samples(samples: list[float]) -> None:
    series = Series.of(samples)
    assert series.p50 <= series.p95 <= series.p99 <= series.max == max(samples)
    assert {series.p50, series.p95, series.p99} <= set(samples)


def test_no_sample_is_no_number() -> None:
    series = Series.of([], failures=3)
    assert (series.n, series.failures) == (0, 3)
    assert math.isnan(series.p50)
    assert not at_most("p50", series.p50, 10).met
    assert not at_least("p50", series.p50, 10).met


def test_a_ratio_needs_a_peer() -> None:
    assert Result("x", "", Series.of([2.0])).ratio is None
    assert Result("x", "", Series.of([2.0]), Series.of([4.0])).ratio == 0.5


def test_the_page_is_up_to_date() -> None:
    assert report.main(["--check"]) == 0, "run: python -m bench.report"


def test_the_page_hides_no_target_that_is_not_met() -> None:
    document = json.loads(report.COMMITTED.read_text())
    missed = sum(not target["met"] for result in document["results"] for target in result["targets"])
    assert report.PAGE.read_text().count("**not met**") == missed
    assert not document["quick"], "a quick run is not worth publishing"


@pytest.mark.parametrize("known", list(BENCHMARKS))
def test_every_benchmark_is_specified(known: str) -> None:
    text = (report.CHECKOUT / "docs" / "specification.md").read_text()
    assert f"`{known}" in text
