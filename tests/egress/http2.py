"""HTTP/2 by hand: frames and header blocks as bytes, so that a test can send what no client would.

`Peer` is a client in a guest: it writes whatever fields it is given, in their order, and says what became of each stream.
`Decoder` reads header blocks (RFC 7541); blocks that are written have literals only, which every decoder takes.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterable
from typing import Any

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RESET, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM, END_HEADERS, ACK = 1, 4, 1
WIDE = 0x7FFFFFFF
"""The largest window: nobody here waits for another."""
ERRORS = {0: "NO_ERROR", 1: "PROTOCOL_ERROR", 2: "INTERNAL_ERROR", 7: "REFUSED_STREAM", 8: "CANCEL"}

Fields = list[tuple[bytes, bytes]]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack("!I", len(payload))[1:] + bytes([kind, flags]) + struct.pack("!I", stream) + payload


def settings(**values: int) -> bytes:
    """`table` is the size of the table of headers, `window` that of a stream's window."""
    numbers = {"table": 1, "push": 2, "streams": 3, "window": 4, "frame": 5}
    return frame(SETTINGS, 0, 0, b"".join(struct.pack("!HI", numbers[key], value) for key, value in values.items()))


def _integer(value: int, bits: int, first: int = 0) -> bytes:
    most = (1 << bits) - 1
    if value < most:
        return bytes([first | value])
    out, value = bytearray([first | most]), value - most
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out) + bytes([value])


