"""Whether this machine has memory to spare, for sandboxes that nobody waits for.

Sandboxes are on the machine of their host: this one, unless there are several; then `workers.max_ahead` alone bounds them.
"""

from __future__ import annotations

from pathlib import Path

MEMINFO = Path("/proc/meminfo")
SPARE_PART = 0.25
"""Of the memory, that is left for what comes."""


def is_plenty(meminfo: Path = MEMINFO) -> bool:
    """True also where nobody can say."""
    try:
        lines = meminfo.read_text().splitlines()
        found = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)}
        return found["MemAvailable"] >= SPARE_PART * found["MemTotal"]
    except (OSError, LookupError, ValueError):
        return True
