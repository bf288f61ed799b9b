"""Sandboxes with a program that listens, and clients that ask for them by name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.egress import defences  # First: it may put another engine in the place of the installed one.

# isort: split
from hutch.client import AsyncClient
from hutch.client.models import Created
from tests.conftest import RunningServer

PROGRAM = Path(__file__).with_name("program.py")
PORT = 8000
LISTEN_S = 20.0

defences.switch_off()


@dataclass
class Ingress:
    """The ingress of the server, and the API with the server's token."""

    base: str
    http: httpx.AsyncClient
    api: httpx.AsyncClient
    client: AsyncClient

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.base)
        assert parts.hostname is not None
        assert parts.port is not None
        return parts.hostname, parts.port

    def host(self, subdomain: str) -> str:
        return f"{subdomain}.localhost:{self.address[1]}"

    async def get(self, subdomain: str, path: str = "/", **more: Any) -> httpx.Response:
        headers = {"host": self.host(subdomain), **more.pop("headers", {})}
        return await self.http.request(more.pop("method", "GET"), path, headers=headers, **more)

    async def raw(self, data: bytes) -> bytes:
        """Bytes sent on a bare connection, and all that comes back until it is closed."""
        reader, writer = await asyncio.open_connection(*self.address)
        writer.write(data)
        try:
            return await asyncio.wait_for(reader.read(), 20)
        except ConnectionResetError:
            return b""
        finally:
            writer.close()

    async def sandbox(self, *, listens: bool = True, **fields: Any) -> Created:
        """A sandbox that exposes the port, with the program in it."""
        made = await self.client.sandboxes.create(**{"ports": [PORT], "persistent": False, **fields})
        if listens:
            await self.listen(made)
        return made

    async def listen(self, made: Created, port: int = PORT) -> None:
        """Start the program, and wait until it listens."""
        start = (
            f"cat > /tmp/program.py <<'END'\n{PROGRAM.read_text()}\nEND\nnohup python3 /tmp/program.py {port} > /tmp/log 2>&1 &"
        )
        assert (await self.client.commands.run(made.session.id, ["sh", "-c", start]))[0] == 0
        subdomain = next(route.subdomain for route in made.routes if route.port == port)
        async with asyncio.timeout(LISTEN_S):
            while (await self.get(subdomain)).status_code == httpx.codes.BAD_GATEWAY:
                await asyncio.sleep(0.05)


@pytest.fixture
async def ingress(server: RunningServer, client: AsyncClient) -> AsyncIterator[Ingress]:
    headers = {"authorization": f"Bearer {server.where.token}"}
    async with (
        httpx.AsyncClient(base_url=server.where.ingress_url, timeout=60, trust_env=False) as http,
        httpx.AsyncClient(base_url=f"{server.where.url}/api", headers=headers, timeout=60, trust_env=False) as api,
    ):
        yield Ingress(server.where.ingress_url, http, api, client)


def sole(made: Created) -> str:
    """The subdomain of a sandbox's one port."""
    (route,) = made.routes
    return route.subdomain
