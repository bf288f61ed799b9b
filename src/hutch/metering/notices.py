"""Notices: what the owner of a budget is told, once for each limit, span of time and threshold.

    budget.threshold   a percentage of a limit was reached (`notify_at`)
    budget.soft_limit  a soft limit was reached, which stops nothing
    budget.exceeded    a limit was reached that stops what runs, or refuses more

The id of a notice is what it is about: whoever finds it out again, after whatever death, makes the same one. A limit that is
changed is another limit.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterator

import msgspec

from hutch.metering.budgets import COUNTS, Budget, Limits, Span

MAX_SESSIONS = 100
"""Most sessions that a notice names."""


class NoticeKind(enum.StrEnum):
    THRESHOLD = "budget.threshold"
    SOFT_LIMIT = "budget.soft_limit"
    EXCEEDED = "budget.exceeded"


class Threshold(msgspec.Struct, frozen=True):
    """A value of a limit's quantity at which somebody is told. `bound` is the limit, `percent` the part of it that is meant."""

    kind: NoticeKind
    limit: str
    bound: int
    percent: int = 100

    @property
    def value(self) -> int:
        """What has to be reached, rounded up."""
        return -(-self.bound * self.percent // 100)


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to tell. `at_ms` is when it was found out, `session_ids` some of those that ran then."""

    id: str
    key: str
    span: Span
    threshold: Threshold
    used: int
    at_ms: int
    session_ids: list[str] = []


class NumberedNotice(msgspec.Struct, frozen=True):
    """A notice as a host tells it. `seq` only grows on one host."""

    seq: int
    notice: Notice


def thresholds(budget: Budget) -> Iterator[Threshold]:
    """All of a budget. Counts that are full refuse, and are no events but for their percentages."""
    for name in Limits.__struct_fields__:
        bound = getattr(budget.limits, name)
        if bound is not None:
            for percent in budget.notify_at:
                yield Threshold(NoticeKind.THRESHOLD, name, bound, percent)
            if name not in COUNTS:
                yield Threshold(NoticeKind.EXCEEDED, name, bound)
        bound = getattr(budget.soft, name)
        if bound is not None:
            yield Threshold(NoticeKind.SOFT_LIMIT, name, bound)


def notice_id(key: str, span: Span, threshold: Threshold) -> str:
    """`evt_` and 32 hexadecimal digits."""
    told = (key, span.period.value, span.text, threshold.kind.value, threshold.limit, threshold.bound, threshold.percent)
    return "evt_" + hashlib.sha256(msgspec.json.encode(told)).hexdigest()[:32]
