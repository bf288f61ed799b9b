"""Pacers: how often a worker may call the other side, over all of its runs.

Within a run the SDK spreads calls evenly, `intervalMs / allowedRequests` apart, from `lastScheduledAtMs` on. Here that time is
kept between runs, and the budget is divided. A manifest does not say which sync uses which pacer, so a pacer is divided by all
syncs and connectors of the worker that run: each gets all requests in an interval that is that many times longer, which never
rounds the sum above the budget. The share is fixed when a run starts; one that starts later does not slow down one that runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from hutch.workers.changes import PacerState
from hutch.workers.manifest import PacerDeclaration

MAX_AHEAD_MS = 3_600_000
"""How far ahead a run may say that it used a pacer, at least: it waits for what it schedules, so more is a mistake."""


def start(
    declared: Iterable[PacerDeclaration], last_ms: Mapping[str, float], running: int, now_ms: int
) -> dict[str, dict[str, Any]]:
    """The pacers for a run that starts as one of `running` (itself included): the `pacers` of its context.

    All of the worker's are sent, as the SDK refuses to wait for one that is missing. `last_ms` is when each was last used. The
    first call of a run beside others waits for one share of each of them, so that runs that start together don't call together.
    """
    sent = {}
    for pacer in declared:
        last = last_ms.get(pacer.key, 0)
        if running > 1:
            last = max(last, now_ms - pace_ms(pacer.allowed_requests, pacer.interval_ms))
        sent[pacer.key] = {
            "lastScheduledAtMs": _number(last),
            "allowedRequests": _number(pacer.allowed_requests),
            "intervalMs": _number(pacer.interval_ms * max(1, running)),
        }
    return sent


def succeeded(
    declared: Iterable[PacerDeclaration], last_ms: Mapping[str, float], reported: Mapping[str, PacerState], now_ms: int
) -> dict[str, float]:
    """What is kept after a run that says how far it used its pacers. Times only go forward, and not beyond what can be true."""
    kept = {}
    for pacer in declared:
        last = last_ms.get(pacer.key, 0)
        state = reported.get(pacer.key)
        most = now_ms + max(pacer.interval_ms, MAX_AHEAD_MS)
        kept[pacer.key] = max(last, min(state.last_scheduled_at_ms, most)) if state else last
    return kept


def failed(declared: Iterable[PacerDeclaration], last_ms: Mapping[str, float], now_ms: int) -> dict[str, float]:
    """What is kept after a run that did not say: as if each pacer was used when it ended."""
    return {pacer.key: max(last_ms.get(pacer.key, 0), now_ms) for pacer in declared}


def pace_ms(allowed_requests: float, interval_ms: float) -> int:
    """The time between calls, as the SDK computes it."""
    return math.ceil(interval_ms / allowed_requests)


def _number(value: float) -> float:
    return int(value) if float(value).is_integer() else value
