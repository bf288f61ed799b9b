"""What programs of the firewall's tests use inside a guest's network. Plain sockets, so that every byte is the test's."""

from __future__ import annotations

import base64
import contextlib
import errno
import functools
import json
import os
import socket
import ssl
import struct
import time
from typing import Any

BUNDLE = os.environ.get("SSL_CERT_FILE", "")


def say(value: Any) -> None:
    """The program's answer."""
    print(json.dumps(value))


def outcome(address: str, port: int, send: bytes = b"", wait_s: float = 5.0) -> dict[str, Any]:
    """What becomes of a TCP connection: how it ended, what came, and how long it took."""
    began = time.monotonic()
    result: dict[str, Any] = {"data": ""}
    try:
        with socket.create_connection((address, port), wait_s) as stream:
            stream.settimeout(wait_s)
            if send:
                stream.sendall(send)
            received = stream.recv(65536)
            result |= {"end": "data" if received else "closed", "data": received.decode("latin-1")}
    except OSError as error:
        result["end"] = errno.errorcode.get(error.errno or 0, type(error).__name__)
    result["took"] = time.monotonic() - began
    return result


def datagram(address: str, port: int, data: bytes = b"x", wait_s: float = 2.0) -> dict[str, Any]:
    """What becomes of a datagram."""
    began = time.monotonic()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(wait_s)
        try:
            sock.connect((address, port))
            sock.send(data)
            result = {"end": "data", "data": sock.recv(65536).decode("latin-1")}
        except OSError as error:
            result = {"end": errno.errorcode.get(error.errno or 0, type(error).__name__), "data": ""}
    return result | {"took": time.monotonic() - began}


def tls(address: str, name: str | None, port: int = 443, alpn: list[str] | None = None, verify: bool = True) -> ssl.SSLSocket:
    """A TLS connection to an address, with a server name."""
    context = _context(tuple(alpn or ()), verify and name is not None, verify)
    stream = socket.create_connection((address, port), 5)
    return context.wrap_socket(stream, server_hostname=name)


@functools.cache
def _context(alpn: tuple[str, ...], check_name: bool, verify: bool) -> ssl.SSLContext:
    """Reading the trust store takes longer than a handshake."""
    context = ssl.create_default_context(cafile=BUNDLE) if verify else ssl._create_unverified_context()
    context.check_hostname = check_name
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def read_all(stream: socket.socket, wait_s: float = 5.0) -> bytes:
    """Everything until the other side ends."""
    stream.settimeout(wait_s)
    data = b""
    try:
        while chunk := stream.recv(65536):
            data += chunk
    except OSError:
        pass
    return data


def exchange(address: str, name: str, request: bytes, wait_s: float = 5.0) -> str:
    """Send bytes over TLS; everything that comes back until the other side ends."""
    with tls(address, name, alpn=["http/1.1"]) as stream:
        # It would wait for the other side's word on the end of the handshake.
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream.sendall(request)
        return read_all(stream, wait_s).decode("latin-1")


def hello(name: str | None, alpn: list[str] | None = None) -> bytes:
    """The record of a ClientHello as OpenSSL makes it."""
    session, outgoing = _session(name, alpn)
    with contextlib.suppress(ssl.SSLWantReadError):
        session.do_handshake()
    return outgoing.read()


def _session(name: str | None, alpn: list[str] | None) -> tuple[ssl.SSLObject, ssl.MemoryBIO]:
    context = _context(tuple(alpn or ()), name is not None, True)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    return context.wrap_bio(incoming, outgoing, server_hostname=name), outgoing


def server_name(*names: bytes, kind: int = 0) -> bytes:
    """The body of the extension with server names."""
    entries = b"".join(bytes([kind]) + struct.pack("!H", len(name)) + name for name in names)
    return struct.pack("!H", len(entries)) + entries


def rebuilt(
    record: bytes,
    drop: tuple[int, ...] = (),
    add: tuple[tuple[int, bytes], ...] = (),
    legacy: int | None = None,
    outer: int | None = None,
) -> bytes:
    """A ClientHello with other extensions, in records with the version `outer`."""
    message = record[9:]
    at = 34
    at += 1 + message[at]
    at += 2 + int.from_bytes(message[at : at + 2])
    at += 1 + message[at]
    head, rest = message[:at], message[at + 2 :]
    if legacy is not None:
        head = struct.pack("!H", legacy) + head[2:]
    extensions = b""
    while rest:
        length = 4 + int.from_bytes(rest[2:4])
        if int.from_bytes(rest[:2]) not in drop:
            extensions += rest[:length]
        rest = rest[length:]
    for kind, body in add:
        extensions += struct.pack("!HH", kind, len(body)) + body
    message = head + struct.pack("!H", len(extensions)) + extensions
    return records(b"\1" + struct.pack("!I", len(message))[1:] + message, 16384, outer or 0x0301)


