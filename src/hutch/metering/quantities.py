"""Quantities that are metered, and how they add up."""

from __future__ import annotations

import msgspec


class Quantities(msgspec.Struct, frozen=True, kw_only=True):
    """What something used. Integers, none negative.

    `active_cpu_us` is CPU time of all processes of the sandbox since a session got it, over all its vCPUs; `startup_cpu_us` what
    its machine needed before, and `gateway_cpu_us` what the gateway spent on it, which cost nothing. `memory_byte_seconds` is
    memory held, over time, and `disk_byte_seconds` what its own writable layer held; the network's bytes are those of the
    sandbox's interface, seen from the sandbox.
    """

    active_cpu_us: int = 0
    startup_cpu_us: int = 0
    wall_us: int = 0
    memory_byte_seconds: int = 0
    memory_peak_bytes: int = 0
    ingress_bytes: int = 0
    egress_bytes: int = 0
    snapshot_byte_seconds: int = 0
    creations: int = 0
    gateway_cpu_us: int = 0
    disk_byte_seconds: int = 0
    disk_peak_bytes: int = 0

    def __add__(self, other: Quantities) -> Quantities:
        sums = {name: getattr(self, name) + getattr(other, name) for name in SUMMED}
        peaks = {name: max(getattr(self, name), getattr(other, name)) for name in PEAKS}
        return Quantities(**sums, **peaks)

    def since(self, before: Quantities) -> Quantities:
        """What came after `before`, an earlier state of the same totals. A peak has no parts: it is that of the whole."""
        return msgspec.structs.replace(self, **{name: max(0, getattr(self, name) - getattr(before, name)) for name in SUMMED})


PEAKS = ("memory_peak_bytes", "disk_peak_bytes")
SUMMED = tuple(name for name in Quantities.__struct_fields__ if name not in PEAKS)
"""Of a peak the highest counts; all others are added."""
