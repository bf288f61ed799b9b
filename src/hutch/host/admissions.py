"""Who is about to begin and who began within the last minute, by the keys of their budgets.

What is here is what nobody else knows yet: sessions whose create is under way have no meter. When sessions began is known again
after a restart from their records, which are kept for longer than a minute.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Iterable

from hutch.metering.budgets import MINUTE_MS


class Admissions:
    """Sessions that were let in. Times are milliseconds since the epoch."""

    def __init__(self) -> None:
        self._pending: dict[str, tuple[int, tuple[str, ...]]] = {}
        self._began: dict[str, deque[int]] = defaultdict(deque)

    def take(self, session_id: str, keys: Iterable[str], at_ms: int) -> None:
        """A session is about to begin. It counts as one that began, unless it is given back."""
        own = tuple(keys)
        self._pending[session_id] = (at_ms, own)
        self.recall(own, at_ms)

    def began(self, session_id: str) -> None:
        """It has a meter now."""
        self._pending.pop(session_id, None)

    def give_back(self, session_id: str) -> None:
        """It did not begin. Nothing happens when it did."""
        at_ms, keys = self._pending.pop(session_id, (0, ()))
        for key in keys:
            began = self._began.get(key)
            if began is not None and at_ms in began:
                began.remove(at_ms)

    def recall(self, keys: Iterable[str], at_ms: int) -> None:
        """A session began at this time. What is older than a minute is forgotten."""
        for key in keys:
            began = self._began[key]
            while began and began[0] <= at_ms - MINUTE_MS:
                began.popleft()
            began.append(at_ms)

    def pending(self, key: str) -> int:
        """How many are about to begin."""
        return sum(key in keys for _, keys in self._pending.values())

    def recent(self, key: str, now_ms: int) -> int:
        """How many began within the last minute. After a clock was set back, what is to come does not count."""
        return sum(now_ms - MINUTE_MS < at <= now_ms for at in self._began.get(key, ()))

    def forget(self, keys: Collection[str]) -> None:
        """Forget when sessions of these owners began."""
        for key in keys:
            self._began.pop(key, None)
