"""How often something may be asked: token buckets. Values and decisions; no clock, no I/O.

A bucket holds at most `burst` requests and fills by `burst` in `period_ms`: after a rest all of them may come at once, from then
on one each `period_ms / burst`. In any stretch of `t` ms at most `burst * (1 + t / period_ms)` are admitted, and one that comes
when the refusal said is admitted, unless others came before it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

MINUTE_MS = 60_000
SECOND_MS = 1_000


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `burst` at once, and as many again in each `period_ms`. `burst` 0: any number."""

    burst: int
    period_ms: int


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether what was asked for is admitted. `wait_ms`: until it would be; `remaining`: how many may still come at once;
    `full_in_ms`: until nothing that was admitted counts any more."""

    admitted: bool
    limit: int
    remaining: int
    wait_ms: int
    full_in_ms: int


class Bucket:
    """One caller's. Time must not run backwards; if it does, it counts as standing still."""

    __slots__ = ("_due",)

    def __init__(self) -> None:
        # When everything that was admitted will have been forgotten: the theoretical arrival time of a leaky bucket (GCRA), in
        # units of 1 / burst ms, so that nothing is lost by rounding.
        self._due = 0

    def take(self, rate: Rate, now_ms: int, amount: int = 1) -> Decision:
        """Admit so many more, all of them or none, or say when. More than a bucket holds are never admitted."""
        unit, now = rate.burst, now_ms * rate.burst
        due = max(self._due, now)
        room = now + rate.period_ms * unit - due
        wanted = rate.period_ms * amount
        admitted = room >= wanted
        if admitted:
            due += wanted
            self._due = due
            room -= wanted
        wait = 0 if admitted else _up(wanted - room, unit)
        return Decision(admitted, rate.burst, max(0, room) // rate.period_ms, wait, _up(due - now, unit))

    def charge(self, rate: Rate, now_ms: int, amount: int) -> None:
        """Count so many that came, however many that are."""
        self._due = max(self._due, now_ms * rate.burst) + rate.period_ms * amount

    def overdrawn_ms(self, rate: Rate, now_ms: int) -> int:
        """Until no more has come than the bucket holds."""
        return max(0, _up(self._due - (now_ms + rate.period_ms) * rate.burst, rate.burst))


class Buckets:
    """A bucket for each caller, of at most `most`: those that asked last. One that is forgotten begins with a full bucket."""

    def __init__(self, rate: Rate, most: int) -> None:
        self.rate = rate
        self._most = most
        self._buckets: OrderedDict[Hashable, Bucket] = OrderedDict()

    def take(self, caller: Hashable, now_ms: int, amount: int = 1) -> Decision | None:
        """So many more of this caller; None when any number is admitted."""
        return self._of(caller).take(self.rate, now_ms, amount) if self.rate.burst else None

    def charge(self, caller: Hashable, now_ms: int, amount: int) -> None:
        """Count so many of this caller that came."""
        if self.rate.burst:
            self._of(caller).charge(self.rate, now_ms, amount)

    def overdrawn_ms(self, caller: Hashable, now_ms: int) -> int:
        """Until no more of this caller has come than is admitted."""
        bucket = self._buckets.get(caller)
        return bucket.overdrawn_ms(self.rate, now_ms) if bucket is not None else 0

    def _of(self, caller: Hashable) -> Bucket:
        bucket = self._buckets.get(caller)
        if bucket is None:
            bucket = self._buckets[caller] = Bucket()
            if len(self._buckets) > self._most:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(caller)
        return bucket

    def __len__(self) -> int:
        return len(self._buckets)


def _up(amount: int, unit: int) -> int:
    return -(-amount // unit)