def block(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A header block of literals that are not indexed and not compressed."""
    return b"".join(b"\0" + _integer(len(name), 7) + name + _integer(len(value), 7) + value for name, value in fields)


STATIC: Fields = [
    (name.encode(), value.encode())
    for name, _, value in (
        line.partition("=")
        for line in (
            ":authority|:method=GET|:method=POST|:path=/|:path=/index.html|:scheme=http|:scheme=https|:status=200|:status=204"
            "|:status=206|:status=304|:status=400|:status=404|:status=500|accept-charset|accept-encoding=gzip, deflate"
            "|accept-language|accept-ranges|accept|access-control-allow-origin|age|allow|authorization|cache-control"
            "|content-disposition|content-encoding|content-language|content-length|content-location|content-range|content-type"
            "|cookie|date|etag|expect|expires|from|host|if-match|if-modified-since|if-none-match|if-range|if-unmodified-since"
            "|last-modified|link|location|max-forwards|proxy-authenticate|proxy-authorization|range|referer|refresh|retry-after"
            "|server|set-cookie|strict-transport-security|transfer-encoding|user-agent|vary|via|www-authenticate"
        ).split("|")
    )
]

LENGTHS = bytes.fromhex(
    "0d171c1c1c1c1c1c1c181e1c1c1e1c1c1c1c1c1c1c1c1e1c1c1c1c1c1c1c1c1c060a0a0c0d06080b0a0a080b080606060505050606060606"
    "060607080f060c0a0d06070707070707070707070707070707070707070707070807080d130d0e060f050605060506060605070706060605"
    "06070605050607070707070f0b0e0d1c14161414161616171617171717171817181816171817171717151617161717181615141616171715"
    "1716161815161717151516151716171714161616171616171a1a1413161716191a1a1a1b1b1a181913151a1b1b1a1b1815151a1a1c1b1b1b"
    "14181415161515171616191918181a171a1b1a1a1b1b1b1b1b1c1b1b1b1b1b1a"
)
"""Bits of each symbol's code (RFC 7541, appendix B). The code is canonical, so that the lengths say all."""


def _codes() -> dict[tuple[int, int], int]:
    codes, code, before = {}, 0, 0
    for symbol in sorted(range(256), key=lambda symbol: (LENGTHS[symbol], symbol)):
        code <<= LENGTHS[symbol] - before
        before = LENGTHS[symbol]
        codes[before, code] = symbol
        code += 1
    return codes


CODES = _codes()


def _expand(raw: bytes) -> bytes:
    out, code, bits = bytearray(), 0, 0
    for byte in raw:
        for shift in range(7, -1, -1):
            code, bits = code << 1 | byte >> shift & 1, bits + 1
            if (bits, code) in CODES:
                out.append(CODES[bits, code])
                code, bits = 0, 0
    return bytes(out)


class Decoder:
    """Reads header blocks of one connection in order."""

    def __init__(self) -> None:
        self.table: Fields = []

    def decode(self, raw: bytes) -> Fields:
        fields: Fields = []
        at = 0

        def integer(bits: int) -> int:
            nonlocal at
            value, most = raw[at] & ((1 << bits) - 1), (1 << bits) - 1
            at += 1
            if value < most:
                return value
            shift = 0
            while True:
                byte = raw[at]
                at += 1
                value += (byte & 127) << shift
                shift += 7
                if byte < 128:
                    return value

        def text() -> bytes:
            nonlocal at
            packed = raw[at] & 128
            length = integer(7)
            piece = raw[at : at + length]
            at += length
            return _expand(piece) if packed else piece

        def known(index: int) -> tuple[bytes, bytes]:
            return STATIC[index - 1] if index <= len(STATIC) else self.table[index - len(STATIC) - 1]

        while at < len(raw):
            first = raw[at]
            if first & 0x80:
                fields.append(known(integer(7)))
            elif first & 0xE0 == 0x20:
                if integer(5) == 0:
                    self.table.clear()
            else:
                kept = bool(first & 0x40)
                index = integer(6 if kept else 4)
                name = known(index)[0] if index else text()
                fields.append((name, text()))
                if kept:
                    self.table.insert(0, fields[-1])
        return fields


class Frames:
    """Takes frames off a stream of bytes."""

    def __init__(self) -> None:
        self.waiting = b""

    def feed(self, data: bytes) -> list[tuple[int, int, int, bytes]]:
        self.waiting += data
        found = []
        while len(self.waiting) >= 9:
            length = int.from_bytes(self.waiting[:3])
            if len(self.waiting) < 9 + length:
                break
            kind, flags = self.waiting[3], self.waiting[4]
            stream = int.from_bytes(self.waiting[5:9]) & 0x7FFFFFFF
            found.append((kind, flags, stream, self.waiting[9 : 9 + length]))
            self.waiting = self.waiting[9 + length :]
        return found


class Peer:
    """A client on a connection that has negotiated `h2`."""

    def __init__(self, stream: socket.socket) -> None:
        self.stream = stream
        self.decoder = Decoder()
        self.frames = Frames()
        self.next = 1
        self.streams: dict[int, dict[str, Any]] = {}
        self.goaway: str | None = None
        self.closed = False
        # Frames are written one by one, and wait for no word of the other side.
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream.sendall(PREFACE + settings(table=0, window=WIDE) + frame(WINDOW, 0, 0, struct.pack("!I", WIDE - 65535)))

    def ask(self, fields: Iterable[tuple[str | bytes, str | bytes]], body: bytes | None = None, end: bool = True) -> int:
        """Send a request's fields as they are. With `end` false the stream stays open."""
        number, self.next = self.next, self.next + 2
        self.streams[number] = {"headers": [], "body": "", "trailers": [], "end": None}
        raw = [(_bytes(name), _bytes(value)) for name, value in fields]
        done = END_STREAM if body is None and end else 0
        self.stream.sendall(frame(HEADERS, END_HEADERS | done, number, block(raw)))
        if body is not None:
            self.data(number, body, end=end)
        return number

    def data(self, number: int, body: bytes, end: bool = True) -> None:
        self.stream.sendall(frame(DATA, END_STREAM if end else 0, number, body))

    def trailers(self, number: int, fields: Iterable[tuple[bytes, bytes]]) -> None:
        self.stream.sendall(frame(HEADERS, END_HEADERS | END_STREAM, number, block(fields)))

    def until(self, *numbers: int, wait_s: float = 5.0) -> list[dict[str, Any]]:
        """What became of these streams, once each has ended or the connection has."""
        deadline = time.monotonic() + wait_s
        while not self.closed and any(self.streams[number]["end"] is None for number in numbers):
            self.step(max(0.01, deadline - time.monotonic()))
        return [self.streams[number] | {"goaway": self.goaway, "closed": self.closed} for number in numbers]

    def step(self, wait_s: float) -> None:
        """Read once."""
        self.stream.settimeout(wait_s)
        try:
            received = self.stream.recv(65536)
        except OSError:
            received = b""
        if not received:
            self.closed = True
        for kind, flags, number, payload in self.frames.feed(received):
            state = self.streams.get(number, {})
            if kind == SETTINGS and not flags & ACK:
                self.stream.sendall(frame(SETTINGS, ACK, 0))
            elif kind == PING and not flags & ACK:
                self.stream.sendall(frame(PING, ACK, 0, payload))
            elif kind == HEADERS:
                fields = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in self.decoder.decode(payload)]
                state["trailers" if state["headers"] else "headers"] = fields
            elif kind == DATA:
                state["body"] += payload.decode("latin-1")
            elif kind == RESET:
                state["end"] = ERRORS.get(int.from_bytes(payload), str(int.from_bytes(payload)))
            elif kind == GOAWAY:
                code = int.from_bytes(payload[4:8])
                self.goaway = ERRORS.get(code, str(code))
            if kind in (HEADERS, DATA) and flags & END_STREAM and state["end"] is None:
                state["end"] = "end"


def status(answer: dict[str, Any]) -> str:
    """A stream's status, or how it ended without one."""
    given = dict(answer["headers"]).get(":status")
    return str(given or answer["end"] or answer["goaway"] or ("closed" if answer["closed"] else "nothing"))


def get(path: str = "/", *more: tuple[str | bytes, str | bytes], name: str = "api.test") -> Fields:
    """The fields of a request as they should be."""
    first = {":method": "GET", ":scheme": "https", ":authority": name, ":path": path}
    return [(_bytes(key), _bytes(value)) for key, value in (*first.items(), *more)]


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("latin-1")