def records(message: bytes, size: int, version: int = 0x0301) -> bytes:
    """A handshake message in records of at most `size` bytes."""
    pieces = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(struct.pack("!BHH", 22, version, len(piece)) + piece for piece in pieces)


def request(target: str = "/", *lines: str, host: str = "api.test", method: str = "GET", body: bytes = b"") -> bytes:
    """The bytes of a request. Its framing is up to the caller."""
    return "\r\n".join((f"{method} {target} HTTP/1.1", f"Host: {host}", *lines, "", "")).encode("latin-1") + body


class Wire:
    """A client of HTTP/1.1 that sends what it is told and reads one response after the other."""

    def __init__(self, stream: socket.socket, wait_s: float = 5.0) -> None:
        self.stream = stream
        self.buffer = b""
        self.end = "open"
        stream.settimeout(wait_s)
        # An end without a word is `torn`, whether Python has seen the reset or not.
        stream.suppress_ragged_eofs = False  # type: ignore[attr-defined]

    def send(self, data: bytes) -> None:
        try:
            self.stream.sendall(data)
        except OSError as error:
            self.end = _torn(error)

    def more(self) -> bool:
        """Read once; false at the end, which `end` then tells."""
        try:
            received = self.stream.recv(65536)
        except OSError as error:
            self.end = _torn(error)
            return False
        self.buffer += received
        if not received:
            self.end = "closed"
        return bool(received)

    def until(self, mark: bytes) -> bytes:
        while mark not in self.buffer and self.more():
            pass
        taken, _, self.buffer = self.buffer.partition(mark)
        return taken

    def exactly(self, count: int) -> bytes:
        while len(self.buffer) < count and self.more():
            pass
        taken, self.buffer = self.buffer[:count], self.buffer[count:]
        return taken

    def answer(self, method: str = "GET") -> dict[str, Any]:
        """The next response. If it says that it is the last one, `end` tells how the connection then ended."""
        first, *lines = self.until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        headers = [[name.lower(), value.strip()] for name, _, value in (line.partition(":") for line in lines)]
        named = dict(headers)
        status = int(first.split(" ")[1]) if first.startswith("HTTP/1.1 ") else None
        body, trailers = b"", b""
        if status is None or method == "HEAD" or status in (204, 304) or status < 200:
            pass
        elif named.get("transfer-encoding") == "chunked":
            while size := int(self.until(b"\r\n") or b"0", 16):
                body += self.exactly(size)
                self.exactly(2)
            while line := self.until(b"\r\n"):
                trailers += line + b"\n"
        else:
            body = self.exactly(int(named.get("content-length", 0)))
        if named.get("connection") == "close":
            while self.end == "open" and self.more():
                pass
        return {
            "status": status,
            "headers": headers,
            "body": body.decode("latin-1"),
            "trailers": trailers.decode("latin-1"),
            "end": self.end,
            "rest": self.buffer.decode("latin-1"),
            "reason": named.get("x-hutch-reason"),
        }


def _torn(error: OSError) -> str:
    is_torn = isinstance(error, ssl.SSLEOFError | ConnectionResetError | BrokenPipeError)
    return "torn" if is_torn else errno.errorcode.get(error.errno or 0, type(error).__name__)


def each(address: str, name: str, payloads: list[str], alpn: str = "http/1.1") -> list[dict[str, Any]]:
    """Send each of these (Base64) on a connection of its own; the first response to each."""
    answers = []
    for payload in payloads:
        with tls(address, name, alpn=[alpn]) as stream:
            wire = Wire(stream)
            wire.send(base64.b64decode(payload))
            answers.append(wire.answer())
    return answers


def question(name: str, kind: int = 1, identifier: int = 0x1234) -> bytes:
    """A DNS question."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".") if label)
    return struct.pack("!HHHHHH", identifier, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", kind, 1)


def ask(server: str, query: bytes, wait_s: float = 3.0) -> dict[str, Any]:
    """Ask a name server over UDP: code, and the addresses in the answer."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(wait_s)
        sock.sendto(query, (server, 53))
        try:
            reply, peer = sock.recvfrom(65536)
        except OSError as error:
            return {"error": type(error).__name__}
    return {
        "code": reply[3] & 15,
        "answers": struct.unpack("!H", reply[6:8])[0],
        "from": peer[0],
        "bytes": len(reply),
        "raw": reply.hex(),
    }
