"""Bounds of WebSockets, below ASGI: what uvicorn's protocol leaves to the client's good will.

A flood of pings, a message in endless pieces, and text that is none close the WebSocket, with the code that says so. Who sends
before the handshake is over, or reads nothing, is cut off.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections import Counter
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidHeader
from websockets.frames import Frame
from websockets.headers import parse_extension, parse_subprotocol
from websockets.http11 import MAX_LINE_LENGTH, MAX_NUM_HEADERS

from hutch.api.transports import Limits, Watched

MAX_PIECES = 4096
"""Frames of one message; honest ones have a few of many KiB."""
PINGS_PER_SECOND = 100
_ONCE = (b"sec-websocket-key", b"sec-websocket-version", b"origin")
_TOO_MUCH, _NOT_TEXT = 1008, 1007


def handshake_fault(method: bytes, headers: list[tuple[bytes, bytes]]) -> str | None:
    """What is wrong with the head of a handshake; None when nothing is. Names are in small letters."""
    if method != b"GET":
        return "A WebSocket is opened with GET."
    if any(name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0")) for name, value in headers):
        return "A WebSocket's handshake has no body."
    if len(headers) > MAX_NUM_HEADERS - 1:
        return f"A WebSocket's handshake has at most {MAX_NUM_HEADERS - 1} headers."
    if any(len(name) + len(value) + 4 > MAX_LINE_LENGTH for name, value in headers):
        return f"A header of a WebSocket's handshake has at most {MAX_LINE_LENGTH} bytes."
    counts = Counter(name for name, _ in headers)
    for name in _ONCE:
        if counts[name] > 1:
            return f"The header `{name.decode()}` is there more than once."
    values = dict(headers)
    try:
        key = base64.b64decode(values.get(b"sec-websocket-key", b""), validate=True)
    except binascii.Error:
        key = b""
    if len(key) != 16:
        return "The header `sec-websocket-key` is missing or is not 16 bytes in base64."
    if values.get(b"sec-websocket-version") != b"13":
        return "The header `sec-websocket-version` should be 13."
    try:
        for name, value in headers:
            if name == b"sec-websocket-extensions":
                parse_extension(value.decode("latin-1"))
            elif name == b"sec-websocket-protocol":
                parse_subprotocol(value.decode("latin-1"))
    except InvalidHeader:
        return "A header of the WebSocket's handshake can't be meant."
    return None


class BoundedSocket(Watched, WebSocketsSansIOProtocol):
    """One WebSocket. `bounded_socket` makes the subclass that has limits."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._second = 0.0
        self._pings = 0
        self._is_flooded = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.watch(self.transport, counted=True)

    def connection_lost(self, exc: Exception | None) -> None:
        self.unwatch()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.handshake_initiated and not self.handshake_complete:
            self.transport.abort()
            return
        super().data_received(data)
        if not self.handshake_initiated:
            self.transport.abort()

    def handle_cont(self, event: Frame) -> None:
        if len(self.frames) >= MAX_PIECES:
            self._fail(_TOO_MUCH, "too many pieces of one message")
        elif not self.close_sent:
            super().handle_cont(event)

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text" and not self.close_sent:
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:
                self.frames = []
                self._fail(_NOT_TEXT, "text that is not UTF-8")
                return
        super().send_receive_event_to_app()

    def handle_ping(self) -> None:
        now = self.loop.time()
        if now - self._second >= 1:
            self._second, self._pings = now, 0
        self._pings += 1
        if self._pings > PINGS_PER_SECOND:
            self._fail(_TOO_MUCH, "too many pings")
        elif not self.close_sent:
            super().handle_ping()
            if not self.writable.is_set() and not self._is_flooded:
                # Whoever does not take the answers has to wait with the questions.
                self._is_flooded = True
                self.transport.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._is_flooded:
            self._is_flooded = False
            if not self.read_paused:
                self.transport.resume_reading()

    @property
    def is_left_alone(self) -> bool:
        # Who closes a terminal hangs up, whatever was typed before and not read yet.
        return True

    async def send(self, message: Any) -> None:
        await super().send(message)
        if self.initial_response is not None and self.close_sent:
            # A refusal is how the handshake ended, not a fault of the application, as uvicorn has it in the log.
            self.handshake_complete = True

    def _fail(self, code: int, reason: str) -> None:
        if not self.close_sent:
            self.conn.fail(code, reason)
            self.handle_parser_exception()


def bounded_socket(limits: Limits) -> type[WebSocketsSansIOProtocol]:
    """The protocol class with these limits; uvicorn makes one instance per WebSocket."""
    return type("BoundedSocket", (BoundedSocket,), {"limits": limits})
