"""Notices of budgets: written down before anybody is told, told at least once, and never made twice.

A notice stays in the journal after it was told, because it also says that there has been one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable

from hutch.clock import now_ms
from hutch.host.journal import Journal
from hutch.metering.budgets import Period, Span
from hutch.metering.notices import Notice, NumberedNotice


class Notices:
    """All notices of one host."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._known: dict[str, tuple[str, Span]] = {}
        self._seq = 0
        self._new = asyncio.Event()

    def load(self) -> None:
        """Read the journal, before its writer runs."""
        for numbered in self._journal.notices():
            self._known[numbered.notice.id] = (numbered.notice.key, numbered.notice.span)
            self._seq = max(self._seq, numbered.seq)

    def __contains__(self, notice_id: str) -> bool:
        return notice_id in self._known

    async def add(self, notices: Iterable[Notice]) -> None:
        """Write notices down, those that there were excepted. Raises `sqlite3.Error`, and none was made."""
        made = []
        for notice in notices:
            if notice.id not in self._known:
                # Above whatever a journal that lost its last transactions may have told.
                self._seq = max(self._seq + 1, now_ms() * 1000)
                self._known[notice.id] = (notice.key, notice.span)
                made.append(NumberedNotice(self._seq, notice))
        if not made:
            return
        try:
            await self._journal.put_notices(made)
        except BaseException:
            for numbered in made:
                self._known.pop(numbered.notice.id, None)
            raise
        self._new.set()
        self._new = asyncio.Event()

    async def tell(self, after: int, send: Callable[[NumberedNotice], Awaitable[None]]) -> None:
        """Send every notice with a number above `after`, for ever."""
        while True:
            new = self._new
            found = await self._journal.read_notices(after)
            for numbered in found:
                after = numbered.seq
                await send(numbered)
            if not found and new is self._new:
                await new.wait()

    async def prune(self, first_day: str) -> None:
        """Forget those of days and months that ended before this day."""
        old = [
            notice_id
            for notice_id, (_, span) in self._known.items()
            if span.period is not Period.TOTAL and span.text < first_day[: len(span.text)]
        ]
        if old:
            await self._journal.delete_notices(old)
            for notice_id in old:
                self._known.pop(notice_id, None)

    def forget(self, keys: Collection[str]) -> None:
        """Forget those of owners, as the journal does."""
        self._known = {notice_id: place for notice_id, place in self._known.items() if place[0] not in keys}
