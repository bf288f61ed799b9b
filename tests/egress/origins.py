"""The outside world of the firewall's tests, as one process in a network namespace of its own: name server, origins, recorders.

It is told what to do, and asked what it saw, by lines of JSON on standard input and output:

    {"do": "answer", "name": "api.test", "steps": [[{"records": [["A", "198.51.100.7", 60]], "code": 0}], …]}
    {"do": "script", "host": "api.test", "replies": [BASE64, …], "close": true}
    {"do": "seen"}                →  {"dns": [...], "tcp": [...], "udp": [...]}
    {"do": "reset"}

A TLS connection is recorded as the bytes that came after the handshake, under the server name that was asked for. Replies are
scripted bytes: one per request head that arrives, the last one again for all that follow.
"""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import ssl
import struct
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

DEFAULT_REPLY = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
TYPES = {"A": 1, "NS": 2, "CNAME": 5, "SOA": 6, "TXT": 16, "AAAA": 28, "HTTPS": 65}


@dataclass(slots=True)
class Script:
    """What an origin answers. `hold` keeps a connection open without a word; `first` is sent before anything was read."""

    replies: list[bytes] = field(default_factory=lambda: [DEFAULT_REPLY])
    close: bool = False
    first: bytes = b""
    delay_s: float = 0.0
    echo: bool = False
    raw: bool = False


@dataclass(slots=True)
class Connection:
    """What one connection brought. `heads` counts requests that were answered."""

    kind: str
    local: str
    peer: str
    name: str | None = None
    alpn: str | None = None
    data: bytearray = field(default_factory=bytearray)
    heads: int = 0
    ended: str = ""

    def seen(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "local": self.local,
            "peer": self.peer,
            "name": self.name,
            "alpn": self.alpn,
            "data": base64.b64encode(bytes(self.data)).decode(),
            "heads": self.heads,
            "ended": self.ended,
        }


