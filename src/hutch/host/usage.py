"""Usage of this host's sessions: read from the kernel, kept as windows, held against budgets.

    cgroup, interface ─▶ meter ─▶ window + meter + spending, one transaction ─▶ journal ─▶ control plane, until it says so
                          └─▶ budgets (`hutch.host.budgets`)

Nothing comes from the guest. A window and the meter after it are written together, so a host that dies in between has neither,
and its successor goes on with the counters of a machine that ran on all the while.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable

import msgspec

from hutch.clock import now_ms
from hutch.errors import ConflictError, NotFoundError
from hutch.host.background import going_on
from hutch.host.budgets import HostBudgets, Read
from hutch.host.journal import Journal
from hutch.host.protocol import NumberedWindow, RuleTraffic, SessionUsage
from hutch.metering import budgets
from hutch.metering.budgets import ALL_TIME, Period, Span, UsageOwner
from hutch.metering.pace import Pace
from hutch.metering.prices import PriceTable
from hutch.metering.quantities import Quantities
from hutch.metering.windows import MeterState, Reading, begun, closed, sampled

log = logging.getLogger(__name__)

SAMPLE_EVERY_S = 2.0
DAY_MS = 86_400_000
KEEP_DELIVERED_MS = DAY_MS
KEEP_DAYS_MS = 62 * DAY_MS


class Meter(msgspec.Struct, frozen=True):
    """A session's meter and whose it is."""

    owner: UsageOwner
    state: MeterState


