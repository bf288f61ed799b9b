"""Sandboxes that the control plane makes for workers: begun, used and ended in one place.

    opened ─▶ put files ─▶ run programs ─▶ read files ─▶ seal, or end

They are sandboxes of the worker's project: metered, and bounded by its policies and budgets, but in none of its lists.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from hutch import ids
from hutch.api import images
from hutch.api.auth import SessionOwner
from hutch.api.commands import call, host_errors, open_stream
from hutch.api.network_policy import checked, kept, replaced
from hutch.api.sandboxes import delete, find_with_session
from hutch.api.services import ResolvedImage, Services, stopped
from hutch.api.snapshots import check_quota, usable
from hutch.api.starts import boot
from hutch.control.records import FIRST_GENERATION, SandboxConfig, Scope, Snapshot
from hutch.control.requests import MEMORY_MB_PER_VCPU
from hutch.errors import BadRequestError, GoneError, HutchError, NotFoundError, PayloadTooLargeError
from hutch.host.protocol import (
    ArchiveWrite,
    CommandRecord,
    CommandStart,
    CommandStdin,
    FileRead,
    SnapshotRequest,
    SnapshotTaken,
)
from hutch.wire import Stream
from hutch.wire.connection import Data, Message

log = logging.getLogger(__name__)

PIECE_BYTES = 256 * 1024
STDIN_TIMEOUT_MS = 20_000
OFFERED_BYTES = 16 * 1024
"""What a pipe takes although nobody reads it."""
KILLED = 137

Written = Callable[[int, bytes], Awaitable[None]]
"""Called with what a program writes: 1 or 2 for the stream, and the bytes."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended; `timed_out` when it was ended for running too long."""

    exit_code: int
    timed_out: bool


class Program:
    """A program that was started."""

    def __init__(self, services: Services, start: CommandStart, stream: Stream) -> None:
        self._services = services
        self._start = start
        self._stream = stream
        self._written = 0

    async def offer(self, data: bytes) -> bool:
        """Write the beginning of what will be its standard input, without the end that it waits for; False when the program, or
        its sandbox, is over. Raises `HutchError` for anything else."""
        try:
            answer = await self._write(data[:OFFERED_BYTES], 0, close=False)
        except (BadRequestError, GoneError, NotFoundError):
            return False
        self._written = answer.get("written", 0)
        return True

    async def write(self, data: bytes) -> None:
        """Write all of its standard input, for as long as it takes. A program that is over reads nothing. Raises `HutchError`."""
        with contextlib.suppress(NotFoundError):
            while True:
                answer = await self._write(data, self._written, close=True)
                self._written = answer.get("written", self._written)
                if not answer.get("stalled"):
                    return

    async def _write(self, data: bytes, offset: int, *, close: bool) -> dict[str, int]:
        params = CommandStdin(self._start.session_id, self._start.command_id, offset, STDIN_TIMEOUT_MS, close=close)
        stream = await open_stream(self._services, "command.stdin", params)
        try:
            with host_errors():
                for at in range(offset, len(data), PIECE_BYTES):
                    await stream.send_data(data[at : at + PIECE_BYTES], channel=0)
                stream.send_end()
                answer: dict[str, int] = await stream.reply()
                return answer
        finally:
            stream.cancel()

    async def finish(self, written: Written) -> Ended:
        """Its output from the start to its end. Raises `HutchError` when the sandbox ends before."""
        final: CommandRecord | None = None
        try:
            with host_errors():
                async for item in self._stream:
                    if isinstance(item, Data):
                        await written(item.channel, item.data)
                    elif isinstance(item, Message):
                        final = item.decode(CommandRecord)
        finally:
            self._stream.cancel()
        if final is None or final.exit_code is None:
            raise stopped()
        late = final.exit_code == KILLED and (final.duration_ms or 0) >= (self._start.timeout_ms or 0)
        return Ended(final.exit_code, late)


