"""The client: one object per noun over one connection pool."""

from __future__ import annotations

from types import TracebackType
from typing import Self

import httpx

from hutch.client.audit import Audit
from hutch.client.bounds import Bounds
from hutch.client.commands import Commands
from hutch.client.credentials import Credentials
from hutch.client.drives import Drives
from hutch.client.files import Files
from hutch.client.images import Images
from hutch.client.places import Server
from hutch.client.sandboxes import Sandboxes
from hutch.client.snapshots import Snapshots
from hutch.client.tokens import Tokens
from hutch.client.transport import Http


class Client:
    """Use as `async with Client(find_server()) as client: …`. `transport` replaces the network, for tests."""

    def __init__(self, server: Server, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.server = server
        self.http = Http(server, transport)
        self.sandboxes = Sandboxes(self.http)
        self.commands = Commands(self.http)
        self.files = Files(self.http)
        self.credentials = Credentials(self.http)
        self.snapshots = Snapshots(self.http)
        self.drives = Drives(self.http)
        self.audit = Audit(self.http)
        self.bounds = Bounds(self.http)
        self.tokens = Tokens(self.http)
        self.images = Images(self.http)

    async def close(self) -> None:
        await self.http.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()
