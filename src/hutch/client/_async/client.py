"""The client."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import httpx

from hutch.client import models
from hutch.client._async.audit import Audit
from hutch.client._async.bounds import Bounds
from hutch.client._async.commands import Commands
from hutch.client._async.credentials import Credentials
from hutch.client._async.drive import AsyncDrive
from hutch.client._async.drives import Drives
from hutch.client._async.files import Files
from hutch.client._async.image import AsyncImage
from hutch.client._async.images import Images
from hutch.client._async.local import read_file
from hutch.client._async.logins import Logins
from hutch.client._async.sandbox import AsyncSandbox
from hutch.client._async.sandboxes import Sandboxes
from hutch.client._async.session import AsyncSession
from hutch.client._async.snapshot import AsyncSnapshot
from hutch.client._async.snapshots import Snapshots
from hutch.client._async.system import System
from hutch.client._async.teams import Teams
from hutch.client._async.tokens import Tokens
from hutch.client._async.transport import TIMEOUT_S, Http
from hutch.client._async.usage import Usages
from hutch.client._async.waiting import Hook
from hutch.client._async.workers import Workers
from hutch.client.inputs import (
    Duration,
    Mounts,
    NetworkPolicy,
    SandboxResources,
    SnapshotRetention,
    SortOrder,
    Source,
    sandbox_fields,
)
from hutch.client.places import Server, find_server, named_server
from hutch.client.retries import Retry
from hutch.errors import HutchError


class AsyncClient:
    """An asynchronous client of one server. As a context manager it is closed at the end.

    `AsyncClient()` finds the server as the command line does: `HUTCH_URL` and `HUTCH_TOKEN`, else the one of this machine. `url`
    with `token` name one, `data_dir` one of this machine, `server` one that was found. `timeout_s` bounds requests that have no
    longer time of their own; what waits for a command waits for ever. `transport` is what carries requests, for tests and
    proxies; terminals have connections of their own.

    Methods make objects with methods. Below them is the API call by call, with ids in and plain answers out, where nothing is
    resumed: `sandboxes`, `commands`, `files`, `snapshots`, `drives`, `images`, `credentials`, `audit`, `bounds`, `usage`,
    `tokens`, `teams`, `logins`, `workers`.
    """

    def __init__(
        self,
        server: Server | None = None,
        *,
        url: str | None = None,
        token: str | None = None,
        data_dir: str | Path | None = None,
        retry: Retry | None = None,
        timeout_s: float = TIMEOUT_S,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        if server is None:
            given = url is not None or token is not None
            server = named_server(url, token) if given else find_server(Path(data_dir) if data_dir is not None else None)
        self.server = server
        self.http = Http(server, transport, retry=retry, timeout_s=timeout_s)
        self.sandboxes = Sandboxes(self.http)
        self.commands = Commands(self.http)
        self.files = Files(self.http)
        self.credentials = Credentials(self.http)
        self.snapshots = Snapshots(self.http)
        self.drives = Drives(self.http)
        self.audit = Audit(self.http)
        self.bounds = Bounds(self.http)
        self.tokens = Tokens(self.http)
        self.teams = Teams(self.http)
        self.logins = Logins(self.http)
        self.images = Images(self.http)
        self.usage = Usages(self.http)
        self.workers = Workers(self.http)
        self._system = System(self.http)

    # -- sandboxes -------------------------------------------------------------------------------------

    async def create_sandbox(
        self,
        *,
        name: str | None = None,
        image: str | None = None,
        source: Source | None = None,
        ports: Sequence[int] | None = None,
        execution_time_limit: Duration | None = None,
        resources: SandboxResources | None = None,
        persistent: bool | None = None,
        network_policy: NetworkPolicy | None = None,
        env: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        mounts: Mounts | None = None,
        snapshot_expiration: Duration | None = None,
        snapshot_retention: SnapshotRetention | None = None,
        region: str | None = None,
        disk_bytes: int | None = None,
        isolation: str | None = None,
        budget: Mapping[str, int] | None = None,
        on_resume: Hook[AsyncSandbox] | None = None,
    ) -> AsyncSandbox:
        """A new sandbox that runs. `execution_time_limit` (seconds) is the life of each session, `mounts` a drive for each path,
        `env` what all its commands find set, `budget` what it may use in all (`active_cpu_us`, …), `isolation` the
        backend that it always runs under. Never sent twice after it may have arrived.

        Raises `ConflictError` for a name that is taken or a backend that is not offered, `BadRequestError`, `UnavailableError`
        (`host_full`).
        """
        fields = sandbox_fields(
            name=name,
            image=image,
            source=source,
            ports=ports,
            execution_time_limit=execution_time_limit,
            resources=resources,
            persistent=persistent,
            network_policy=network_policy,
            env=env,
            tags=tags,
            mounts=mounts,
            snapshot_expiration=snapshot_expiration,
            snapshot_retention=snapshot_retention,
            region=region,
            disk_bytes=disk_bytes,
            isolation=isolation,
            budget=budget,
        )
        return AsyncSandbox(self, await self.sandboxes.create(**fields), on_resume=on_resume)

    async def get_sandbox(self, name: str, *, on_resume: Hook[AsyncSandbox] | None = None) -> AsyncSandbox:
        """A sandbox that there is, running or not. Raises `NotFoundError`."""
        return AsyncSandbox(self, await self.sandboxes.get(name), on_resume=on_resume)

    async def resume_sandbox(self, name: str, *, on_resume: Hook[AsyncSandbox] | None = None) -> AsyncSandbox:
        """A sandbox that there is, running. Raises `BadRequestError`, `GoneError` (`snapshot_not_found`)."""
        found = await self.get_sandbox(name, on_resume=on_resume)
        return await found.resume()

    async def get_or_create_sandbox(
        self, name: str, *, resume: bool = True, on_resume: Hook[AsyncSandbox] | None = None, **fields: Any
    ) -> tuple[AsyncSandbox, bool]:
        """The sandbox of that name, made with `fields` (as in `create_sandbox`) if there is none, and whether it was made. One
        whose snapshot is gone is made anew. Of several callers at once one makes it, and all get it."""
        try:
            if resume:
                return await self.resume_sandbox(name, on_resume=on_resume), False
            return await self.get_sandbox(name, on_resume=on_resume), False
        except HutchError as error:
            if error.code == "snapshot_not_found":
                await self.sandboxes.delete(name)
            elif error.status != 404:
                raise
        try:
            return await self.create_sandbox(name=name, on_resume=on_resume, **fields), True
        except HutchError as error:
            if error.status != 409 or error.code != "conflict":
                raise
        return await self.get_sandbox(name, on_resume=on_resume), False

    async def fork_sandbox(
        self,
        source_sandbox: str,
        *,
        name: str | None = None,
        memory: bool = False,
        count: int = 1,
        on_resume: Hook[AsyncSandbox] | None = None,
        **overrides: Any,
    ) -> list[AsyncSandbox]:
        """`count` sandboxes with another's configuration, from its current snapshot, or with `memory` where its session is, with
        all its processes. `overrides` (as in `create_sandbox`) replace what would be copied."""
        fields = sandbox_fields(**overrides)
        forks = await self.sandboxes.fork(source_sandbox, name, memory=memory, count=count, **fields)
        return [AsyncSandbox(self, fork, on_resume=on_resume) for fork in forks]

    async def query_sandboxes(
        self,
        *,
        sort_by: Literal["createdAt", "name", "statusUpdatedAt", "currentSnapshotId"] = "createdAt",
        sort_order: SortOrder = "desc",
        name_prefix: str | None = None,
        tag: tuple[str, str] | None = None,
        status: Literal["running", "stopping", "stopped"] | None = None,
    ) -> AsyncGenerator[models.Sandbox, None]:
        """The project's sandboxes, as records, page after page as they are asked for. `name_prefix` only by name, `status` only
        by `createdAt`."""
        query: dict[str, str] = {"sortBy": sort_by, "sortOrder": sort_order}
        if name_prefix is not None:
            query["namePrefix"] = name_prefix
        if tag is not None:
            query["tags"] = ":".join(tag)
        if status is not None:
            query["status"] = status
        async for record in self.sandboxes.all(**query):
            yield record

    async def get_session(self, session_id: str) -> AsyncSession:
        """A session, alive or over. Raises `NotFoundError`."""
        return AsyncSession(self, await self.sandboxes.session(session_id))

    async def query_sessions(
        self, *, name: str | None = None, sort_order: SortOrder = "desc"
    ) -> AsyncGenerator[AsyncSession, None]:
        """The project's sessions, or those of the sandbox `name`."""
        async for record in self.sandboxes.sessions(name, sortOrder=sort_order):
            yield AsyncSession(self, record)

    # -- snapshots -------------------------------------------------------------------------------------

    async def get_snapshot(self, snapshot_id: str) -> AsyncSnapshot:
        """Raises `NotFoundError`."""
        return AsyncSnapshot(self, await self.snapshots.get(snapshot_id))

    async def query_snapshots(
        self, *, name: str | None = None, sort_order: SortOrder = "desc"
    ) -> AsyncGenerator[AsyncSnapshot, None]:
        """The project's snapshots, or those of the sandbox `name`; deleted ones too."""
        async for record in self.snapshots.all(name, sortOrder=sort_order):
            yield AsyncSnapshot(self, record)

    async def import_snapshot(self, archive: AsyncIterable[bytes] | Path, *, image: str | None = None) -> AsyncSnapshot:
        """A new snapshot of a tar as `export` makes it, or of a file with one, over an image (default: the server's)."""
        content = read_file(archive) if isinstance(archive, Path) else archive
        return AsyncSnapshot(self, await self.snapshots.load(content, image))

    # -- drives ----------------------------------------------------------------------------------------

    async def get_drive(self, name_or_id: str) -> AsyncDrive:
        """Raises `NotFoundError`."""
        return AsyncDrive(self, await self.drives.get(name_or_id))

    async def get_or_create_drive(self, name: str, *, max_size_bytes: int | None = None, region: str | None = None) -> AsyncDrive:
        """A drive; made if there is none of that name. Raises `ConflictError` for one of another size or region."""
        return AsyncDrive(self, await self.drives.get_or_create(name, max_size_bytes=max_size_bytes, region=region))

    async def query_drives(
        self,
        *,
        sort_by: Literal["createdAt", "updatedAt", "name"] = "createdAt",
        sort_order: SortOrder = "desc",
        name_prefix: str | None = None,
    ) -> AsyncGenerator[AsyncDrive, None]:
        """The project's drives."""
        query: dict[str, str] = {"sortBy": sort_by, "sortOrder": sort_order}
        if name_prefix is not None:
            query["namePrefix"] = name_prefix
        async for record in self.drives.all(**query):
            yield AsyncDrive(self, record)

    # -- images ----------------------------------------------------------------------------------------

    async def list_images(self) -> list[AsyncImage]:
        """The server's own, then those of registries, by name."""
        return [AsyncImage(self, record) for record in await self.images.list()]

    async def pull_image(self, reference: str, *, name: str | None = None, shared: bool = False) -> AsyncImage:
        """Fetch an image from its registry, however long that takes; sandboxes can start from it then."""
        return AsyncImage(self, await self.images.pull(reference, name=name, shared=shared))

    # -- the server ------------------------------------------------------------------------------------

    async def whoami(self) -> models.Identity:
        """Team, project and role of the token. Raises `UnauthorizedError`."""
        return await self._system.whoami()

    async def health(self) -> models.Health:
        """Answers while a create would succeed. Raises `UnavailableError` with the reason otherwise."""
        return await self._system.health()

    async def aclose(self) -> None:
        """Close all connections. Streams that are read break off."""
        await self.http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        # Never the token.
        return f"{type(self).__name__}({self.server.url!r})"
