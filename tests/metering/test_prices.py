"""Money is exact: integers, one rounding per line, and a table that is refused when it can't be used."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.errors import BadRequestError
from hutch.metering import prices
from hutch.metering.prices import DEFAULT, DIMENSIONS, PriceTable, Rate
from hutch.metering.quantities import Quantities

QUANTITIES = st.builds(Quantities, **dict.fromkeys(Quantities.__struct_fields__, st.integers(0, 10**18)))
RATES = st.dictionaries(st.sampled_from(DIMENSIONS), st.builds(Rate, st.integers(0, 10**18), st.integers(1, 10**30)))


def test_the_default_is_what_its_words_say() -> None:
    hour = Quantities(active_cpu_us=3600 * 10**6)
    assert DEFAULT.amount_nano(hour) == 128_000_000  # $0.128
    assert DEFAULT.amount_nano(Quantities(memory_byte_seconds=2**30 * 3600)) == 21_200_000  # $0.0212
    assert DEFAULT.amount_nano(Quantities(egress_bytes=10**9)) == 150_000_000  # $0.15
    assert DEFAULT.amount_nano(Quantities(snapshot_byte_seconds=10**9 * 2_592_000)) == 80_000_000  # $0.08
    assert DEFAULT.amount_nano(Quantities(creations=1_000_000)) == 600_000_000  # $0.60


def test_waiting_and_starting_cost_nothing() -> None:
    assert DEFAULT.amount_nano(Quantities(wall_us=10**12, startup_cpu_us=10**9, ingress_bytes=10**12)) == 0


@given(QUANTITIES, RATES)
def test_an_amount_is_the_sum_of_its_lines_each_less_than_one_unit_too_low(used: Quantities, rates: dict[str, Rate]) -> None:
    table = PriceTable(version="t", currency="EUR", rates=rates)
    lines = table.lines(used)
    assert {line.dimension for line in lines} == set(rates)
    for line in lines:
        exact = Fraction(getattr(used, line.dimension)) * line.nano / line.per
        assert 0 <= exact - line.amount_nano < 1
    assert table.amount_nano(used) == sum(line.amount_nano for line in lines)


@given(QUANTITIES, QUANTITIES)
def test_parts_never_cost_more_than_the_whole_nor_much_less(one: Quantities, other: Quantities) -> None:
    apart = DEFAULT.amount_nano(one) + DEFAULT.amount_nano(other)
    assert 0 <= DEFAULT.amount_nano(one + other) - apart <= len(DEFAULT.rates)


def test_a_table_is_read_as_it_was_meant() -> None:
    text = '{"version": "v2", "currency": "EUR", "rates": {"active_cpu_us": {"nano": 7, "per": 3}}}'
    assert prices.parse(text) == PriceTable(version="v2", currency="EUR", rates={"active_cpu_us": Rate(7, 3)})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "null",
        "[" * 100_000,
        '{"version": "v", "currency": "EUR"}',
        '{"version": "", "currency": "EUR", "rates": {}}',
        '{"version": "v\\n", "currency": "EUR", "rates": {}}',
        '{"version": "v", "currency": "euro", "rates": {}}',
        '{"version": "v", "currency": "EUR", "rates": {}, "more": 1}',
        '{"version": "v", "version": "w", "currency": "EUR", "rates": {}}',
        '{"version": "v", "currency": "EUR", "rates": {"wall_us": {"nano": 1, "per": 1}}}',
        '{"version": "v", "currency": "EUR", "rates": {"creations": {"nano": 1, "per": 0}}}',
        '{"version": "v", "currency": "EUR", "rates": {"creations": {"nano": -1, "per": 1}}}',
        '{"version": "v", "currency": "EUR", "rates": {"creations": {"nano": 0.5, "per": 1}}}',
        '{"version": "v", "currency": "EUR", "rates": {"creations": {"nano": 1e400, "per": 1}}}',
        '{"version": "v", "currency": "EUR", "rates": {"creations": {"nano": NaN, "per": 1}}}',
        '{"version": "v", "currency": "EUR", "rates": {"creations": {"nano": "1", "per": 1}}}',
        '{"version": "v", "currency": "EUR", "rates": {"creations": {"nano": true, "per": 1}}}',
        '{"version": "v", "currency": "EUR", "rates": {"creations": {"nano": 1, "per": 1, "unit": 1}}}',
        '{"version": "v", "currency": "EUR", "rates": {"creations": {"nano": 1' + "0" * 5000 + ', "per": 1}}}',
    ],
    ids=range(21),
)
def test_a_table_that_can_not_be_used_is_refused(text: str) -> None:
    with pytest.raises(BadRequestError) as refused:
        prices.parse(text)
    assert refused.value.code == "price_table_invalid"


def test_disk_costs_what_a_table_says_and_the_gateways_time_nothing() -> None:
    used = Quantities(disk_byte_seconds=3 * 10**9, disk_peak_bytes=10**9, gateway_cpu_us=10**9)
    assert DEFAULT.amount_nano(used) == 0
    rates = {"disk_byte_seconds": {"nano": 7, "per": 10**9}}
    table = prices.parse(json.dumps({"version": "ours", "currency": "EUR", "rates": rates}))
    assert table.amount_nano(used) == 21
    for name in ("gateway_cpu_us", "disk_peak_bytes"):
        with pytest.raises(BadRequestError, match="no dimension"):
            prices.parse(json.dumps({"version": "ours", "currency": "EUR", "rates": {name: {"nano": 1, "per": 1}}}))
