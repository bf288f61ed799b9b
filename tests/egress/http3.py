"""HTTP/3 with aioquic: `http3.py serve ADDRESS CERTIFICATE` answers, `http3.py fetch ADDRESS NAME ROOTS` asks, both on port 443.

What a fetch prints is JSON: what came, or the name of the error that its socket was told.
"""

from __future__ import annotations

import asyncio
import errno
import json
import socket
import sys
from typing import Any

from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import serve
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, H3Event, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import QuicEvent

BODY = b"hello over HTTP/3"
PATIENCE_S = 15.0


class Http3(QuicConnectionProtocol):
    """A connection; what its requests become is told by `took`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.http = H3Connection(self._quic)

    def quic_event_received(self, event: QuicEvent) -> None:
        for happened in self.http.handle_event(event):
            self.took(happened)

    def took(self, event: H3Event) -> None:
        raise NotImplementedError


class Server(Http3):
    def took(self, event: H3Event) -> None:
        if isinstance(event, HeadersReceived):
            self.http.send_headers(event.stream_id, [(b":status", b"200")])
            self.http.send_data(event.stream_id, BODY, end_stream=True)
            self.transmit()


class Client(Http3):
    """On a connected socket, as browsers and curl have it: only such a one is told of refusals."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.body = b""
        self.done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def took(self, event: H3Event) -> None:
        if isinstance(event, DataReceived):
            self.body += event.data
            if event.stream_ended and not self.done.done():
                self.done.set_result(self.body)

    def error_received(self, exc: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(exc)

    def ask(self, name: str) -> None:
        fields = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", name.encode()), (b":path", b"/")]
        self.http.send_headers(self._quic.get_next_available_stream_id(), fields, end_stream=True)
        self.transmit()


async def fetch(address: str, name: str, roots: str) -> dict[str, str]:
    configuration = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, server_name=name)
    configuration.load_verify_locations(roots)
    loop = asyncio.get_running_loop()
    transport, client = await loop.create_datagram_endpoint(
        lambda: Client(QuicConnection(configuration=configuration)),
        remote_addr=(address, 443),
        family=socket.AF_INET,
    )
    try:
        client.connect((address, 443))
        client.ask(name)
        async with asyncio.timeout(PATIENCE_S):
            return {"body": (await client.done).decode()}
    except OSError as error:
        return {"error": errno.errorcode.get(error.errno or 0, type(error).__name__)}
    finally:
        transport.close()


async def answer(address: str, certificate: str) -> None:
    configuration = QuicConfiguration(is_client=False, alpn_protocols=H3_ALPN)
    configuration.load_cert_chain(certificate, certificate)
    server = await serve(address, 443, configuration=configuration, create_protocol=Server)
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        asyncio.run(answer(*sys.argv[2:]))
    else:
        print(json.dumps(asyncio.run(fetch(*sys.argv[2:]))))
