"""Budgets: how much a team, a project or a sandbox may use in a period, and whether it has.

Three kinds of limits:

    sums    active_cpu_us, memory_byte_seconds, egress_bytes, money_nano   reached: what runs is ended, nothing begins
    counts  concurrency, creations_per_minute                              reached: nothing begins, what runs goes on
    levels  storage_bytes                                                  reached: nothing is added to it

Spending is kept by key and span of time: `team:team_1` has one sum for each day and month (in UTC) and one for ever, `sandbox:ID`
the last alone.
"""

from __future__ import annotations

import enum
from datetime import UTC, datetime, timedelta

import msgspec

from hutch.errors import PaymentRequiredError
from hutch.metering.prices import PriceTable
from hutch.metering.quantities import Quantities

MAX_LIMIT = 2**62


class Period(enum.StrEnum):
    """How long a budget lasts until it begins anew, at midnight in UTC."""

    DAY = "day"
    MONTH = "month"
    TOTAL = "total"


class Span(msgspec.Struct, frozen=True, order=True):
    """One period: all time, or the month or day (in UTC) of that name. `text` is unique among all of them."""

    period: Period
    text: str

    @classmethod
    def of(cls, period: Period, at_ms: int) -> Span:
        """The span of a time: `` (all time), `2026-11` or `2026-11-26`."""
        if period is Period.TOTAL:
            return ALL_TIME
        day = datetime.fromtimestamp(at_ms / 1000, UTC).date().isoformat()
        return cls(period, day if period is Period.DAY else day[:7])

    @classmethod
    def parse(cls, text: str) -> Span:
        """The span that is written so. Raises `ValueError`."""
        if not text:
            return ALL_TIME
        parts = text.count("-")
        datetime.strptime(text, "%Y-%m-%d" if parts == 2 else "%Y-%m").replace(tzinfo=UTC)
        return cls(Period.DAY if parts == 2 else Period.MONTH, text)

    @property
    def begin_ms(self) -> int:
        """When it begins; 0 for all time."""
        if self.period is Period.TOTAL:
            return 0
        first = self.text if self.period is Period.DAY else f"{self.text}-01"
        return int(datetime.fromisoformat(first).replace(tzinfo=UTC).timestamp()) * 1000

    def before(self) -> Span | None:
        """The span that ended when this one began; none for all time."""
        if self.period is Period.TOTAL:
            return None
        begin = datetime.fromtimestamp(self.begin_ms / 1000, UTC)
        return Span.of(self.period, int((begin - timedelta(seconds=1)).timestamp()) * 1000)


ALL_TIME = Span(Period.TOTAL, "")


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The most that may be used, each optional; 0 is nothing at all. `money_nano` is in nano-units of the price table.

    `concurrency` is sessions at once, `creations_per_minute` sessions that began within the last 60 seconds, `storage_bytes` what
    snapshots and drives hold now.
    """

    active_cpu_us: int | None = None
    memory_byte_seconds: int | None = None
    egress_bytes: int | None = None
    money_nano: int | None = None
    concurrency: int | None = None
    creations_per_minute: int | None = None
    storage_bytes: int | None = None

    @property
    def any(self) -> bool:
        return any(getattr(self, name) is not None for name in self.__struct_fields__)


SUMS = ("active_cpu_us", "memory_byte_seconds", "egress_bytes", "money_nano")
COUNTS = ("concurrency", "creations_per_minute")
STORAGE = "storage_bytes"
MINUTE_MS = 60_000


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """What a key may use in each period. Its owner is notified at these percentages of each limit, and at the `soft` ones, which
    stop nothing. `set_at`: since when it is as it is, in milliseconds since the epoch; 0 where nobody knows."""

    key: str
    limits: Limits
    period: Period = Period.TOTAL
    notify_at: list[int] = []
    soft: Limits = Limits()
    set_at: int = 0

    @property
    def any(self) -> bool:
        """Whether it says anything."""
        return self.limits.any or self.soft.any


class UsageOwner(msgspec.Struct, frozen=True):
    """Whose usage it is."""

    team_id: str
    project_id: str
    sandbox_id: str


def keys(owner: UsageOwner) -> list[str]:
    """The keys that usage is added to."""
    return [team_key(owner.team_id), project_key(owner.project_id), sandbox_key(owner.sandbox_id)]


def team_key(team_id: str) -> str:
    return f"team:{team_id}"


def project_key(project_id: str) -> str:
    return f"project:{project_id}"


def sandbox_key(sandbox_id: str) -> str:
    return f"sandbox:{sandbox_id}"


def spans(key: str, at_ms: int) -> list[Span]:
    """Under which spans what was used at a time is added to a key's spending; the first is all time."""
    if key.startswith("sandbox:"):
        return [ALL_TIME]
    return [Span.of(period, at_ms) for period in (Period.TOTAL, Period.MONTH, Period.DAY)]


def summed(name: str, spent: Quantities, table: PriceTable) -> int:
    """How much of one of `SUMS` is spent."""
    return table.amount_nano(spent) if name == "money_nano" else int(getattr(spent, name))


def exhausted(limits: Limits, spent: Quantities, table: PriceTable) -> str | None:
    """The first of `SUMS` that is reached, None when there is none."""
    for name in SUMS:
        limit = getattr(limits, name)
        if limit is not None and summed(name, spent, table) >= limit:
            return name
    return None


def exceeded(key: str, limit: str) -> PaymentRequiredError:
    """The error for what can't begin any more."""
    kind = key.partition(":")[0]
    return PaymentRequiredError(
        "budget_exceeded", f"The {kind}'s budget of {limit} is used up. Raise it, or wait for its next period."
    )


def full(key: str, limit: str, most: int, used: int) -> PaymentRequiredError:
    """The error for what would be more than one of `COUNTS` or a level allows."""
    kind = key.partition(":")[0]
    told = {
        "concurrency": f"{used} of its sandboxes run, and {most} may at once. Stop one",
        "creations_per_minute": f"{used} of its sandboxes began within the last minute, and {most} may. Wait for a moment",
        STORAGE: f"its snapshots and drives hold {used} bytes, and {most} are allowed. Delete some",
    }[limit]
    return PaymentRequiredError("budget_exceeded", f"The {kind}'s budget of {limit} is used up: {told}, or raise it.")
