"""Bounds of connections and requests, below ASGI.

uvicorn's parser takes heads of any size at any speed, bodies that never end, trailers as if they were headers, and more. This
subclass refuses, each in the one error shape:

* a head beyond `max_header_bytes` (431), or one that can't be meant, or could be meant in two ways (400): two hosts, two tokens,
  a transfer coding besides `chunked`, another version than 1.0 and 1.1;
* a body that does not get on (408, `hutch.api.progress`);
* connections above `max_connections`, and above `max_connections_per_client` of one address (503).

It closes, without a word where there is nobody who would read it: a connection whose head does not come in time, whose client
takes nothing of its answers, or is gone. What a client sends beyond its answer is read and dropped for a moment before the
connection is closed, so that the answer is not lost. Requests in a row are answered in their order, a refusal after all of those
before it. A client that ends its sending side is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Any, ClassVar

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from hutch.api.progress import Progress
from hutch.api.responses import JSON_TYPE, encode
from hutch.api.socket_protocol import handshake_fault
from hutch.api.transports import Limits, Watched
from hutch.errors import HutchError

BUSY_HEAD_TIMEOUT_S = 2.0
"""What a connection that will be refused gets to say what it wants."""
BUSY_CONNECTIONS = 128
"""So many of these are told; beyond, connections are closed at once."""
DRAIN_S, DRAIN_BYTES = 5.0, 64 * 1024 * 1024
"""How long, and how much of a body is read and dropped whose request was answered before."""
LINGER_S, LINGER_BYTES = 5.0, 8 * 1024 * 1024
"""The same for what follows a refusal."""
MAX_WAITING = 64
"""Requests of one connection that wait for the answers before theirs."""
_REASONS = {
    400: b"Bad Request",
    408: b"Request Timeout",
    431: b"Request Header Fields Too Large",
    503: b"Service Unavailable",
}
_VERSIONS = ("1.0", "1.1")
_ONCE = (b"host", b"authorization")


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


def bad_request(message: str) -> bytes:
    return answer(400, "bad_request", message)


def head_fault(version: str, method: bytes, url: bytes, headers: list[tuple[bytes, bytes]]) -> str | None:
    """What is wrong with a head that the parser takes; None when nothing is. Names are in small letters."""
    if version not in _VERSIONS:
        return "The request has a version of HTTP that is not spoken here: 1.1 and 1.0 are."
    if method == b"CONNECT":
        return "This server is no proxy: it does not take CONNECT."
    values: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        if name in _ONCE or name == b"transfer-encoding":
            values.setdefault(name, []).append(value)
    for name in _ONCE:
        if len(values.get(name, ())) > 1:
            return f"The header `{name.decode()}` is there more than once."
    hosts = values.get(b"host", [])
    if version == "1.1" and not hosts:
        return "The header `host` is missing."
    if any(value.strip().lower() != b"chunked" for value in values.get(b"transfer-encoding", ())) or (
        version == "1.0" and b"transfer-encoding" in values
    ):
        return "The body has a transfer coding that is not taken: `chunked` of HTTP/1.1 is."
    if not url.startswith((b"/", b"*")) and hosts and _authority(url) != hosts[0].strip().lower():
        return "The request's target and its header `host` name different hosts."
    return None


def _authority(url: bytes) -> bytes:
    """Host and port of a target in absolute form."""
    return url.partition(b"://")[2].partition(b"/")[0].partition(b"?")[0].lower()


class InTurn(FlowControl):
    """Reads no more requests while some wait for their turn: uvicorn reads a bufferful for each answer."""

    def __init__(self, transport: asyncio.Transport, waiting: Collection[object]) -> None:
        super().__init__(transport)
        self._waiting = waiting

    def resume_reading(self) -> None:
        if not self._waiting:
            super().resume_reading()


class BoundedProtocol(Watched, HttpToolsProtocol):
    """One connection. `bounded_protocol` makes the subclass that has limits."""

    too_large: ClassVar[bytes]
    slow: ClassVar[bytes]
    busy: ClassVar[bytes]
    busy_client: ClassVar[bytes]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._head_bytes = 0
        self._in_head, self._in_body = True, False
        self._unparsed_bytes = 0
        self._just_begun = self._has_body = False
        self._serving: RequestResponseCycle | None = None
        self._body = Progress(self.limits.body_timeout_s, self.limits.body_min_bytes)
        self._refusal: bytes | None = None
        self._refused = self._is_upgraded = False
        self._last_words: bytes | None = None
        self._dropped_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        """Ends the connection when its head is late, or when what is read and dropped takes too long."""

    # -- the connection ------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = InTurn(transport, self.pipeline)
        limits = self.limits
        over = len(self.connections) - limits.max_connections
        if over > BUSY_CONNECTIONS:
            self.transport.abort()
        elif over > 0:
            self._refusal = self.busy
        self.watch(transport)
        if limits.max_connections_per_client and self.of_this_client > limits.max_connections_per_client:
            self._refusal = self.busy_client
            if self.of_this_client > limits.max_connections_per_client + BUSY_CONNECTIONS:
                self.transport.abort()
        self._set_timer(limits.header_timeout_s if self._refusal is None else BUSY_HEAD_TIMEOUT_S, self._head_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self.unwatch()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        # uvicorn tells the request that came last, which may wait for its turn behind the one that is answered.
        self.pipeline.clear()
        if self._serving is not None and not self._serving.response_complete:
            self._serving.disconnected = True
            self._serving.message_event.set()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            self._drop(len(data), LINGER_BYTES)
            return
        if self._is_draining:
            self._drop(len(data), DRAIN_BYTES)
        if self.transport.is_closing():
            return
        self._has_body = False
        super().data_received(data)
        if self._refused or self._is_upgraded or self.transport.is_closing():
            return
        # The parser keeps an unfinished header to itself, so only what came in tells how long it is, a trailer or what follows a
        # chunk's size as well. The bytes in which a head began may hold the end of the request before it, so they do not count.
        if self._in_head or (self._in_body and not self._has_body):
            self._unparsed_bytes += 0 if self._just_begun else len(data)
            if self._unparsed_bytes > self.limits.max_header_bytes:
                self._refuse(self.too_large)
        self._just_begun = False
        if self._in_head and self._timer is None and not self._refused:
            self._set_timer(self.limits.header_timeout_s, self._head_late)
        elif not self._in_head and not self._in_body and not self._is_answering and self.timeout_keep_alive_task is None:
            # uvicorn forgets about a connection that says more than its request, such as the rest of a body nobody wanted.
            self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def shutdown(self) -> None:
        if self._refused:
            self.transport.close()
        else:
            super().shutdown()

    def is_late(self, now_s: float) -> bool:
        if not self._in_body or self._refused or self._is_draining:
            return False
        if self.flow.read_paused or self.cycle.waiting_for_100_continue:
            # It is the server that does not go on.
            self._body.begin(now_s)
            return False
        return self._body.is_late(now_s)

    def on_late(self) -> None:
        self._refuse(self.slow)

    @property
    def is_left_alone(self) -> bool:
        return bool(self.pipeline)

    # -- what the parser says ------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._in_head, self._just_begun = True, True
        self._head_bytes = self._unparsed_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._head_bytes += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value) + 4
        if self._in_head:
            super().on_header(name, value)
        # A trailer is no header: whoever stood in front has not looked at it.

    def on_headers_complete(self) -> None:
        if not self._in_head or self._refused:
            # Trailers of a chunked body end here as well.
            return
        self._in_head, self._in_body, self._unparsed_bytes = False, True, 0
        self._stop_timer()
        fault = head_fault(self.parser.get_http_version(), self.parser.get_method(), self.url, self.headers)
        if fault is None and self.parser.should_upgrade() and self._should_upgrade():
            fault = handshake_fault(self.parser.get_method(), self.headers)
            if self._is_answering:
                fault = "A WebSocket can't be opened before the requests ahead of it are answered."
        if self._head_bytes > self.limits.max_header_bytes:
            self._refusal = self.too_large
        elif self._refusal is None and fault is not None:
            self._refusal = bad_request(fault)
        if self._refusal is not None:
            self._in_body = False
            self._refuse(self._refusal)
            return
        if len(self.pipeline) >= MAX_WAITING:
            self._in_body = False
            self._refuse(bad_request(f"More than {MAX_WAITING} requests wait for the answers before theirs."))
            return
        self._body.begin(self.loop.time())
        super().on_headers_complete()
        if self.parser.should_upgrade() and self.cycle is not None and not self._should_upgrade():
            # The parser takes all that follows for another protocol's.
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        if not self._refused:
            self._has_body, self._unparsed_bytes = True, 0
            self._body.add(len(body))
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body = False
        if not self._refused:
            if self._is_draining:
                self._stop_timer()
            super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            return
        # One has its turn, so that there may be room for another.
        self.flow.resume_reading()
        if self._is_answering:
            return
        if self._last_words is not None:
            self._say(self._last_words)
        elif self._in_body:
            self._dropped_bytes = 0
            self._set_timer(DRAIN_S, self.transport.close)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._serving = cycle
        super()._start_asgi_task(cycle, app)

    def handle_websocket_upgrade(self) -> None:
        if self._refused:
            return
        self._is_upgraded = True
        self._stop_timer()
        self.hand_over()
        self.connections.discard(self)
        head = [self.scope["method"].encode(), b" ", self.url, b" HTTP/1.1\r\n"]
        for name, value in self.headers:
            head += [name, b": ", value, b"\r\n"]
        protocol = self.ws_protocol_class(  # type: ignore[call-arg, misc]
            config=self.config, server_state=self.server_state, app_state=self.app_state
        )
        # Before anything is said to it, so that it hears of the connection's end whatever it makes of this.
        self.transport.set_protocol(protocol)
        protocol.connection_made(self.transport)
        protocol.data_received(b"".join([*head, b"\r\n"]))

    def send_400_response(self, msg: str) -> None:
        self._refuse(bad_request("The request is not valid HTTP."))

    # -- refusals ------------------------------------------------------------------------------------

    @property
    def _is_answering(self) -> bool:
        return self._serving is not None and not self._serving.response_complete

    @property
    def _is_draining(self) -> bool:
        """Whether a body still comes whose request was answered."""
        return self._in_body and self._serving is not None and self._serving is self.cycle and self._serving.response_complete

    def _refuse(self, response: bytes) -> None:
        """The last answer of this connection, after those that are due before it."""
        if self._refused:
            return
        self._refused = True
        self._stop_timer()
        if self._in_body and self.cycle is not None:
            # Its own request is what is wrong: whoever answers that must not go on.
            self._in_body = False
            if self.pipeline and self.pipeline[0][0] is self.cycle:
                self.pipeline.popleft()
            elif self.cycle is self._serving:
                if self.cycle.response_started:
                    self.transport.close()
                    return
                self.cycle.response_complete = True
                self.cycle.disconnected = True
                self.cycle.waiting_for_100_continue = False
                self.cycle.message_event.set()
        if not self._is_answering:
            self._say(response)
        elif self._serving is not None and self._serving.response_started:
            # Its answer may go on for hours.
            self.transport.close()
        else:
            self._last_words = response

    def _say(self, response: bytes) -> None:
        """Answer, and read on for a moment: a connection that is closed over unread bytes takes the answer with it."""
        self._refused, self._dropped_bytes = True, 0
        self._unset_keepalive_if_required()
        if not self.transport.is_closing():
            self.flow.resume_reading()
            self.transport.write(response)
            self.transport.write_eof()
            self._set_timer(LINGER_S, self.transport.abort)

    def _drop(self, size: int, most: int) -> None:
        self._dropped_bytes += size
        if self._dropped_bytes > most and not self.transport.is_closing():
            self.transport.abort()

    def _head_late(self) -> None:
        self._timer = None
        if self._in_head and not self.transport.is_closing():
            self._refused = True
            self.transport.close()

    def _set_timer(self, seconds: float, then: Callable[[], object]) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, then)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def bounded_protocol(limits: Limits) -> type[HttpToolsProtocol]:
    """The protocol class with these limits; uvicorn makes one instance per connection."""
    large = f"The request line and headers are larger than {limits.max_header_bytes} bytes, the most that is taken."
    slow = f"Of the request's body less than {limits.body_min_bytes} bytes came in {limits.body_timeout_s} s. Send it faster."
    many = "The server has as many connections as it takes. Try again."
    yours = "Your address has as many connections as the server takes of one. Close some."
    fields = {
        "limits": limits,
        "too_large": answer(431, "header_too_large", large),
        "slow": answer(408, "request_too_slow", slow),
        "busy": answer(503, "too_many_connections", many, retry_after_s=1),
        "busy_client": answer(503, "too_many_connections", yours, retry_after_s=1),
    }
    return type("Bounded", (BoundedProtocol,), fields)
