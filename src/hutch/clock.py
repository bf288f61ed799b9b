"""The one clock: wall time in integer milliseconds since the epoch.

Code that decides takes a `Clock`, so that tests can hold time still; code that only stamps rows uses `now_ms`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], int]
"""Returns milliseconds since the epoch."""


def now_ms() -> int:
    """The time now, in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000
