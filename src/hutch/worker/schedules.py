"""When a sync is due."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from hutch.worker.errors import WorkerError

MINUTE_MS = 60_000
MAX_INTERVAL_MS = 7 * 24 * 60 * MINUTE_MS
FIELDS = 5


@dataclass(frozen=True, slots=True)
class Schedule:
    """Made by `every`, `cron`, `continuous` and `manual`. Without one a sync is due every 30 minutes."""

    declared: dict[str, Any]


def every(*, minutes: int = 0, hours: int = 0, days: int = 0) -> Schedule:
    """From the start of one cycle to that of the next: a minute to 7 days. Raises `WorkerError`."""
    interval_ms = ((days * 24 + hours) * 60 + minutes) * MINUTE_MS
    if not MINUTE_MS <= interval_ms <= MAX_INTERVAL_MS:
        raise WorkerError("A schedule should be every minute at most, and every 7 days at least.")
    return Schedule({"type": "interval", "intervalMs": interval_ms})


def cron(expression: str, time_zone: str = "UTC") -> Schedule:
    """By an expression of five fields (minute, hour, day of month, month, day of week) in an IANA time zone. The platform reads
    the fields when the worker is deployed. Raises `WorkerError`."""
    if len(expression.split()) != FIELDS:
        raise WorkerError(f"{expression!r} should have five fields: minute, hour, day of month, month, day of week.")
    try:
        ZoneInfo(time_zone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise WorkerError(f"The time zone {time_zone!r} is not known; use a name such as Europe/Berlin.") from error
    return Schedule({"type": "cron", "expression": expression, "timeZone": time_zone})


def continuous() -> Schedule:
    """Again as soon as it is done."""
    return Schedule({"type": "continuous"})


def manual() -> Schedule:
    """Only when somebody asks for it."""
    return Schedule({"type": "manual"})
