"""When a sync is due.

An interval counts from the start of one cycle to the start of the next. A time that passed while a cycle ran, or while nothing
ran here at all, is not made up for: what was missed is one cycle, started at once, after which the interval counts anew.
`continuous` starts the next cycle `CONTINUOUS_GAP_MS` after the end of the last. `manual` is never due.

Cron is that of Debian (five fields, in the time zone named, UTC without one): a job at a fixed time that a clock change skips
runs right after the gap, one in an hour that comes twice runs once; jobs of every hour or minute follow real time.
"""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from hutch.workers.manifest import DEFAULT_SCHEDULE, Schedule

CONTINUOUS_GAP_MS = 1000
"""So that a sync with nothing to do does not keep a processor busy."""
MAX_EXPRESSION = 128
_SOME_TIME = datetime(2026, 1, 1, tzinfo=UTC)


def wrong_expression(expression: str) -> str | None:
    """What is wrong with a cron expression, as the rest of a sentence about the schedule. None for a good one."""
    if len(expression) > MAX_EXPRESSION:
        return f"has an expression of more than {MAX_EXPRESSION} characters"
    if not expression.isascii() or len(expression.split()) != 5:
        return "should have an expression of five fields: minute, hour, day of month, month, day of week"
    try:
        next(CronSim(expression, _SOME_TIME))
    except CronSimError as error:
        return f"has an expression that can't be read ({error})"
    except StopIteration:
        return "has an expression that never comes true"
    return None


def first_due(schedule: Schedule | None, now_ms: int) -> int | None:
    """When a sync that has never run is due: at once, unless it is manual or has times of its own."""
    schedule = schedule or DEFAULT_SCHEDULE
    if schedule.type == "manual":
        return None
    return _next_cron(schedule, now_ms) if schedule.type == "cron" else now_ms


def next_due(schedule: Schedule | None, started_ms: int, ended_ms: int) -> int | None:
    """When the next cycle is due after one that started and ended at these times; None when nothing is scheduled.

    The answer may lie before `ended_ms`: then a time was missed, and the cycle is due at once.
    """
    schedule = schedule or DEFAULT_SCHEDULE
    if schedule.type == "manual":
        return None
    if schedule.type == "continuous":
        return ended_ms + CONTINUOUS_GAP_MS
    if schedule.type == "cron":
        return _next_cron(schedule, started_ms)
    assert schedule.interval_ms is not None
    return started_ms + schedule.interval_ms


def period_ms(schedule: Schedule | None) -> int | None:
    """The interval of an interval, as the base of a backoff; None for other kinds."""
    schedule = schedule or DEFAULT_SCHEDULE
    return schedule.interval_ms if schedule.type == "interval" else None


def _next_cron(schedule: Schedule, after_ms: int) -> int | None:
    """The first time that is later than `after_ms`; None when there is none in the next 50 years."""
    zone = ZoneInfo(schedule.time_zone) if schedule.time_zone else UTC
    after = datetime.fromtimestamp(after_ms / 1000, zone)
    try:
        found: datetime = next(CronSim(schedule.expression or "", after))
    except StopIteration:
        return None
    return round(found.timestamp() * 1000)
