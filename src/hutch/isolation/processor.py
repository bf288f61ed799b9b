"""What of this machine's processor saved memory depends on."""

from __future__ import annotations

from pathlib import Path

_FIELDS = frozenset({"vendor_id", "cpu family", "model", "flags", "CPU implementer", "CPU part", "Features"})


def model(cpuinfo: Path = Path("/proc/cpuinfo"), *, also: frozenset[str] = frozenset()) -> bytes:
    """The model of processor and what it can do: the same on all machines that can go on from one another's memory. `also` are
    more fields that have to be."""
    first, _, _ = cpuinfo.read_text().partition("\n\n")
    return b"".join(line.encode() for line in first.splitlines() if line.partition(":")[0].strip() in _FIELDS | also)
