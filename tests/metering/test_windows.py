"""Windows add up to the totals of their counters, whatever happens between readings."""

from __future__ import annotations

from functools import reduce
from itertools import pairwise
from operator import add

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from hutch.metering.quantities import Quantities
from hutch.metering.windows import GAP_MS, MeterState, Reading, begun, closed, sampled

START = 1_000_000


def reading(
    at_ms: int, cpu: int = 0, memory: int = 0, ingress: int = 0, egress: int = 0, gateway: int = 0, disk: int = 0
) -> Reading:
    return Reading(
        at_ms=START + at_ms,
        active_cpu_us=cpu,
        memory_bytes=memory,
        ingress_bytes=ingress,
        egress_bytes=egress,
        gateway_cpu_us=gateway,
        disk_bytes=disk,
    )


def total(windows: list[Quantities]) -> Quantities:
    return reduce(add, windows, Quantities())


def test_a_session_of_two_windows() -> None:
    state = begun("s", START, memory_bytes=1000, startup_cpu_us=70_000)
    state = sampled(state, reading(1000, cpu=400_000, memory=3000, ingress=5, egress=7, gateway=30, disk=2000))
    first, state = closed(state)
    state = sampled(state, reading(3000, cpu=400_001, memory=3000, ingress=5, egress=107, gateway=31, disk=0))
    last, state = closed(state, final=True)
    assert first.quantities == Quantities(
        active_cpu_us=400_000,
        startup_cpu_us=70_000,
        wall_us=1_000_000,
        memory_byte_seconds=2000,
        memory_peak_bytes=3000,
        ingress_bytes=5,
        egress_bytes=7,
        creations=1,
        gateway_cpu_us=30,
        disk_byte_seconds=1000,
        disk_peak_bytes=2000,
    )
    assert last.quantities == Quantities(
        active_cpu_us=1,
        wall_us=2_000_000,
        memory_byte_seconds=6000,
        memory_peak_bytes=3000,
        egress_bytes=100,
        gateway_cpu_us=1,
        disk_byte_seconds=2000,
        # What it held as it began.
        disk_peak_bytes=2000,
    )
    assert (first.number, first.final, last.number, last.final, state.final) == (1, False, 2, True, True)
    assert (first.from_ms, first.to_ms, last.from_ms, last.to_ms) == (START, START + 1000, START + 1000, START + 3000)


READINGS = st.lists(
    st.tuples(
        st.integers(0, 3 * GAP_MS),
        st.integers(0, 10**9),
        st.integers(0, 2**38),
        st.integers(0, 2**40),
        st.integers(0, 2**40),
        st.integers(0, 10**9),
        st.integers(0, 2**40),
        st.booleans(),
        st.booleans(),
    ),
    min_size=1,
    max_size=40,
)


@given(READINGS)
def test_windows_add_up_to_the_last_reading(steps: list[tuple[int, int, int, int, int, int, int, bool, bool]]) -> None:
    """Also when a meter is written down and read again in the middle, as after a death of the host."""
    state, windows = begun("s", START), []
    at = cpu = ingress = egress = gateway = 0
    for passed, burnt, memory, received, sent, spent, disk, close, died in steps:
        at, cpu, ingress, egress, gateway = at + passed, cpu + burnt, ingress + received, egress + sent, gateway + spent
        state = sampled(state, reading(at, cpu, memory, ingress, egress, gateway, disk))
        if close:
            window, state = closed(state)
            windows.append(window)
        if died:
            state = msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=MeterState)
    last, state = closed(state, final=True)
    windows.append(last)
    whole = total([window.quantities for window in windows])
    assert (whole.active_cpu_us, whole.wall_us) == (cpu, at * 1000)
    assert whole == state.quantities
    assert (whole.ingress_bytes, whole.egress_bytes, whole.creations) == (ingress, egress, 1)
    assert whole.gateway_cpu_us == gateway
    assert whole.memory_byte_seconds == state.memory_byte_ms // 1000
    assert whole.memory_peak_bytes == max(memory for _, _, memory, *_ in steps)
    assert whole.disk_byte_seconds == state.disk_byte_ms // 1000
    assert whole.disk_peak_bytes == max(step[6] for step in steps)
    assert [window.number for window in windows] == list(range(1, len(windows) + 1))
    assert all(before.to_ms == after.from_ms for before, after in pairwise(windows))
    assert all(getattr(window.quantities, name) >= 0 for window in windows for name in Quantities.__struct_fields__)


@given(st.integers(0, 2**40), st.integers(0, 2**40), st.integers(1, 5 * GAP_MS))
def test_memory_of_a_time_that_nobody_saw_is_the_lower_reading(before: int, after: int, passed: int) -> None:
    state = sampled(begun("s", START, memory_bytes=before), reading(passed, memory=after))
    held = min(before, after) * passed if passed > GAP_MS else (before + after) * passed // 2
    assert state.memory_byte_ms == held
    state = sampled(sampled(begun("s", START), reading(0, disk=before)), reading(passed, disk=after))
    assert state.disk_byte_ms == held


def test_counters_and_clocks_that_go_back_take_nothing_away() -> None:
    state = sampled(begun("s", START), reading(5000, cpu=900, memory=10, ingress=8, egress=9))
    back = sampled(state, reading(4000, cpu=0, memory=20, ingress=0, egress=0))
    assert back.last == msgspec.structs.replace(state.last, memory_bytes=20)
    assert back.memory_byte_ms == state.memory_byte_ms


def test_what_a_former_release_wrote_down_goes_on() -> None:
    """It knew neither the gateway's time nor the disk."""
    last = {"at_ms": START + 1000, "active_cpu_us": 5, "memory_bytes": 10, "ingress_bytes": 1, "egress_bytes": 2}
    written = {"session_id": "s", "began_ms": START, "opened": last, "last": last, "number": 3, "memory_byte_ms": 7000}
    state = msgspec.msgpack.decode(msgspec.msgpack.encode(written), type=MeterState)
    window, _ = closed(sampled(state, reading(2000, cpu=6, gateway=9, disk=2000)))
    used = window.quantities
    assert (window.number, used.active_cpu_us, used.gateway_cpu_us, used.disk_byte_seconds) == (4, 1, 9, 1000)
    former = {"active_cpu_us": 5, "creations": 1, "memory_peak_bytes": 9}
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(former), type=Quantities) == Quantities(
        active_cpu_us=5, creations=1, memory_peak_bytes=9
    )
