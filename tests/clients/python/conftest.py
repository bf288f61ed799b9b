"""The real, unmodified `vercel-sandbox` package, pointed at the server by its own option."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from vercel.sandbox import SandboxClient, SandboxCredentials, SandboxServiceOptions
from vercel.sandbox.sync import SandboxServiceOptions as SyncOptions
from vercel.sandbox.sync import SyncSandboxClient

from hutch.client import Server
from tests.conftest import RunningServer


def credentials(server: Server) -> SandboxCredentials:
    return SandboxCredentials(token=server.token, team_id=server.team_id, project_id=server.project_id)


@pytest.fixture
async def sdk(watched: RunningServer, leak_check: None) -> AsyncIterator[SandboxClient]:
    async def factory() -> SandboxCredentials:
        return credentials(watched.where)

    client = SandboxClient.create(options=SandboxServiceOptions(base_url=f"{watched.where.url}/api", credentials_factory=factory))
    yield client
    await client.aclose()


@pytest.fixture
def sync_sdk(watched: RunningServer, leak_check: None) -> Iterator[SyncSandboxClient]:
    options = SyncOptions(base_url=f"{watched.where.url}/api", credentials_factory=lambda: credentials(watched.where))
    client = SyncSandboxClient.create(options=options)
    yield client
    client.close()
