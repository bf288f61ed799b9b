"""What HTTP connections and WebSockets have in common: limits, how many a client has, and a look at each now and then.

Looked for is what has no event of its own: a client that takes nothing of what was sent to it, one that is gone while nothing is
read from it, and what a subclass has to say (`is_late`).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import ClassVar

from hutch.api.progress import Progress
from hutch.settings import ServerSettings

LOOKS = 8
"""How often a connection is looked at in the shortest of its time limits."""
LONGEST_LOOK_S = 5.0
KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES = 60, 15, 4
"""A client whose machine or network is gone is noticed in two minutes, also by who has nothing to tell it."""
_ESTABLISHED, _CLOSE_WAIT = 1, 8
_BYTES_ACKED = slice(120, 128)
"""Where `struct tcp_info` of Linux has it, from 4.1 on."""


@dataclass(frozen=True)
class Limits:
    """Of connections; see `docs/configuration.md`. `clients` counts the connections of each address."""

    max_header_bytes: int
    max_connections: int
    max_connections_per_client: int
    header_timeout_s: float
    body_timeout_s: float
    body_min_bytes: int
    stall_timeout_s: float
    clients: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, settings: ServerSettings) -> Limits:
        return cls(
            max_header_bytes=settings.max_header_bytes,
            max_connections=settings.max_connections,
            max_connections_per_client=settings.max_connections_per_client,
            header_timeout_s=settings.header_timeout_s,
            body_timeout_s=settings.body_timeout_s,
            body_min_bytes=settings.body_min_bytes,
            stall_timeout_s=settings.stall_timeout_s,
        )

    @property
    def look_s(self) -> float:
        return min(LONGEST_LOOK_S, self.body_timeout_s / LOOKS, self.stall_timeout_s / LOOKS)


class Watched:
    """A protocol whose connection is looked at. It has a `transport`, `loop` and `client`."""

    limits: ClassVar[Limits]
    transport: asyncio.Transport
    loop: asyncio.AbstractEventLoop
    client: tuple[str, int] | None
    _look_timer: asyncio.TimerHandle | None = None
    _address: str | None = None
    _confirmed = 0

    def watch(self, transport: asyncio.Transport, *, counted: bool = False) -> None:
        """From now on. `counted`: this connection was another protocol's before."""
        self._taken = Progress(self.limits.stall_timeout_s, 1)
        self._taken.begin(self.loop.time())
        self._address = self.client[0] if self.client else ""
        if not counted:
            self.limits.clients[self._address] += 1
            _keep_alive(transport)
        self._look_timer = self.loop.call_later(self.limits.look_s, self._look)

    def unwatch(self) -> None:
        """The connection is over."""
        if self._address is not None:
            self.limits.clients[self._address] -= 1
            if self.limits.clients[self._address] <= 0:
                del self.limits.clients[self._address]
        self.hand_over()

    def hand_over(self) -> None:
        """Another protocol has the connection."""
        self._address = None
        if self._look_timer is not None:
            self._look_timer.cancel()
            self._look_timer = None

    @property
    def of_this_client(self) -> int:
        """How many connections its address has."""
        return self.limits.clients[self._address or ""]

    # -- for subclasses ------------------------------------------------------------------------------

    def is_late(self, now_s: float) -> bool:
        """Whether the client should have sent more by now."""
        return False

    def on_late(self) -> None:
        """Called when it is."""

    @property
    def is_left_alone(self) -> bool:
        """Whether nothing is read because the client has asked for so much already."""
        return False

    # ------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        self._look_timer = self.loop.call_later(self.limits.look_s, self._look)
        now = self.loop.time()
        if self._takes_nothing(now) or self._is_gone():
            self.transport.abort()
        elif not self.transport.is_closing() and self.is_late(now):
            self.on_late()

    def _takes_nothing(self, now: float) -> bool:
        """Whether there is something that the client has not let the kernel send for too long."""
        if not self.transport.get_write_buffer_size():
            self._taken.begin(now)
            return False
        before, self._confirmed = self._confirmed, _confirmed_bytes(self.transport)
        self._taken.add(self._confirmed - before)
        return self._taken.is_late(now)

    def _is_gone(self) -> bool:
        """Whether the client has hung up unheard: that is only heard by who reads."""
        if self.transport.is_reading() or self.transport.is_closing():
            return False
        connection = self.transport.get_extra_info("socket")
        try:
            state = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        except OSError:
            return True
        # Who has said all of a large body and hung up is heard when that was read.
        return state != _ESTABLISHED and (state != _CLOSE_WAIT or self.is_left_alone)


def _confirmed_bytes(transport: asyncio.Transport) -> int:
    """Bytes that the client has confirmed so far (`tcpi_bytes_acked`)."""
    try:
        info = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.stop)
    except OSError:
        return 0
    return int.from_bytes(info[_BYTES_ACKED], sys.byteorder)


def _keep_alive(transport: asyncio.Transport) -> None:
    connection = transport.get_extra_info("socket")
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