class World:
    def __init__(self, certificates: Path) -> None:
        self.certificates = certificates
        self.scripts: dict[str, Script] = {}
        self.zones: dict[str, list[dict[str, Any]]] = {}
        self.asked: list[dict[str, Any]] = []
        self.connections: list[Connection] = []
        self.datagrams: list[dict[str, Any]] = []
        self.writers: set[asyncio.StreamWriter] = set()

    # -- origins -----------------------------------------------------------------------------------

    def tls_context(self, names: dict[int, str | None]) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificates / "default.pem")
        context.set_alpn_protocols(["http/1.1"])

        def choose(sock: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
            names[id(sock)] = name
            file = self.certificates / f"{name}.pem"
            if name is not None and file.exists():
                other = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                other.load_cert_chain(file)
                other.set_alpn_protocols(["http/1.1"])
                sock.context = other

        context.sni_callback = choose
        return context

    async def serve(self, kind: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str | None) -> None:
        local, peer = writer.get_extra_info("sockname"), writer.get_extra_info("peername")
        session = writer.get_extra_info("ssl_object")
        connection = Connection(kind, f"{local[0]}:{local[1]}", f"{peer[0]}:{peer[1]}", name)
        if session is not None:
            connection.alpn = session.selected_alpn_protocol()
        self.connections.append(connection)
        self.writers.add(writer)
        script = self.scripts.get(name or "", self.scripts.get(connection.local, Script()))
        try:
            if script.first:
                writer.write(script.first)
                await writer.drain()
            waiting = b""
            while chunk := await reader.read(65536):
                connection.data += chunk
                if script.echo:
                    writer.write(chunk)
                    await writer.drain()
                    continue
                waiting += chunk
                while b"\r\n\r\n" in waiting or (script.raw and waiting):
                    head, _, waiting = (waiting, b"", b"") if script.raw else waiting.partition(b"\r\n\r\n")
                    reply = script.replies[min(connection.heads, len(script.replies) - 1)]
                    connection.heads += 1
                    if b"%HEAD%" in reply:
                        reply = reply.replace(b"%HEAD%", head)
                    if script.delay_s:
                        await asyncio.sleep(script.delay_s)
                    writer.write(reply)
                    await writer.drain()
                    if script.close:
                        writer.close()
                        connection.ended = "by us"
                        return
            connection.ended = "end"
        except (ConnectionError, ssl.SSLError, OSError) as error:
            connection.ended = type(error).__name__
        finally:
            self.writers.discard(writer)
            writer.close()

    async def listen_tls(self, address: str, port: int) -> None:
        names: dict[int, str | None] = {}
        context = self.tls_context(names)

        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            name = names.pop(id(writer.get_extra_info("ssl_object")), None)
            await self.serve("tls", reader, writer, name)

        await asyncio.start_server(accepted, address, port, ssl=context)

    async def listen_tcp(self, address: str, port: int) -> None:
        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self.serve("tcp", reader, writer, None)

        await asyncio.start_server(accepted, address, port)

    # -- datagrams ---------------------------------------------------------------------------------

    async def listen_udp(self, address: str, port: int) -> None:
        world = self

        class Recorder(asyncio.DatagramProtocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                self.transport = transport

            def datagram_received(self, data: bytes, peer: tuple[str, int]) -> None:
                world.datagrams.append(
                    {"local": f"{address}:{port}", "peer": f"{peer[0]}:{peer[1]}", "data": base64.b64encode(data).decode()}
                )
                cast("asyncio.DatagramTransport", self.transport).sendto(b"echo:" + data, peer)

        await asyncio.get_running_loop().create_datagram_endpoint(Recorder, local_addr=(address, port))

    async def name_server(self, address: str) -> None:
        world = self

        class Server(asyncio.DatagramProtocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                self.transport = transport

            def datagram_received(self, data: bytes, peer: tuple[str, int]) -> None:
                reply = world.resolve(data, peer[1], "udp")
                if reply is not None:
                    cast("asyncio.DatagramTransport", self.transport).sendto(reply, peer)

        await asyncio.get_running_loop().create_datagram_endpoint(Server, local_addr=(address, 53))

        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            length = struct.unpack("!H", await reader.readexactly(2))[0]
            reply = self.resolve(await reader.readexactly(length), writer.get_extra_info("peername")[1], "tcp")
            if reply is not None:
                writer.write(struct.pack("!H", len(reply)) + reply)
            writer.close()

        await asyncio.start_server(accepted, address, 53)

    def resolve(self, query: bytes, port: int, over: str) -> bytes | None:
        name, kind, end = _question(query)
        self.asked.append(
            {
                "name": name,
                "type": kind,
                "id": int.from_bytes(query[:2]),
                "port": port,
                "over": over,
                "additional": int.from_bytes(query[10:12]),
                "bytes": len(query),
            }
        )
        steps = self.zones.get(name.lower())
        if steps is None:
            return query[:2] + b"\x81\x83" + query[4:6] + bytes(6) + query[12:end]
        step = steps[0] if len(steps) == 1 else steps.pop(0)
        if step.get("silent"):
            return None
        if "raw" in step:
            return query[:2] + base64.b64decode(step["raw"])
        records = [record for record in step.get("records", []) if _number(record[0]) in (kind, 5)]
        body = b"".join(_record(record) for record in records)
        flags = 0x8180 | step.get("code", 0) | (0x0200 if step.get("truncated") and over == "udp" else 0)
        count = 0 if step.get("truncated") and over == "udp" else len(records)
        head = query[:2] + struct.pack("!HHHHH", flags, 1, count, 0, 0)
        return head + query[12:end] + (body if count else b"")

    # -- orders ------------------------------------------------------------------------------------

    def order(self, order: dict[str, Any]) -> dict[str, Any]:
        match order["do"]:
            case "answer":
                self.zones[order["name"]] = order["steps"]
            case "script":
                script = Script()
                for key, value in order.items():
                    if key == "replies":
                        script.replies = [base64.b64decode(reply) for reply in value]
                    elif key == "first":
                        script.first = base64.b64decode(value)
                    elif key not in ("do", "host"):
                        setattr(script, key, value)
                self.scripts[order["host"]] = script
            case "seen":
                return {
                    "dns": self.asked,
                    "tcp": [connection.seen() for connection in self.connections],
                    "udp": self.datagrams,
                }
            case "reset":
                self.asked, self.connections, self.datagrams, self.scripts, self.zones = [], [], [], {}, {}
                for writer in list(self.writers):
                    writer.close()
        return {}


def _question(query: bytes) -> tuple[str, int, int]:
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode("latin-1"))
        at += query[at] + 1
    return ".".join(labels), int.from_bytes(query[at + 1 : at + 3]), at + 5


def _name(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".") if label) + b"\0"


def _number(kind: str) -> int:
    """`TYPE16` is any type by its number, with data in base64."""
    return int(kind.removeprefix("TYPE")) if kind.startswith("TYPE") else TYPES[kind]


def _record(record: list[Any]) -> bytes:
    kind, value, ttl = record[0], record[1], record[2] if len(record) > 2 else 60
    owner = _name(record[3]) if len(record) > 3 else b"\xc0\x0c"
    if kind == "A":
        data = socket.inet_aton(value)
    elif kind == "AAAA":
        data = socket.inet_pton(socket.AF_INET6, value)
    elif kind == "TXT":
        data = bytes([len(value)]) + value.encode()
    elif kind in ("CNAME", "NS"):
        data = _name(value)
    else:
        data = base64.b64decode(value)
    return owner + struct.pack("!HHIH", _number(kind), 1, ttl, len(data)) + data


async def main() -> None:
    plan = json.loads(sys.argv[1])
    world = World(Path(plan["certificates"]))
    await world.name_server(plan["dns"])
    for address, port in plan["tls"]:
        await world.listen_tls(address, port)
    for address, port in plan["tcp"]:
        await world.listen_tcp(address, port)
    for address, port in plan["udp"]:
        await world.listen_udp(address, port)
    print(json.dumps({"ready": True}), flush=True)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=64 * 1024 * 1024)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        print(json.dumps(world.order(json.loads(line))), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