class OwnSandbox:
    """One running sandbox."""

    def __init__(self, services: Services, scope: Scope, name: str, session_id: str) -> None:
        self._services = services
        self._scope = scope
        self.name = name
        self.session_id = session_id

    async def put(self, files: Mapping[str, bytes], directory: str, *, sudo: bool = False) -> None:
        """Write files below a directory, which is made if need be. Raises `HutchError`."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(content), 0o644
                archive.addfile(entry, io.BytesIO(content))
        await self.unpack(buffer.getvalue(), directory, gzip=False, sudo=sudo)

    async def unpack(self, archive: bytes, directory: str, *, gzip: bool, sudo: bool = False) -> None:
        """Unpack a tar archive. Raises `BadRequestError` for what is no such archive, or has what none may have."""
        limits = self._services.settings.sandbox
        params = ArchiveWrite(self.session_id, directory.encode(), gzip, limits.max_archive_bytes, limits.max_archive_files, sudo)
        stream = await open_stream(self._services, "archive.write", params)
        try:
            with host_errors():
                for at in range(0, len(archive), PIECE_BYTES):
                    await stream.send_data(archive[at : at + PIECE_BYTES], channel=0)
                stream.send_end()
                await stream.reply()
        finally:
            stream.cancel()

    async def run(
        self,
        argv: Sequence[str],
        *,
        cwd: str,
        timeout_ms: int,
        written: Written,
        env: Mapping[str, str] | None = None,
    ) -> Ended:
        """Run a program to its end. Raises `HutchError` when the sandbox ends before."""
        program = await self.start(argv, cwd=cwd, timeout_ms=timeout_ms, env=env)
        return await program.finish(written)

    async def start(
        self,
        argv: Sequence[str],
        *,
        cwd: str,
        timeout_ms: int,
        env: Mapping[str, str] | None = None,
        stdin: bool = False,
    ) -> Program:
        """Start a program. Whoever does has it `finish`. Raises `HutchError`."""
        start = CommandStart(
            session_id=self.session_id,
            command_id=ids.command_id(),
            argv=[argument.encode() for argument in argv],
            cwd=cwd.encode(),
            env=dict(env or {}),
            timeout_ms=timeout_ms,
            stdin=stdin,
            follow=True,
        )
        stream = await open_stream(self._services, "command.start", start)
        try:
            with host_errors():
                await stream.reply(CommandRecord)
        except BaseException:
            stream.cancel()
            raise
        return Program(self._services, start, stream)

    async def read(self, path: str, limit: int) -> bytes:
        """A file's bytes. Raises `NotFoundError`, and `PayloadTooLargeError` beyond `limit` bytes."""
        stream = await open_stream(self._services, "file.read", FileRead(self.session_id, path.encode()))
        content = bytearray()
        try:
            with host_errors():
                async for item in stream:
                    if isinstance(item, Data):
                        content += item.data
                        if len(content) > limit:
                            raise PayloadTooLargeError("payload_too_large", f"{path} has more than {limit} bytes.")
        finally:
            stream.cancel()
        return bytes(content)

    async def set_policy(self, policy: object) -> None:
        """Replace its network policy; it holds when this returns. Raises `HutchError`."""
        assert self._scope.project_id is not None
        owner = SessionOwner(self.session_id, self._scope.team_id, self._scope.project_id)
        await replaced(self._services, owner, msgspec.json.encode(policy))

    async def seal(self) -> Snapshot:
        """Keep its files as a snapshot, which ends it. Raises `HutchError`."""
        services = self._services
        assert self._scope.project_id is not None
        await check_quota(services, self._scope)
        taken = await call(services, "session.snapshot", SnapshotRequest(session_id=self.session_id), SnapshotTaken)
        await services.apply(taken.session, expiration_ms=0)
        services.snapshots_due.set()
        async with services.database.read() as connection:
            return await usable(connection, self._scope, taken.snapshot.snapshot_id, services.clock())


@contextlib.asynccontextmanager
async def opened(
    services: Services,
    scope: Scope,
    name: str,
    *,
    policy: object,
    timeout_ms: int,
    worker_id: str,
    snapshot_id: str | None = None,
    budget: dict[str, int] | None = None,
) -> AsyncIterator[OwnSandbox]:
    """A sandbox of the workers' image, or from a snapshot, under a network policy, perhaps with a budget of its own; it is gone
    when the block ends. Raises `HutchError`."""
    name = f"{name}-{services.process_id}"
    settings = services.settings
    vcpus = settings.workers.vcpus
    snapshot: Snapshot | None = None
    if snapshot_id is not None:
        async with services.database.read() as connection:
            snapshot = await usable(connection, scope, snapshot_id, services.clock())
        image = await images.resolve_exact(services, snapshot.image)
    else:
        image = base_image(services)
    config = SandboxConfig(
        image=image.pinned,
        timeout_ms=timeout_ms,
        vcpus=vcpus,
        memory_mb=vcpus * MEMORY_MB_PER_VCPU,
        persistent=False,
        runtime="node22",
        region=settings.sandbox.region,
        cwd=image.cwd,
        budget=budget,
    )
    found = await checked(services, scope, msgspec.json.encode(policy))
    config = replace(config, network_policy=kept(found, FIRST_GENERATION))
    made = await boot(
        services, scope, name, config, [], image=image, snapshot=snapshot, snapshot_stays=False, worker_id=worker_id
    )
    try:
        yield OwnSandbox(services, scope, name, made["session"]["id"])
    finally:
        with contextlib.suppress(NotFoundError):
            try:
                record, session = await find_with_session(services, scope, name)
                await delete(services, scope, record, session)
            except HutchError as error:
                if isinstance(error, NotFoundError):
                    raise
                log.warning("sandbox %s of a worker could not be deleted: %s", name, error.message)


def owner_of(name: str) -> str:
    """The API process that a sandbox was made by."""
    return name.rpartition("-")[2]


def base_image(services: Services) -> ResolvedImage:
    """What workers are built on."""
    image = services.images.resolve(services.settings.workers.image or services.settings.sandbox.default_image, None)
    return ResolvedImage(image.pinned, image.cwd)
