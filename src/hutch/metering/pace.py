"""How soon a budget can be used up at the most, so that it is read often only when it could be.

A session can't use more than its machine lets it: so many vCPUs, so much memory. What its network can carry at most nobody says;
it is taken for more than any machine's does. Nothing here is about what a session will use, only about what it can.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import msgspec

from hutch.metering.budgets import SUMS, Limits, summed
from hutch.metering.prices import PriceTable
from hutch.metering.quantities import Quantities

NETWORK_BYTES_S = 12_500_000_000
"""100 Gbit/s, for each session and direction."""
DISK_BYTES = 64 * 2**40
"""The largest disk that a sandbox can have."""
MIB = 2**20


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """The most that a session can use in a second."""

    active_cpu_us: int
    memory_byte_seconds: int

    @classmethod
    def of(cls, vcpus: int, memory_mb: int) -> Pace:
        """That of a machine. The kernel lets a cgroup run over its quota for parts of a period, and a virtual machine's monitor
        has memory of its own: both are in it."""
        return cls(active_cpu_us=vcpus * 1_100_000, memory_byte_seconds=(memory_mb * 5 // 4 + 256) * MIB)


def soonest_s(limits: Limits, spent: Quantities, paces: Collection[Pace | None], table: PriceTable) -> float:
    """Seconds until the first of `SUMS` can be reached by sessions of these paces; infinite when none can. 0 when nobody knows:
    where a session's pace is none, or a price is for something that has no pace."""
    if any(pace is None for pace in paces):
        return 0.0
    rates = {
        "active_cpu_us": sum(pace.active_cpu_us for pace in paces if pace is not None),
        "memory_byte_seconds": sum(pace.memory_byte_seconds for pace in paces if pace is not None),
        "egress_bytes": len(paces) * NETWORK_BYTES_S,
        "ingress_bytes": len(paces) * NETWORK_BYTES_S,
        "disk_byte_seconds": len(paces) * DISK_BYTES,
        # These do not grow while sessions run.
        "creations": 0,
        "snapshot_byte_seconds": 0,
    }
    soonest = math.inf
    for name in SUMS:
        limit = getattr(limits, name)
        if limit is None:
            continue
        # One of each is what rounding down may hide.
        left = limit - summed(name, spent, table) - 1
        rate: float = rates.get(name, 0)
        if name == "money_nano":
            if not table.rates.keys() <= rates.keys():
                return 0.0
            left -= len(table.rates)
            rate = sum(rates[priced] * price.nano / price.per for priced, price in table.rates.items())
        if left <= 0:
            return 0.0
        if rate > 0:
            soonest = min(soonest, left / rate)
    return soonest
