"""What programs of the firewall's tests use inside a guest's network. Plain sockets, so that every byte is the test's."""

from __future__ import annotations

import errno
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
    context = ssl.create_default_context(cafile=BUNDLE) if verify else ssl._create_unverified_context()
    if name is None or not verify:
        context.check_hostname = False
    if alpn:
        context.set_alpn_protocols(alpn)
    stream = socket.create_connection((address, port), 5)
    return context.wrap_socket(stream, server_hostname=name)


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
        stream.sendall(request)
        return read_all(stream, wait_s).decode("latin-1")


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
