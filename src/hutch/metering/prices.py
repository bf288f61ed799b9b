"""Price tables, and what quantities cost by them.

Money is counted in nano-units: a thousand millionth of the table's currency. A rate is `nano` for so many units (`per`), both
integers, so nothing is ever rounded but one quotient per line.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from hutch.errors import BadRequestError
from hutch.metering import strict
from hutch.metering.quantities import Quantities

MAX_NANO = 10**18
MAX_PER = 10**30
HOUR_US = 3_600_000_000
GIB_HOUR = 2**30 * 3600
GB = 10**9
GB_MONTH = GB * 30 * 86_400


class Rate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`nano` nano-units of money for `per` units of a quantity."""

    nano: int
    per: int


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a bill: quantity × nano ÷ per, rounded down."""

    dimension: str
    quantity: int
    nano: int
    per: int
    amount_nano: int


class PriceTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rates by dimension. What has none costs nothing. A table never changes: other rates are another `version`."""

    version: str
    currency: str
    rates: dict[str, Rate]

    def lines(self, quantities: Quantities) -> list[Line]:
        """The lines of a bill, in the order of `DIMENSIONS`; also those that cost nothing because nothing was used."""
        return [_line(name, getattr(quantities, name), self.rates[name]) for name in DIMENSIONS if name in self.rates]

    def amount_nano(self, quantities: Quantities) -> int:
        """What quantities cost: each line rounded down, then added."""
        return sum(line.amount_nano for line in self.lines(quantities))


DIMENSIONS = (
    "active_cpu_us",
    "memory_byte_seconds",
    "ingress_bytes",
    "egress_bytes",
    "snapshot_byte_seconds",
    "creations",
    "disk_byte_seconds",
)
"""What can have a price."""

DEFAULT = PriceTable(
    version="default-2026-09",
    currency="USD",
    rates={
        "active_cpu_us": Rate(128_000_000, HOUR_US),
        "memory_byte_seconds": Rate(21_200_000, GIB_HOUR),
        "egress_bytes": Rate(150_000_000, GB),
        "snapshot_byte_seconds": Rate(80_000_000, GB_MONTH),
        "creations": Rate(600_000_000, 1_000_000),
    },
)
"""Modelled on what the vendor publishes. Memory is billed by what is held, not by what could be."""


def _line(dimension: str, quantity: int, rate: Rate) -> Line:
    amount = quantity * rate.nano // rate.per
    return Line(dimension=dimension, quantity=quantity, nano=rate.nano, per=rate.per, amount_nano=amount)


def load(path: Path | None) -> PriceTable:
    """The table of a file, or the default. Raises `BadRequestError` (`price_table_invalid`)."""
    if path is None:
        return DEFAULT
    try:
        return parse(path.read_bytes())
    except OSError as error:
        raise _invalid(f"{path} can't be read: {error.strerror}") from error


def parse(text: str | bytes) -> PriceTable:
    """A table from JSON: `{"version", "currency", "rates": {dimension: {"nano", "per"}}}`. Raises `BadRequestError`
    (`price_table_invalid`) with what is wrong."""
    try:
        table = msgspec.convert(strict.loads(text), PriceTable)
    except ValueError as error:
        raise _invalid(str(error)) from error
    if not 1 <= len(table.version) <= 64 or not table.version.isprintable():
        raise _invalid("`version` has 1 to 64 printable characters")
    if not (len(table.currency) == 3 and table.currency.isascii() and table.currency.isupper()):
        raise _invalid("`currency` is a code of three capital letters")
    for name, rate in table.rates.items():
        if name not in DIMENSIONS:
            raise _invalid(f"there is no dimension '{name[:64]}'; there are {', '.join(DIMENSIONS)}")
        if not 0 <= rate.nano <= MAX_NANO or not 1 <= rate.per <= MAX_PER:
            raise _invalid(f"the rate of {name} is out of range: 0 <= nano <= 10^18, 1 <= per <= 10^30")
    return table


def _invalid(reason: str) -> BadRequestError:
    return BadRequestError("price_table_invalid", f"The price table can't be used: {reason}.")
