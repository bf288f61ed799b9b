"""Servers that real programs talk to: a git repository, registries of npm and pip, a repository of apt, a WebSocket.

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
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from websockets.asyncio.server import ServerConnection, serve

FILES, CERTIFICATE, LOG = (Path(argument) for argument in sys.argv[1:4])
WEB, SOCKETS = "198.51.100.20", "198.51.100.21"
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
    async with serve(echo, SOCKETS, 443, ssl=context()):
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
