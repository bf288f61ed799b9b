"""Whether this machine has memory to spare, for sandboxes that nobody waits for.

Sandboxes are on the machine of their host: this one, unless there are several; then `workers.max_ahead` alone bounds them.
"""

from __future__ import annotations

import contextlib
import os

MAX_BYTES = 8192
SPARE_PART = 0.25
"""Of the memory, that is left for what comes."""


def _opened() -> int | None:
    with contextlib.suppress(OSError):
        return os.open("/proc/meminfo", os.O_RDONLY | os.O_CLOEXEC)
    return None


_MEMINFO = _opened()
"""Opened when this file is imported: an API process that has shut itself in has no /proc."""


def is_plenty(meminfo: int | None = _MEMINFO) -> bool:
    """True also where nobody can say."""
    if meminfo is None:
        return True
    try:
        lines = os.pread(meminfo, MAX_BYTES, 0).decode().splitlines()
        found = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)}
        return found["MemAvailable"] >= SPARE_PART * found["MemTotal"]
    except (OSError, LookupError, ValueError):
        return True
