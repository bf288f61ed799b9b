"""Whether something gets on. No clock, no I/O: the time is said, in seconds of any clock that does not run backwards."""

from __future__ import annotations


class Progress:
    """At least `least` in each `within_s`; who has made so much begins anew."""

    __slots__ = ("_amount", "_least", "_since", "_within_s")

    def __init__(self, within_s: float, least: int) -> None:
        self._within_s = within_s
        self._least = least
        self._since = 0.0
        self._amount = 0

    def begin(self, now_s: float) -> None:
        """Forget what was before."""
        self._since, self._amount = now_s, 0

    def add(self, amount: int) -> None:
        self._amount += amount

    def is_late(self, now_s: float) -> bool:
        """Whether too little was made. Asked often: what was made since the last time counts as made now."""
        if self._amount >= self._least:
            self.begin(now_s)
        return now_s - self._since >= self._within_s
