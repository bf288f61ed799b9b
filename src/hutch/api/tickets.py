"""Single-use secrets that open a terminal's WebSocket: browsers and the vendor's clients can't send a token with it."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from hutch import ids

TICKET_LIFE_S = 60.0
MAX_TICKETS = 10_000


class Tickets:
    """Tickets that were issued and not used. The oldest give way when there are too many."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._open: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def issue(self, session_id: str) -> str:
        """A ticket for one terminal in that session."""
        ticket = ids.pty_ticket()
        self._open[ticket] = (session_id, self._monotonic() + TICKET_LIFE_S)
        if len(self._open) > MAX_TICKETS:
            self._open.popitem(last=False)
        return ticket

    def redeem(self, ticket: str) -> str | None:
        """The session that the ticket is for; None when it is unknown, used or older than a minute."""
        session_id, expires = self._open.pop(ticket, ("", 0.0))
        return session_id if session_id and self._monotonic() < expires else None
