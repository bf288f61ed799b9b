"""Which requests are sent again, and when. Decisions only: `transport.py` sleeps and sends.

    nothing reached the server (refused, no route)     again, whatever it was
    429                                                again, whatever it was: the server did nothing
    the connection broke, or 5xx                       again if the request may arrive twice
    anything else, and a body that is a used-up stream never

A request may arrive twice when a second one changes nothing that the first one did not: reads, PUT, DELETE, and the few POSTs
that say so. A create or a command never does.
"""

from __future__ import annotations

import email.utils
import random
from dataclasses import dataclass
from datetime import UTC, datetime

import httpx

SAFE_METHODS = frozenset({"GET", "HEAD", "PUT", "DELETE"})
UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
"""Faults before the first byte of a request left."""
BROKEN = (httpx.NetworkError, httpx.RemoteProtocolError)
"""Faults after which nobody knows whether the request arrived. A server that takes too long is none: it would take as long
again."""


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and after how long. The pause before attempt n is `first_pause_s` times 2 to the n, less up to half by chance, so
    that many clients do not come back at once. A server that names a pause (`Retry-After`) gets it, unless it is more than
    `longest_pause_s`: then its error is raised, with `retry_after_s`."""

    attempts: int = 3
    """Requests in all; 1 never sends again."""
    first_pause_s: float = 0.2
    longest_pause_s: float = 20.0

    def after_fault(self, attempt: int, error: httpx.HTTPError, *, safe: bool, replayable: bool) -> float | None:
        """Seconds to wait before the next attempt, or None: raise. `attempt` counts from 0."""
        if isinstance(error, UNSENT):
            return self._pause(attempt)
        if isinstance(error, BROKEN) and safe and replayable:
            return self._pause(attempt)
        return None

    def after_answer(
        self, attempt: int, status: int, retry_after_s: float | None, *, safe: bool, replayable: bool
    ) -> float | None:
        """The same after an answer that is an error."""
        if not replayable or not (status == 429 or (status >= 500 and safe)):
            return None
        pause = self._pause(attempt)
        if pause is None or retry_after_s is None:
            return pause
        return retry_after_s if retry_after_s <= self.longest_pause_s else None

    def _pause(self, attempt: int) -> float | None:
        if attempt + 1 >= self.attempts:
            return None
        longest: float = min(self.first_pause_s * 2**attempt, self.longest_pause_s)
        return longest * (0.5 + random.random() / 2)  # noqa: S311 - nobody gains from guessing it


def retry_after_s(header: str | None) -> int | None:
    """What a `Retry-After` header says, in whole seconds from now; None for nothing and for nonsense."""
    if header is None:
        return None
    text = header.strip()
    if text.isascii() and text.isdecimal():
        return int(text) if len(text) <= 9 else None
    try:
        at = email.utils.parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return None
    at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    try:
        return max(0, round((at - datetime.now(UTC)).total_seconds()))
    except OverflowError:
        return None
