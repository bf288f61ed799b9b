"""Servers that real programs talk to: a git repository, registries of npm and pip, a repository of apt, a WebSocket, gRPC.

Runs inside the namespace of the outside world: `services.py FILES CERTIFICATE LOG`. Files below FILES/NAME are what the server of
that name has; every request is a line of JSON in LOG, with its headers.
"""

from __future__ import annotations

import asyncio
import json
import socketserver
import ssl
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
from websockets.asyncio.server import ServerConnection, serve

FILES, CERTIFICATE, LOG = (Path(argument) for argument in sys.argv[1:4])
WEB, SOCKETS, GRPC = "198.51.100.20", "198.51.100.21", "198.51.100.22"
_lock = threading.Lock()


def note(entry: dict[str, Any]) -> None:
    with _lock, LOG.open("a") as log:
        log.write(json.dumps(entry) + "\n")


class Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        name = (self.headers.get("host") or "").partition(":")[0]
        note({"name": name, "path": self.path, "headers": {key.lower(): value for key, value in self.headers.items()}})
        self.directory = str(FILES / name)
        super().do_GET()

    def log_message(self, format: str, *arguments: object) -> None:
        """In our own log."""


def context() -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(CERTIFICATE)
    return made


async def echo(connection: ServerConnection) -> None:
    assert connection.request is not None
    note(
        {
            "name": "ws.test",
            "path": connection.request.path,
            "headers": {k.lower(): v for k, v in connection.request.headers.items()},
        }
    )
    async for message in connection:
        await connection.send(message)


def call(method: str, context: grpc.ServicerContext) -> str:
    """Note a call, and have something in its trailers. The key that was given."""
    headers = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
    note({"name": "grpc.test", "path": method, "headers": headers, "left_s": context.time_remaining()})
    context.set_trailing_metadata((("x-ended", method),))
    return headers.get("x-key", "nothing")


def say(request: bytes, context: grpc.ServicerContext) -> bytes:
    """Say the same, and in trailers what was given."""
    given = call("Say", context)
    context.set_trailing_metadata((("x-ended", "Say"), ("x-given", given)))
    return request


def count(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
    call("Count", context)
    yield from (str(number).encode() for number in range(int(request)))


def chat(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
    call("Chat", context)
    yield from requests


def fail(_request: bytes, context: grpc.ServicerContext) -> None:
    call("Fail", context)
    context.abort(grpc.StatusCode.NOT_FOUND, "no such thing")


def squeeze(_request: bytes, context: grpc.ServicerContext) -> bytes:
    """Say what was given, compressed where the client takes that."""
    given = call("Squeeze", context)
    context.set_compression(grpc.Compression.Gzip)
    return f"{given} {'again ' * 1000}".encode()


def wait(_request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
    """Begin to answer, and never end."""
    call("Wait", context)
    gone = threading.Event()
    context.add_callback(gone.set)
    context.send_initial_metadata(())
    gone.wait()
    note({"name": "grpc.test", "path": "Wait", "gone": True})
    yield from ()


def grpc_server() -> grpc.Server:
    methods = {
        "Say": grpc.unary_unary_rpc_method_handler(say),
        "Count": grpc.unary_stream_rpc_method_handler(count),
        "Chat": grpc.stream_stream_rpc_method_handler(chat),
        "Fail": grpc.unary_unary_rpc_method_handler(fail),
        "Squeeze": grpc.unary_unary_rpc_method_handler(squeeze),
        "Wait": grpc.unary_stream_rpc_method_handler(wait),
    }
    server = grpc.server(ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", methods),))
    pem = CERTIFICATE.read_bytes()
    server.add_secure_port(f"{GRPC}:443", grpc.ssl_server_credentials([(pem, pem)]))
    server.start()
    return server


class Server(ThreadingHTTPServer):
    """A server that doesn't ask for its own name, which nobody in its network knows."""

    daemon_threads = True

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]


async def main() -> None:
    secure = Server((WEB, 443), Handler)
    secure.socket = context().wrap_socket(secure.socket, server_side=True, do_handshake_on_connect=False)
    plain = Server((WEB, 80), Handler)
    for server in (secure, plain):
        threading.Thread(target=server.serve_forever, daemon=True).start()
    remote_calls = grpc_server()
    async with serve(echo, SOCKETS, 443, ssl=context()):
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    remote_calls.stop(None)


if __name__ == "__main__":
    asyncio.run(main())
