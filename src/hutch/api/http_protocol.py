"""Bounds of request heads and connections, below ASGI.

uvicorn's parser takes heads of any size at any speed; this subclass refuses a head beyond `max_header_bytes` with 431, closes a
connection whose head does not arrive within `HEAD_TIMEOUT_S`, and answers 503 on connections above `max_connections`. What
is not HTTP at all is answered 400, each in the one error shape.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from hutch.api.responses import JSON_TYPE, encode
from hutch.errors import HutchError

HEAD_TIMEOUT_S = 30.0
_REASONS = {400: b"Bad Request", 431: b"Request Header Fields Too Large", 503: b"Service Unavailable"}


def answer(status: int, code: str, message: str, *, retry_after_s: int | None = None) -> bytes:
    """A whole HTTP answer that closes the connection."""
    body = encode(HutchError(code, message).body())
    lines = [
        b"HTTP/1.1 %d %s" % (status, _REASONS[status]),
        b"content-type: " + JSON_TYPE,
        b"content-length: %d" % len(body),
        b"connection: close",
    ]
    if retry_after_s is not None:
        lines.append(b"retry-after: %d" % retry_after_s)
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


class BoundedProtocol(HttpToolsProtocol):
    """One connection. `bounded_protocol` makes the subclass that has bounds."""

    max_header_bytes: ClassVar[int]
    max_connections: ClassVar[int]
    too_large: ClassVar[bytes]
    busy: ClassVar[bytes]
    invalid: ClassVar[bytes]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._head_bytes = 0
        self._in_head = True
        self._unparsed_bytes = 0
        self._just_begun = False
        self._refusal: bytes | None = None
        self._refused = False
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            self._refusal = self.busy
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._head_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        super().data_received(data)
        if self._in_head and not self._refused:
            # The parser keeps an unfinished header to itself, so only what came in tells how long it is. The chunk in
            # which a head began may hold the end of the request before it, so it does not count.
            self._unparsed_bytes += 0 if self._just_begun else len(data)
            self._just_begun = False
            if self._unparsed_bytes > self.max_header_bytes:
                self._refuse(self.too_large)
            elif self._head_timer is None:
                self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._head_late)

    def on_message_begin(self) -> None:
        self._in_head, self._just_begun = True, True
        self._head_bytes = self._unparsed_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._head_bytes += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value) + 4
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if not self._in_head:
            # Trailers of a chunked body end here as well.
            return
        self._in_head = False
        self._stop_timer()
        if self._head_bytes > self.max_header_bytes:
            self._refusal = self.too_large
        if self._refusal is not None:
            self._refuse(self._refusal)
        if not self._refused:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._refused:
            super().on_message_complete()
            # Between requests uvicorn's own keep-alive timeout applies.
            self._in_head = False

    def handle_websocket_upgrade(self) -> None:
        if not self._refused:
            super().handle_websocket_upgrade()

    def send_400_response(self, msg: str) -> None:
        self._refuse(self.invalid)

    def _refuse(self, response: bytes) -> None:
        if self._refused:
            return
        self._refused = True
        self._stop_timer()
        if not self.transport.is_closing():
            self.transport.write(response)
            self.transport.close()

    def _head_late(self) -> None:
        self._head_timer = None
        if self._in_head and not self.transport.is_closing():
            self._refused = True
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def bounded_protocol(max_header_bytes: int, max_connections: int) -> type[HttpToolsProtocol]:
    """The protocol class with these bounds; uvicorn makes one instance per connection."""
    large = f"The request line and headers are larger than {max_header_bytes} bytes, the most that is taken."
    many = "The server has as many connections as it takes. Try again."
    bounds = {
        "max_header_bytes": max_header_bytes,
        "max_connections": max_connections,
        "too_large": answer(431, "header_too_large", large),
        "busy": answer(503, "too_many_connections", many, retry_after_s=1),
        "invalid": answer(400, "bad_request", "The request is not valid HTTP."),
    }
    return type("Bounded", (BoundedProtocol,), bounds)
