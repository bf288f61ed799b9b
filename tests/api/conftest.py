"""A real API server (uvicorn, SQLite) over the fake host, and clients of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from hutch.api.auth import new_token
from hutch.api.main import ApiServer, server_config
from hutch.api.services import ResolvedImage, Services
from hutch.api.startup import Identity, identity, started
from hutch.api.startup import load as load_installation
from hutch.clock import now_ms
from hutch.control.permissions import TokenRole
from hutch.errors import NotFoundError
from hutch.settings import load
from hutch.storage import tenants
from tests.answers import Checked
from tests.api.fake_host import FakeHost

DAY_MS = 86_400_000
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For clients that speak no TLS: trusts nobody, and is there at once."""


class FakeImages:
    """The image store's answers without images."""

    def resolve(self, reference: str, runtime: str | None) -> ResolvedImage:
        name = (runtime or reference).partition("@")[0].partition(":")[0]
        if name not in ("vercel/sandbox/universal", "node22", "node24", "python3.13"):
            raise NotFoundError("image_not_found", f"There is no image {reference!r}.")
        return ResolvedImage(f"{name}@sha256:{'0' * 64}", "/vercel")

    def list(self) -> list[Any]:
        config = SimpleNamespace(user="ubuntu", home="/vercel", cwd="/vercel")
        layer = SimpleNamespace(digest="sha256:1", size=10)
        return [
            SimpleNamespace(
                name="vercel/sandbox/universal:latest", aliases=("x",), digest="sha256:0", layers=(layer,), config=config
            )
        ]


@dataclass
class Api:
    """A running API. `http` speaks as the administrator; `client(token)` as somebody else."""

    url: str
    services: Services
    host: FakeHost
    own: Identity
    http: httpx.AsyncClient
    server: ApiServer
    _clients: list[httpx.AsyncClient]

    def client(self, token: str) -> httpx.AsyncClient:
        """A client with that token; an empty one sends none."""
        headers = {"authorization": f"Bearer {token}"} if token else {}
        client = httpx.AsyncClient(base_url=self.url, headers=headers, timeout=20, verify=NO_TLS)
        self._clients.append(client)
        return client

    async def tenant(
        self, team: str, project: str | None = "main", role: TokenRole = TokenRole.MEMBER, ttl_ms: int = DAY_MS
    ) -> Tenant:
        """A client with a token of another team (made if it is new)."""
        async with self.services.database.write() as connection:
            found = await tenants.ensure_team(connection, team, now_ms())
            made = await tenants.ensure_project(connection, found.id, project, now_ms()) if project is not None else None
        record = new_token(found.id, made.id if made is not None else None, role, now=now_ms(), ttl_ms=ttl_ms)
        token = await self.services.auth.issue(record)
        return Tenant(self.client(token), token, record.id, found.id, made.id if made is not None else "")

    async def create(self, http: httpx.AsyncClient | None = None, **body: Any) -> dict[str, Any]:
        """A new sandbox; the answer's body."""
        response = await (http or self.http).post("/v3/sandboxes", json=body)
        assert response.status_code == 200, response.text
        return dict(response.json())

    async def raw(self, data: bytes) -> bytes:
        """Bytes sent on a bare connection, and all that comes back until the server closes it."""
        reader, writer = await asyncio.open_connection(*self.url.removeprefix("http://").split(":"))
        writer.write(data)
        try:
            return await asyncio.wait_for(reader.read(), 10)
        except ConnectionResetError:
            return b""
        finally:
            writer.close()


@dataclass
class Tenant:
    http: httpx.AsyncClient
    token: str
    token_id: str
    team_id: str
    project_id: str


@contextlib.asynccontextmanager
async def fake_host(data_dir: Path) -> AsyncIterator[FakeHost]:
    run = data_dir / "run"
    run.mkdir()
    fake = FakeHost(run / "host.sock")
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[FakeHost]:
    async with fake_host(tmp_path) as fake:
        yield fake


@pytest.fixture
def environment() -> dict[str, str]:
    """Settings as environment variables; override it in a module for others."""
    return {}


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The control directory of a server that was started once: keys, and a database without anything in it."""
    data_dir = tmp_path_factory.mktemp("installed")
    settings = load(Path(os.devnull), environment={}, flags={"server.data_dir": data_dir})

    async def install() -> None:
        async with started(settings, load_installation(settings), FakeImages()):  # type: ignore[arg-type]
            pass

    asyncio.run(install())
    return settings.control_dir


@pytest.fixture
async def api(tmp_path: Path, host: FakeHost, environment: dict[str, str], installed: Path) -> AsyncIterator[Api]:
    async with served(tmp_path, host, environment, installed) as running:
        yield running


@contextlib.asynccontextmanager
async def served(data_dir: Path, host: FakeHost, environment: dict[str, str], installed: Path) -> AsyncIterator[Api]:
    """A server of the running loop, each of whose answers is looked at (`Checked`)."""
    environment = {"HUTCH_SERVER__SHUTDOWN_GRACE_S": "1", **environment}
    settings = load(Path(os.devnull), environment=environment, flags={"server.data_dir": data_dir})
    # Migrations and keys are most of what a start takes.
    shutil.copytree(installed, settings.control_dir)
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with started(settings, load_installation(settings), FakeImages()) as services:  # type: ignore[arg-type]
        config = server_config(services)
        config.app = checked = Checked(config.app)  # type: ignore[arg-type]
        server = ApiServer(config, services)
        # uvicorn's own loop only looks for signals and takes a while to end; tests do without it.
        server.config.load()
        server.lifespan = server.config.lifespan_class(server.config)
        await server.startup(sockets=[listener])
        own = await identity(services)
        clients: list[httpx.AsyncClient] = []
        running = Api(url, services, host, own, httpx.AsyncClient(verify=NO_TLS), server, clients)
        running.http = running.client(own.token)
        yield running
        for client in clients:
            await client.aclose()
        for listening in server.servers:
            listening.close()
        for connection in list(server.server_state.connections):
            connection.transport.close()
        tasks = list(server.server_state.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert not checked.violations, "answers that are not as documented:\n" + "\n".join(checked.violations)
