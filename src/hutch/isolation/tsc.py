"""How fast this processor's time stamp counter runs, in kHz.

A guest under TCG reads the host's counter. It can't find its rate by itself: a machine with ACPI's reduced hardware has no timer
to compare with, and a Linux kernel that does not know the rate waits for ever for its first tick. Measured, because what
`/proc/cpuinfo` says is the clock of the core, which changes.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import platform
import time
from collections.abc import Callable

MEASURE_S = 0.05
"""Two readings at this distance, each taken within a microsecond or two, tell the rate to about one in 20,000."""
_TRIES = 5
# rdtsc; shl rdx, 32; or rax, rdx; ret
_CODE = bytes.fromhex("0f31 48c1e220 4809d0 c3")


@functools.cache
def frequency_khz() -> int:
    """Blocks for the measurement, once in a process. Raises `OSError` where there is no such counter."""
    if platform.machine() != "x86_64":
        raise OSError(f"{platform.machine()} has no time stamp counter, which emulated machines need")
    with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as page:
        page[: len(_CODE)] = _CODE
        start = ctypes.c_char.from_buffer(page)
        read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(start))
        ticks_before, ns_before = _together(read)
        # What passes meanwhile is what is measured.
        time.sleep(MEASURE_S)
        ticks_after, ns_after = _together(read)
        # The page can't be unmapped while something points into it.
        del read, start
    return round((ticks_after - ticks_before) * 1_000_000 / (ns_after - ns_before))


def _together(read: Callable[[], int]) -> tuple[int, int]:
    """The counter and the clock at one moment: the closest of a few readings, for we may lose the processor in between."""
    best: tuple[int, int, int] | None = None
    for _ in range(_TRIES):
        before = time.monotonic_ns()
        ticks = int(read())
        after = time.monotonic_ns()
        if best is None or after - before < best[0]:
            best = (after - before, ticks, (before + after) // 2)
    assert best is not None
    return best[1], best[2]
