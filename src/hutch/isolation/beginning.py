"""What an agent is told as its machine begins: what that must have in common with no other one."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass

from hutch.isolation.protocol import LINK_PREFIX

METHOD = "machine.begin"


@dataclass(frozen=True, slots=True)
class Ending:
    """What comes last in a file that has `size_bytes` before, the same in all machines."""

    path: str
    size_bytes: int
    data: bytes


def beginning(address: str = "", gateway: str = "", endings: Iterable[Ending] = ()) -> dict[str, object]:
    """Parameters of `METHOD`: new random numbers, the time, an id of the boot; the card's address, which it has none without, and
    where all packets go; what files are to end with."""
    return {
        "network": {"address": f"{address}/{LINK_PREFIX}", "gateway": gateway} if address else None,
        "entropy": os.urandom(64),
        "time_ns": time.time_ns(),
        "boot_id": str(uuid.uuid4()),
        "endings": [{"path": each.path.encode(), "size": each.size_bytes, "data": each.data} for each in endings],
    }
