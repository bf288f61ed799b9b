"""Budgets on the host: what may begin, what has to end, and who is told.

    create ─▶ admit: sums used up? too many at once, or within a minute? ─▶ 402
    watch ─▶ keys that could be used up by now ─▶ their sessions read ─▶ used up: ended
    thresholds ─▶ notice ─▶ journal ─▶ control plane

A budget is read only when its sessions could have used it up since they were read last, running at the most that their machines
let them: a distant one now and then, a close one with every look.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from typing import Protocol

from hutch.clock import now_ms
from hutch.host.admissions import Admissions
from hutch.host.background import going_on
from hutch.host.journal import Journal
from hutch.host.notices import Notices
from hutch.host.protocol import BudgetState
from hutch.metering import budgets
from hutch.metering.budgets import COUNTS, Budget, Limits, Period, Span, UsageOwner
from hutch.metering.notices import MAX_SESSIONS, Notice, NoticeKind, Threshold, notice_id, thresholds
from hutch.metering.pace import Pace, soonest_s
from hutch.metering.prices import PriceTable
from hutch.metering.quantities import Quantities
from hutch.metering.windows import Reading

log = logging.getLogger(__name__)

WATCH_EVERY_S = 0.2
"""How often it is looked whether a budget could be used up: with the time that ending a session takes this bounds by how much it
is over-run."""

Read = Callable[[Iterable[str]], Awaitable[list[tuple[str, Reading]]]]
"""Counters of running sessions now; of those that run no more there are none."""


class Spending(Protocol):
    """What budgets need to know of usage."""

    table: PriceTable

    def spent(self, key: str, span: Span = budgets.ALL_TIME) -> Quantities:
        """What a key used in a span, live sessions included as far as they were read."""

    def live(self, key: str) -> Collection[str]:
        """Live sessions of a key."""

    def take(self, session_id: str, reading: Reading) -> None:
        """One more reading of a session."""


class HostBudgets:
    """All budgets that hold here."""

    def __init__(self, journal: Journal, spending: Spending) -> None:
        self._journal = journal
        self._spending = spending
        self._budgets: dict[str, dict[Period, Budget]] = {}
        self._paces: dict[str, Pace | None] = {}
        self._read_at: dict[str, float] = {}
        """No session of a key was read before this, by the monotonic clock."""
        self._due: dict[str, float] = {}
        """When a key's sessions have to be read next; to be found out anew where nothing is said."""
        self._stale: set[str] = set()
        """Keys whose spending or budget changed since their thresholds were looked at."""
        self.admissions = Admissions()
        self.notices = Notices(journal)
        self.readings = 0
        """How many sessions were read for budgets."""

    def load(self) -> None:
        """Read the journal, before its writer runs."""
        for budget in self._journal.budgets():
            self._budgets.setdefault(budget.key, {})[budget.period] = budget
        self.notices.load()
        self._stale = set(self._budgets)

    # -- which there are ---------------------------------------------------------------------------

    async def put(self, budget: Budget) -> None:
        """Have a budget hold from now on; one that says nothing is none."""
        await self._journal.put_budget(budget, remove=not budget.any)
        if budget.any:
            self._budgets.setdefault(budget.key, {})[budget.period] = budget
        else:
            self._remove(budget)
        self.changed(budget.key)

    def _remove(self, budget: Budget) -> None:
        of_key = self._budgets.get(budget.key, {})
        of_key.pop(budget.period, None)
        if not of_key:
            self._budgets.pop(budget.key, None)

    async def put_of_sandbox(self, owner: UsageOwner, limits: Limits | None) -> None:
        """Have a sandbox's budget be this one."""
        budget = Budget(key=budgets.sandbox_key(owner.sandbox_id), limits=limits or Limits())
        known = self._budgets.get(budget.key, {}).get(budget.period)
        if (known.limits if known is not None else Limits()) != budget.limits:
            await self.put(budget)

    async def keep(self, wanted: Iterable[Budget]) -> None:
        """Have these hold and no others, but for those of sandboxes that run: their own sessions began with them."""
        listed = {(budget.key, budget.period): budget for budget in wanted if budget.any}
        known = {(budget.key, budget.period): budget for budget in self._all()}
        for place in known.keys() - listed.keys():
            if place[0].startswith("sandbox:") and self._spending.live(place[0]):
                continue
            await self._journal.put_budget(known[place], remove=True)
            self._remove(known[place])
        for place, budget in listed.items():
            if known.get(place) != budget:
                await self.put(budget)

    def _all(self) -> list[Budget]:
        return [budget for of_key in self._budgets.values() for budget in of_key.values()]

    def states(self, key: str) -> list[BudgetState]:
        """The budgets of a key, with what is spent."""
        now = now_ms()
        counts = {name: self._counted(key, name, now) for name in COUNTS}
        return [
            BudgetState(budget, self._spending.spent(key, Span.of(period, now)), counts)
            for period, budget in sorted(self._budgets.get(key, {}).items())
        ]

    def forget(self, keys: Collection[str]) -> None:
        """Forget those of owners, as the journal does."""
        for key in keys:
            self._budgets.pop(key, None)
            self._read_at.pop(key, None)
            self._due.pop(key, None)
            self._stale.discard(key)
        self.notices.forget(keys)
        self.admissions.forget(keys)

    # -- what may begin ----------------------------------------------------------------------------

    def admit(self, session_id: str, owner: UsageOwner) -> None:
        """Let a session begin; what is let in counts at once. Raises `PaymentRequiredError` (`budget_exceeded`) when one of the
        budgets that hold for it is used up."""
        keys, now = budgets.keys(owner), now_ms()
        self.require(owner)
        for key in keys:
            for budget in self._budgets.get(key, {}).values():
                for name in COUNTS:
                    most: int | None = getattr(budget.limits, name)
                    if most is not None and (used := self._counted(key, name, now)) >= most:
                        raise budgets.full(key, name, most, used)
        self.admissions.take(session_id, keys, now)

    def require(self, owner: UsageOwner) -> None:
        """Raises `PaymentRequiredError` (`budget_exceeded`) when one of the sums that a session may use is used up."""
        for key in budgets.keys(owner):
            if (name := self._exhausted(key)) is not None:
                raise budgets.exceeded(key, name)

    def began(self, session_id: str, owner: UsageOwner, pace: Pace | None) -> None:
        """A session runs, and can use so much."""
        self.admissions.began(session_id)
        self._paces[session_id] = pace
        for key in budgets.keys(owner):
            self.changed(key)

    def ended(self, session_id: str, keys: Iterable[str]) -> None:
        """A session has used all that it will."""
        self._paces.pop(session_id, None)
        for key in keys:
            self.changed(key)

    def changed(self, key: str) -> None:
        """A key's spending, sessions or budget changed otherwise than by running on."""
        if key in self._budgets:
            self._due.pop(key, None)
            self._stale.add(key)

    def closed(self, keys: Iterable[str]) -> None:
        """A window of these keys was closed."""
        self._stale |= self._budgets.keys() & set(keys)

    def _counted(self, key: str, name: str, now: int) -> int:
        if name == "concurrency":
            return len(self._spending.live(key)) + self.admissions.pending(key)
        return self.admissions.recent(key, now)

    def _exhausted(self, key: str) -> str | None:
        now = now_ms()
        for period, budget in self._budgets.get(key, {}).items():
            spent = self._spending.spent(key, Span.of(period, now))
            if (name := budgets.exhausted(budget.limits, spent, self._spending.table)) is not None:
                return name
        return None

    # -- what has to end ---------------------------------------------------------------------------

    def watched(self) -> set[str]:
        """Live sessions that a budget holds for."""
        return {session_id for key in self._budgets for session_id in self._spending.live(key)}

    def overrun(self, keys: Iterable[str] | None = None) -> dict[str, str]:
        """Live sessions whose budget is used up, each with its key and limit; of some keys, or of all."""
        found: dict[str, str] = {}
        for key in list(self._budgets) if keys is None else keys:
            live = self._spending.live(key)
            if live and (name := self._exhausted(key)) is not None:
                found |= dict.fromkeys(live, f"{key.partition(':')[0]} {name}")
        return found

    def _soonest_s(self, key: str) -> float:
        """Seconds until one of a key's budgets can be used up, from when its sessions were read; infinite for none."""
        now, table = now_ms(), self._spending.table
        paces = [self._paces.get(session_id) for session_id in self._spending.live(key)]
        found = math.inf
        for period, budget in self._budgets.get(key, {}).items():
            found = min(found, soonest_s(budget.limits, self._spending.spent(key, Span.of(period, now)), paces, table))
        return found

    def _due_s(self, key: str) -> float:
        """When a key's sessions have to be read next, by the monotonic clock."""
        if key not in self._due:
            self._due[key] = self._read_at.get(key, -math.inf) + self._soonest_s(key)
        return self._due[key]

    async def watch(self, clock_s: float, read: Read, stop: Callable[[str, str], None]) -> None:
        """Look once: read the sessions of keys that could be used up by `clock_s` (monotonic), and stop those that are."""
        due = [key for key in list(self._budgets) if self._spending.live(key) and self._due_s(key) <= clock_s]
        if not due:
            return
        sessions = {session_id for key in due for session_id in self._spending.live(key)}
        self.readings += len(sessions)
        seen = set()
        for session_id, reading in await read(sessions):
            self._spending.take(session_id, reading)
            seen.add(session_id)
        for session_id, what in self.overrun(due).items():
            stop(session_id, what)
        for key in due:
            # One that ends is read no more: until it has ended, nobody knows more than before.
            if seen.issuperset(sessions.intersection(self._spending.live(key))):
                self._read_at[key] = clock_s
            self._due.pop(key, None)

    async def watch_for_ever(self, read: Read, stop: Callable[[str, str], None]) -> None:
        """Stop sessions that have used up a budget, for ever."""
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            if not self._budgets:
                continue
            with going_on("budgets could not be watched"):
                await self.watch(time.monotonic(), read, stop)

    # -- who is told -------------------------------------------------------------------------------

    async def notify(self) -> None:
        """Write down what there is to tell now. Raises `sqlite3.Error`, and it is told the next time."""
        stale, self._stale = self._stale, set()
        found: list[Notice] = []
        now = now_ms()
        for key, of_key in self._budgets.items():
            if key not in stale and not self._spending.live(key):
                continue
            for budget in of_key.values():
                span = Span.of(budget.period, now)
                found += self._reached(budget, span, now)
                former = span.before()
                # A window belongs to the span in which it began, and may be closed when that is over.
                if key in stale and former is not None and 0 < budget.set_at < span.begin_ms:
                    found += self._reached(budget, former, now, over=True)
        try:
            await self.notices.add(found)
        except BaseException:
            self._stale |= stale
            raise

    def _reached(self, budget: Budget, span: Span, now: int, *, over: bool = False) -> Iterator[Notice]:
        """What there is to tell of a span, which may be over."""
        wanted = [
            (told, threshold)
            for threshold in thresholds(budget)
            if (told := notice_id(budget.key, span, threshold)) not in self.notices
        ]
        if not wanted:
            return
        spent = self._spending.spent(budget.key, span)
        for told, threshold in wanted:
            used = self._used(budget.key, threshold, spent, now, over=over)
            if used is not None and used >= threshold.value:
                # Those that ran in a span that is over need not run now.
                running = [] if over else sorted(self._spending.live(budget.key))[:MAX_SESSIONS]
                named = running if threshold.kind is NoticeKind.EXCEEDED else []
                yield Notice(id=told, key=budget.key, span=span, threshold=threshold, used=used, at_ms=now, session_ids=named)

    def _used(self, key: str, threshold: Threshold, spent: Quantities, now: int, *, over: bool) -> int | None:
        """None for what is not known here (or of a span that is over): the control plane looks after storage."""
        if threshold.limit in budgets.SUMS:
            return budgets.summed(threshold.limit, spent, self._spending.table)
        if threshold.limit in COUNTS and not over:
            return self._counted(key, threshold.limit, now)
        return None
