"""Counters that only grow → closed windows that say how much they grew.

    reading ─▶ sampled ─▶ sampled ─▶ … ─▶ closed: window 1 │ reading ─▶ … ─▶ closed: window 2, final

A window is the difference of two totals, so however often its session is found again, its windows add up to the last total: not
a microsecond is counted twice, and none is left out. The state after a window is kept with it, and whoever goes on needs
nothing else.
"""

from __future__ import annotations

import msgspec

from hutch.metering.quantities import Quantities

GAP_MS = 10_000
"""Between readings that are further apart than this nobody looked, and the lower one counts for all of it."""


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """Counters of a session since its claim, and the memory and disk that it holds right now. `at_ms` is the wall clock's."""

    at_ms: int
    active_cpu_us: int
    memory_bytes: int
    ingress_bytes: int = 0
    egress_bytes: int = 0
    gateway_cpu_us: int = 0
    disk_bytes: int = 0


class UsageWindow(msgspec.Struct, frozen=True, kw_only=True):
    """What a session used from `from_ms` to `to_ms`. `number` counts a session's windows from 1; none comes after the final."""

    session_id: str
    number: int
    from_ms: int
    to_ms: int
    final: bool
    quantities: Quantities


class MeterState(msgspec.Struct, frozen=True, kw_only=True):
    """Where a session's meter stands. `memory_byte_ms` is its total, of which `billed_byte_seconds` are in closed windows; the
    window that is open began with `opened` and has held at most `peak_bytes`, the session at most `highest_bytes`. Likewise the
    disk's."""

    session_id: str
    began_ms: int
    opened: Reading
    last: Reading
    number: int = 0
    memory_byte_ms: int = 0
    billed_byte_seconds: int = 0
    peak_bytes: int = 0
    highest_bytes: int = 0
    startup_cpu_us: int = 0
    final: bool = False
    disk_byte_ms: int = 0
    billed_disk_byte_seconds: int = 0
    disk_peak_bytes: int = 0
    disk_highest_bytes: int = 0

    @property
    def open_quantities(self) -> Quantities:
        """What was used since the last window, as far as it was read."""
        return Quantities(
            active_cpu_us=self.last.active_cpu_us - self.opened.active_cpu_us,
            startup_cpu_us=0 if self.number else self.startup_cpu_us,
            wall_us=(self.last.at_ms - self.opened.at_ms) * 1000,
            memory_byte_seconds=self.memory_byte_ms // 1000 - self.billed_byte_seconds,
            memory_peak_bytes=self.peak_bytes,
            ingress_bytes=self.last.ingress_bytes - self.opened.ingress_bytes,
            egress_bytes=self.last.egress_bytes - self.opened.egress_bytes,
            creations=0 if self.number else 1,
            gateway_cpu_us=self.last.gateway_cpu_us - self.opened.gateway_cpu_us,
            disk_byte_seconds=self.disk_byte_ms // 1000 - self.billed_disk_byte_seconds,
            disk_peak_bytes=self.disk_peak_bytes,
        )

    @property
    def quantities(self) -> Quantities:
        """What was used since the session began, as far as it was read: the sum of its windows and of the open one."""
        return Quantities(
            active_cpu_us=self.last.active_cpu_us,
            startup_cpu_us=self.startup_cpu_us,
            wall_us=(self.last.at_ms - self.began_ms) * 1000,
            memory_byte_seconds=self.memory_byte_ms // 1000,
            memory_peak_bytes=self.highest_bytes,
            ingress_bytes=self.last.ingress_bytes,
            egress_bytes=self.last.egress_bytes,
            creations=1,
            gateway_cpu_us=self.last.gateway_cpu_us,
            disk_byte_seconds=self.disk_byte_ms // 1000,
            disk_peak_bytes=self.disk_highest_bytes,
        )


def begun(session_id: str, at_ms: int, *, memory_bytes: int = 0, startup_cpu_us: int = 0) -> MeterState:
    """The meter of a session that begins and holds so much memory already."""
    zero = Reading(at_ms=at_ms, active_cpu_us=0, memory_bytes=memory_bytes)
    return MeterState(
        session_id=session_id,
        began_ms=at_ms,
        opened=zero,
        last=zero,
        peak_bytes=memory_bytes,
        highest_bytes=memory_bytes,
        startup_cpu_us=max(0, startup_cpu_us),
    )


def sampled(state: MeterState, reading: Reading) -> MeterState:
    """The meter after one more reading. A counter that is lower than it was is that of something that is gone: the former one
    holds. A clock that was set back stands still until it is where it was. What is held between two readings is their mean."""
    last = state.last
    now = Reading(
        at_ms=max(reading.at_ms, last.at_ms),
        active_cpu_us=max(reading.active_cpu_us, last.active_cpu_us),
        memory_bytes=max(0, reading.memory_bytes),
        ingress_bytes=max(reading.ingress_bytes, last.ingress_bytes),
        egress_bytes=max(reading.egress_bytes, last.egress_bytes),
        gateway_cpu_us=max(reading.gateway_cpu_us, last.gateway_cpu_us),
        disk_bytes=max(0, reading.disk_bytes),
    )
    passed = now.at_ms - last.at_ms
    return msgspec.structs.replace(
        state,
        last=now,
        memory_byte_ms=state.memory_byte_ms + _held(last.memory_bytes, now.memory_bytes, passed),
        peak_bytes=max(state.peak_bytes, now.memory_bytes),
        highest_bytes=max(state.highest_bytes, now.memory_bytes),
        disk_byte_ms=state.disk_byte_ms + _held(last.disk_bytes, now.disk_bytes, passed),
        disk_peak_bytes=max(state.disk_peak_bytes, now.disk_bytes),
        disk_highest_bytes=max(state.disk_highest_bytes, now.disk_bytes),
    )


def _held(before: int, now: int, passed_ms: int) -> int:
    """Byte-milliseconds between two readings."""
    return min(before, now) * passed_ms if passed_ms > GAP_MS else (before + now) * passed_ms // 2


def closed(state: MeterState, *, final: bool = False) -> tuple[UsageWindow, MeterState]:
    """The window that ends with the last reading, and the meter after it."""
    window = UsageWindow(
        session_id=state.session_id,
        number=state.number + 1,
        from_ms=state.opened.at_ms,
        to_ms=state.last.at_ms,
        final=final,
        quantities=state.open_quantities,
    )
    after = msgspec.structs.replace(
        state,
        opened=state.last,
        number=window.number,
        billed_byte_seconds=state.billed_byte_seconds + window.quantities.memory_byte_seconds,
        peak_bytes=0 if final else state.last.memory_bytes,
        final=final,
        billed_disk_byte_seconds=state.billed_disk_byte_seconds + window.quantities.disk_byte_seconds,
        disk_peak_bytes=0 if final else state.last.disk_bytes,
    )
    return window, after