class Usage:
    """Meters of all sessions, and spending by key; `budgets` are held against it."""

    def __init__(self, journal: Journal, table: PriceTable, window_ms: int) -> None:
        self._journal = journal
        self.table = table
        self._window_ms = window_ms
        self._meters: dict[str, Meter] = {}
        self._spent: dict[tuple[str, Span], Quantities] = {}
        self._live: dict[str, set[str]] = defaultdict(set)
        self._closing = asyncio.Lock()
        self._ended: dict[str, dict[str, RuleTraffic]] = {}
        self._seq = 0
        self._new = asyncio.Event()
        self.budgets = HostBudgets(journal, self)

    def load(self) -> None:
        """Read the journal, before its writer runs."""
        self._seq = self._journal.last_window()
        for session_id, meter in self._journal.meters(Meter).items():
            self._remember(session_id, meter)
        self._spent = self._journal.spending()
        self.budgets.load()

    # -- meters ------------------------------------------------------------------------------------

    def begin(
        self,
        session_id: str,
        owner: UsageOwner,
        at_ms: int,
        *,
        memory_bytes: int,
        startup_cpu_us: int,
        pace: Pace | None = None,
    ) -> None:
        """A session runs since `at_ms`, and can use so much; None where nobody knows. One that a predecessor wrote a window of
        goes on from there."""
        if session_id not in self._meters:
            state = begun(session_id, at_ms, memory_bytes=memory_bytes, startup_cpu_us=startup_cpu_us)
            self._remember(session_id, Meter(owner, state))
        if not self._meters[session_id].state.final:
            self.budgets.began(session_id, owner, pace)

    def _remember(self, session_id: str, meter: Meter) -> None:
        self._meters[session_id] = meter
        for key in budgets.keys(meter.owner):
            if meter.state.final:
                self._live[key].discard(session_id)
            else:
                self._live[key].add(session_id)

    def take(self, session_id: str, reading: Reading) -> None:
        """One more reading of a session."""
        meter = self._meters.get(session_id)
        if meter is not None and not meter.state.final:
            self._meters[session_id] = msgspec.structs.replace(meter, state=sampled(meter.state, reading))

    async def close_due(self) -> None:
        """Close the windows that are old enough, or that began on another day, and last ones that could not be written before."""
        now = now_ms()
        await asyncio.gather(*(self._close(session_id, final=True) for session_id in list(self._ended)))
        due = [
            session_id
            for session_id, meter in self._meters.items()
            if not meter.state.final
            and session_id not in self._ended
            and (now - meter.state.opened.at_ms >= self._window_ms or now // DAY_MS != meter.state.opened.at_ms // DAY_MS)
            and meter.state.last.at_ms > meter.state.opened.at_ms
        ]
        await asyncio.gather(*(self._close(session_id, final=False) for session_id in due))

    async def end(
        self,
        session_id: str,
        *,
        at_ms: int,
        active_cpu_us: int,
        ingress_bytes: int,
        egress_bytes: int,
        gateway_cpu_us: int = 0,
        disk_bytes: int = 0,
        network: dict[str, RuleTraffic] | None = None,
    ) -> Quantities:
        """Close a session's last window with the counters that its dead machine left; what it used in all. The dead hold no
        memory: until now it was what was read last. Nothing happens the second time."""
        state = self._meters[session_id].state
        last = Reading(
            at_ms=at_ms,
            active_cpu_us=active_cpu_us,
            memory_bytes=state.last.memory_bytes,
            ingress_bytes=ingress_bytes,
            egress_bytes=egress_bytes,
            gateway_cpu_us=gateway_cpu_us,
            disk_bytes=disk_bytes,
        )
        self.take(session_id, last)
        self._ended[session_id] = network or {}
        await self._close(session_id, final=True)
        return self._meters[session_id].state.quantities

    async def _close(self, session_id: str, *, final: bool) -> None:
        async with self._closing:
            meter = self._meters.get(session_id)
            if meter is None or meter.state.final:
                self._ended.pop(session_id, None)
                return
            window, state = closed(meter.state, final=final)
            after = msgspec.structs.replace(meter, state=state)
            # Above whatever a journal that lost its last transactions may have told the control plane.
            self._seq = max(self._seq + 1, now_ms() * 1000)
            spent = {
                (key, span): self._spent.get((key, span), Quantities()) + window.quantities
                for key in budgets.keys(meter.owner)
                for span in budgets.spans(key, window.from_ms)
            }
            # What is read until it is written is added to it, not lost.
            self._remember(session_id, after)
            before = {place: self._spent.get(place) for place in spent}
            self._spent.update(spent)
            try:
                numbered = NumberedWindow(self._seq, meter.owner, window, self._ended.get(session_id, {}) if final else {})
                await self._journal.put_window(numbered, after, spent)
            except sqlite3.Error as error:
                log.error("a usage window of session %s could not be written: %s", session_id, error)
                self._undo(session_id, meter, before)
                return
            self.budgets.closed(budgets.keys(meter.owner))
            if final:
                self._ended.pop(session_id, None)
                self.budgets.ended(session_id, budgets.keys(meter.owner))
            self._new.set()
            self._new = asyncio.Event()

    def _undo(self, session_id: str, before: Meter, spent: dict[tuple[str, Span], Quantities | None]) -> None:
        """A window was not written: the next one has what it had."""
        self._remember(
            session_id, msgspec.structs.replace(before, state=sampled(before.state, self._meters[session_id].state.last))
        )
        for place, quantities in spent.items():
            if quantities is None:
                self._spent.pop(place, None)
            else:
                self._spent[place] = quantities

    # -- answers -----------------------------------------------------------------------------------

    def usage(self, session_id: str) -> SessionUsage:
        """What a session used, as far as it was read. Raises `NotFoundError`."""
        meter = self._meters.get(session_id)
        if meter is None:
            raise NotFoundError("usage_not_found", f"The host has no usage of session '{session_id}'.")
        state = meter.state
        return SessionUsage(session_id, state.began_ms, state.last.at_ms, state.final, state.quantities)

    async def windows(self, after: int, send: Callable[[NumberedWindow], Awaitable[None]]) -> None:
        """Send every window with a number above `after`, for ever."""
        while True:
            new = self._new
            found = await self._journal.windows(after)
            for numbered in found:
                after = numbered.seq
                await send(numbered)
            # There may be more of them than are read at once.
            if not found and new is self._new:
                await new.wait()

    async def delivered(self, seq: int) -> None:
        """The control plane has all windows up to this one."""
        now = now_ms()
        first = Span.of(Period.DAY, now - KEEP_DAYS_MS)
        old = [(key, span) for key, span in self._spent if span.period is Period.DAY and span < first]
        await self._journal.forget_windows(min(seq, (now - KEEP_DELIVERED_MS) * 1000), old, self._seq)
        for place in old:
            self._spent.pop(place, None)
        await self.budgets.notices.prune(first.text)

    def forget(self, session_id: str) -> None:
        """Forget a session that is over, as the journal does."""
        self._ended.pop(session_id, None)
        self.budgets.ended(session_id, ())
        meter = self._meters.pop(session_id, None)
        for key in budgets.keys(meter.owner) if meter is not None else ():
            self._live[key].discard(session_id)

    async def forget_owners(self, keys: Collection[str]) -> None:
        """Forget all of those whom budgets may be for: meters, windows, spending and budgets. Raises `ConflictError` while one of
        their sessions has not used all that it will."""
        gone = set(keys)
        async with self._closing:
            sessions = [name for name, meter in self._meters.items() if not gone.isdisjoint(budgets.keys(meter.owner))]
            for session_id in sessions:
                if not self._meters[session_id].state.final:
                    raise ConflictError("session_live", f"Session '{session_id}' is not over yet.")
            await self._journal.forget_usage(gone, sessions, self._seq)
            for session_id in sessions:
                self.forget(session_id)
            self._spent = {place: spent for place, spent in self._spent.items() if place[0] not in gone}
            self.budgets.forget(gone)
            for key in gone & self._live.keys():
                del self._live[key]

    # -- what is spent -----------------------------------------------------------------------------

    def spent(self, key: str, span: Span = ALL_TIME) -> Quantities:
        """What a key used in a span, live sessions included as far as they were read."""
        total = self._spent.get((key, span), Quantities())
        for session_id in self._live.get(key, ()):
            state = self._meters[session_id].state
            if Span.of(span.period, state.opened.at_ms) == span:
                total += state.open_quantities
        return total

    def live(self, key: str) -> Collection[str]:
        """Live sessions of a key."""
        return self._live.get(key, ())

    # -- for ever ----------------------------------------------------------------------------------

    async def sample_for_ever(self, sessions: Callable[[], list[str]], read: Read) -> None:
        """Read all sessions again and again, close windows that are due, and write down what owners of budgets are told."""
        while True:
            with going_on("usage could not be read or written down"):
                await self._read(sessions(), read)
                await self.close_due()
            with going_on("notices of budgets could not be written down"):
                await self.budgets.notify()
            await asyncio.sleep(SAMPLE_EVERY_S)

    async def _read(self, sessions: Iterable[str], read: Read) -> None:
        for session_id, reading in await read(sessions):
            self.take(session_id, reading)
