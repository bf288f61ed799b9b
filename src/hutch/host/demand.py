"""How many machines to have ready, decided from when they were asked for. Does no I/O; times are seconds of any one clock."""

from __future__ import annotations

import math
from dataclasses import dataclass

RATE_S = 5.0
"""Over about how long the rate of arrivals is measured."""
HOT_S = 300.0
"""Over about how long it counts that something was asked for again."""
HOT = 2.0
"""What nobody said to keep ready is kept ready once it was asked for more than so often."""


@dataclass(slots=True)
class Demand:
    """Arrivals of one kind: how many lately, and how many in the last minutes, each weighing less the longer ago it was."""

    lately: float = 0.0
    minutes: float = 0.0
    at: float = 0.0
    last: float = 0.0

    def arrived(self, now: float) -> None:
        self._decay(now)
        self.last = now
        self.lately += 1
        self.minutes += 1

    def _decay(self, now: float) -> None:
        passed = max(0.0, now - self.at)
        self.lately *= math.exp(-passed / RATE_S)
        self.minutes *= math.exp(-passed / HOT_S)
        self.at = now

    def wanted(self, now: float, start_s: float, floor: int, cap: int) -> int:
        """Machines to have ready: enough for those who come while one is being started, with room for chance, and never less than
        `floor` or more than `cap`. `start_s` is how long a start takes."""
        self._decay(now)
        if floor == 0 and self.minutes <= HOT:
            return 0
        expected = self.lately / RATE_S * start_s
        # Arrivals by chance scatter by the root of their number.
        enough = math.ceil(expected + 2 * math.sqrt(expected))
        return min(cap, max(floor, enough, 1))
