"""A host that speaks the real protocol over a real socket, with scripted machines instead of sandboxes.

Programs it knows, by `argv[0]`: `echo` (prints its arguments), `both` (both streams), `exit N`, `pieces` (a character
in two pieces), `nul` (bytes that are not text), `cat` (standard input to output), `env`, `wait` (until killed), `flood N`
(N MiB), `die` (prints, then the host's connection breaks), `gone` (prints, then the session ends), `node` (a worker: what
`FakeHost.worker` makes of its job, without one its input). Everything else does not exist.
"""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import tarfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from hutch import ids
from hutch.blobs.jobs import Verified
from hutch.errors import BadRequestError, ConflictError, GoneError, HutchError, NotFoundError, UnavailableError
from hutch.host.protocol import (
    LIVE,
    MAX_LARGE_BYTES,
    ArchiveWrite,
    AuditPage,
    AuditRead,
    Budgets,
    BudgetState,
    BudgetStates,
    CommandGet,
    CommandKill,
    CommandRecord,
    CommandRef,
    CommandStart,
    CommandStdin,
    CommandUsage,
    CredentialChange,
    DriveMode,
    DriveMount,
    DriveRecord,
    DriveRef,
    DriveSpec,
    DriveUsage,
    ExtendRequest,
    FileMkdir,
    FileRead,
    Forget,
    ForwardingKey,
    HostInfo,
    ImageBuild,
    ImageFound,
    ImagePull,
    ImageQuery,
    ImageRecord,
    ImageRemove,
    IngressKey,
    IngressRoutes,
    IngressState,
    IngressUpdate,
    IngressWake,
    NetworkApplied,
    NetworkSpec,
    NetworkUpdate,
    NumberedWindow,
    PersistRequest,
    PtyOpen,
    RuleTraffic,
    SessionEvent,
    SessionRecord,
    SessionRef,
    SessionSpec,
    SessionStatus,
    SessionUsage,
    SnapshotExport,
    SnapshotImport,
    SnapshotMethod,
    SnapshotRecord,
    SnapshotRef,
    SnapshotRequest,
    SnapshotTaken,
    StopRequest,
    Traffic,
)
from hutch.metering.budgets import Budget, UsageOwner, sandbox_key
from hutch.metering.notices import Notice, NumberedNotice
from hutch.metering.quantities import Quantities
from hutch.metering.windows import UsageWindow
from hutch.wire import Hello, Role, Stream, serve_unix
from hutch.wire.connection import Data, Message

HELLO = Hello(version=1, role=Role.HOST, window=256 * 1024, max_streams=4096)
PULLED_AT = 1_700_000_000_007


@dataclass
class FakeCommand:
    record: CommandRecord
    output: list[tuple[int, bytes]] = field(default_factory=list)
    stdin: bytearray = field(default_factory=bytearray)
    has_stdin: bool = False
    stdin_closed: bool = False
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def emit(self, channel: int, data: bytes) -> None:
        async with self.changed:
            self.output.append((channel, data))
            self.changed.notify_all()

    async def finish(self, code: int) -> None:
        async with self.changed:
            if self.record.exit_code is None:
                self.record = msgspec.structs.replace(self.record, exit_code=code, duration_ms=7)
            self.changed.notify_all()

    async def finished(self) -> CommandRecord:
        async with self.changed:
            await self.changed.wait_for(lambda: self.record.exit_code is not None)
        return self.record


async def no_worker(job: Any) -> tuple[bytes, int]:
    """A worker that does nothing: what it prints and its exit code."""
    return b"", 0


class FakeHost:
    """Start with `await start()`; tests look at and change its attributes."""

    def __init__(self, socket_path: Path) -> None:
        self.path = socket_path
        self.host_id = "host_fake"
        self.ready = True
        self.sessions: dict[str, SessionRecord] = {}
        self.specs: dict[str, SessionSpec] = {}
        self.commands: dict[str, dict[str, FakeCommand]] = {}
        self.files: dict[str, dict[bytes, bytes]] = {}
        self.events: list[SessionEvent] = []
        self.calls: list[str] = []
        self.refuse_create: HutchError | None = None
        self.refuse_memory: HutchError | None = None
        self.break_create = False
        self.stall_stdin = False
        self.networks: dict[str, NetworkSpec] = {}
        self.flows = (0, 0)
        self.refuse_network: HutchError | None = None
        self.break_network = ""
        self.network_gate = asyncio.Event()
        self.network_gate.set()
        self.changes: list[CredentialChange] = []
        self.refuse_change: HutchError | None = None
        self.audits: dict[str, list[str]] = {}
        self.traffic = Traffic(up_bytes=0, down_bytes=0, flows=0, egress_bytes=0, ingress_bytes=0, tallies={})
        self.snapshots: dict[str, SnapshotRecord] = {}
        self.refuse_delete: HutchError | None = None
        self.drives: dict[str, DriveRecord] = {}
        self.refuse_drive: HutchError | None = None
        self.break_drive = ""
        self.refuse_verify: HutchError | None = None
        self.refuse_import: HutchError | None = None
        self.import_gate = asyncio.Event()
        self.import_gate.set()
        self.tars: dict[str, bytes] = {}
        self.images: dict[tuple[str, str], ImageRecord] = {}
        self.builds: list[ImageBuild] = []
        self.pulls: list[ImagePull] = []
        self.refuse_pull: HutchError | None = None
        self.pull_gate = asyncio.Event()
        self.pull_gate.set()
        self.drive_gate = asyncio.Event()
        self.drive_gate.set()
        self.lose_snapshot_answer = False
        self.forwarding_key: ForwardingKey | None = None
        self.routes: dict[str, IngressRoutes] = {}
        self.refuse_routes: HutchError | None = None
        self.ingress_key = ""
        self.ingress_state: IngressState | None = None
        self.wakes: asyncio.Queue[str] = asyncio.Queue()
        self.not_waked: asyncio.Queue[str] = asyncio.Queue()
        self.create_gate = asyncio.Event()
        self.create_gate.set()
        self.creating = asyncio.Event()
        self.sizes: list[list[int]] = []
        self.ptys: list[PtyOpen] = []
        self.forgotten: set[str] = set()
        self.scrubbed = 0
        self.refuse_scrub: HutchError | None = None
        self.pty_closed = asyncio.Event()
        self.used: dict[str, Quantities] = {}
        self.passed: dict[str, dict[str, RuleTraffic]] = {}
        self.windows: list[NumberedWindow] = []
        self.delivered = 0
        self.budgets: dict[tuple[str, str], Budget] = {}
        self.spent: dict[str, Quantities] = {}
        self.kept: list[list[Budget]] = []
        self.refuse_budget: HutchError | None = None
        self.budget_gate = asyncio.Event()
        self.budget_gate.set()
        self.budgets_waiting = asyncio.Semaphore(0)
        """Released for each budget that has come, before it passes the gate."""
        self.notices: list[NumberedNotice] = []
        self.worker: Callable[[Any], Awaitable[tuple[bytes, int]]] = no_worker
        self.worker_jobs: list[Any] = []
        self.manifest = b"{}"
        """What a worker is that is loaded."""
        self._event_added = asyncio.Condition()
        self._server: asyncio.AbstractServer | None = None
        self._connections: set[Any] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await serve_unix(self.path, HELLO, self._handle, mode=0o660)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for connection in list(self._connections):
            connection.close("stopped")
        self._connections.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.path.unlink(missing_ok=True)

    def drop_connections(self) -> None:
        for connection in list(self._connections):
            connection.close("dropped")
        self._connections.clear()

    # -- what tests do -------------------------------------------------------------------------------

    async def end(self, session_id: str, status: SessionStatus = SessionStatus.STOPPED, reason: str = "timeout") -> None:
        """A session ends by itself."""
        await self._end(session_id, status, reason)

    def forget(self, session_id: str) -> None:
        del self.sessions[session_id]

    # -- protocol -----------------------------------------------------------------------------------

    async def _handle(self, stream: Stream) -> None:
        self._connections.add(stream.connection)
        self.calls.append(stream.method)
        handler = getattr(self, "_on_" + stream.method.replace(".", "_"), None)
        if handler is None:
            raise BadRequestError("bad_request", f"unknown method {stream.method}")
        await handler(stream)

    def _session(self, session_id: str) -> SessionRecord:
        record = self.sessions.get(session_id)
        if record is None:
            raise NotFoundError("session_not_found", "no such session")
        return record

    def _live(self, session_id: str) -> SessionRecord:
        record = self._session(session_id)
        if record.status is not SessionStatus.RUNNING:
            raise GoneError("sandbox_stopped", "Sandbox has stopped execution and is no longer available")
        return record

    async def _set(self, record: SessionRecord) -> SessionRecord:
        self.sessions[record.session_id] = record
        async with self._event_added:
            self.events.append(SessionEvent(len(self.events) + 1, record))
            self._event_added.notify_all()
        return record

    async def _on_host_info(self, stream: Stream) -> None:
        live = sum(record.status in LIVE for record in self.sessions.values())
        stream.send_reply(
            HostInfo(
                host_id=self.host_id,
                ready=self.ready,
                isolation="gvisor",
                version="1",
                sessions=live,
                pooled=2,
                max_timeout_ms=86_400_000,
                reason="" if self.ready else "filling the pool",
                platform_cpu_us={"host": 1_500_000, "gateway": 500_000, "ingress": 0},
            )
        )

    async def _on_session_create(self, stream: Stream) -> None:
        spec = await stream.value(SessionSpec, MAX_LARGE_BYTES)
        self.creating.set()
        await self.create_gate.wait()
        if self.refuse_create is not None:
            raise self.refuse_create
        if self.refuse_memory is not None and spec.with_memory and spec.source_snapshot is not None:
            raise self.refuse_memory
        if spec.source_snapshot is not None and spec.source_snapshot not in self.snapshots:
            raise GoneError("snapshot_not_found", "The host does not have it.")
        self._mount(spec.mounts)
        now = int(time.time() * 1000)
        record = SessionRecord(
            session_id=spec.session_id,
            sandbox_name=spec.sandbox_name,
            project_id=spec.project_id,
            status=SessionStatus.RUNNING,
            image=spec.image,
            cwd="/vercel",
            vcpus=spec.vcpus,
            memory_mb=spec.memory_mb,
            timeout_ms=spec.timeout_ms,
            requested_at=now,
            started_at=now,
            cgroup="/hutch/x",
            isolation="gvisor",
            source_snapshot=spec.source_snapshot,
            persistent=spec.persistent,
            mounts=spec.mounts,
            sandbox_id=spec.sandbox_id,
            team_id=spec.team_id,
        )
        self.specs[spec.session_id] = spec
        self.networks[spec.session_id] = spec.network
        self.commands[spec.session_id] = {}
        self.files[spec.session_id] = {}
        await self._set(record)
        if self.break_create:
            self.break_create = False
            self.drop_connections()
            return
        stream.send_reply(record)

    async def _on_session_get(self, stream: Stream) -> None:
        stream.send_reply(self._session(stream.params(SessionRef).session_id))

    async def _on_session_list(self, stream: Stream) -> None:
        stream.send_reply({})
        for record in list(self.sessions.values()):
            if record.status in LIVE:
                await stream.send_event(record)

    async def _on_session_stop(self, stream: Stream) -> None:
        request = stream.params(StopRequest)
        record = self._session(request.session_id)
        if record.status in LIVE:
            record = await self._end(request.session_id, SessionStatus.STOPPED, request.reason)
        stream.send_reply(record)

    async def _end(self, session_id: str, status: SessionStatus, reason: str) -> SessionRecord:
        record = self.sessions[session_id]
        assert record.started_at is not None
        stopped = max(int(time.time() * 1000), record.started_at)
        if record.persistent and record.snapshot is None:
            record = msgspec.structs.replace(record, snapshot=self.snapshot(record, SnapshotMethod.AUTOMATIC))
        return await self._set(
            msgspec.structs.replace(
                record,
                status=status,
                stopped_at=stopped,
                requested_stop_at=stopped,
                stop_reason=reason,
                active_cpu_us=1_500,
                ingress_bytes=10,
                egress_bytes=20,
            )
        )

    def snapshot(self, record: SessionRecord, method: SnapshotMethod) -> SnapshotRecord:
        """Keep what a session has."""
        made = SnapshotRecord(
            snapshot_id=ids.snapshot_id(),
            session_id=record.session_id,
            image=record.image,
            size_bytes=1000,
            image_bytes=234,
            created_at=int(time.time() * 1000),
            method=method,
            parent_id=record.source_snapshot,
        )
        self.snapshots[made.snapshot_id] = made
        return made

    async def _on_session_persist(self, stream: Stream) -> None:
        request = stream.params(PersistRequest)
        record = self._session(request.session_id)
        stream.send_reply(await self._set(msgspec.structs.replace(record, persistent=request.persistent)))

    async def _on_session_snapshot(self, stream: Stream) -> None:
        request = stream.params(SnapshotRequest)
        record = self._session(request.session_id)
        if record.status not in LIVE:
            raise GoneError("sandbox_stopped", "gone")
        made = self.snapshot(record, SnapshotMethod.MANUAL)
        if request.memory:
            made = msgspec.structs.replace(made, memory_bytes=5678, for_forks=request.for_forks)
            self.snapshots[made.snapshot_id] = made
        if not request.keep_running:
            self.sessions[record.session_id] = msgspec.structs.replace(record, snapshot=made)
            record = await self._end(record.session_id, SessionStatus.STOPPED, "snapshot")
        if self.lose_snapshot_answer:
            self.lose_snapshot_answer = False
            self.drop_connections()
            return
        stream.send_reply(SnapshotTaken(snapshot=made, session=record))

    async def _on_snapshot_delete(self, stream: Stream) -> None:
        if self.refuse_delete is not None:
            raise self.refuse_delete
        self.snapshots.pop(stream.params(SnapshotRef).snapshot_id, None)
        stream.send_reply({})

    async def _on_snapshot_verify(self, stream: Stream) -> None:
        if self.refuse_verify is not None:
            raise self.refuse_verify
        stream.params(SnapshotRef)
        stream.send_reply(Verified(manifest="m", files=3, bytes=5, compared=True))

    async def _on_snapshot_export(self, stream: Stream) -> None:
        request = stream.params(SnapshotExport)
        stream.send_reply({})
        made = b"a layout" if request.oci else b"a tar"
        await stream.send_data(self.tars.get(request.snapshot_id, made), 1)

    async def _on_snapshot_import(self, stream: Stream) -> None:
        request = stream.params(SnapshotImport)
        if self.refuse_import is not None:
            raise self.refuse_import
        received = b""
        async for item in stream:
            if isinstance(item, Data):
                received += item.data
        if not received:
            raise BadRequestError("invalid_archive", "The archive is empty.")
        self.tars[request.snapshot_id] = received
        made = SnapshotRecord(
            snapshot_id=request.snapshot_id,
            session_id="",
            image=request.image,
            size_bytes=len(received),
            image_bytes=1000,
            created_at=int(time.time() * 1000),
            method=SnapshotMethod.MANUAL,
        )
        self.snapshots[made.snapshot_id] = made
        await self.import_gate.wait()
        stream.send_reply(made)

    async def _on_snapshot_list(self, stream: Stream) -> None:
        stream.send_reply({})
        for record in list(self.snapshots.values()):
            await stream.send_event(record)

    def _holders(self, drive_id: str, *, writing: bool) -> list[str]:
        return [
            record.session_id
            for record in self.sessions.values()
            if record.status in LIVE
            and any(m.drive_id == drive_id and (not writing or m.mode is DriveMode.READ_WRITE) for m in record.mounts)
        ]

    def _mount(self, mounts: list[DriveMount]) -> None:
        for mount in mounts:
            drive = self._drive(mount.drive_id)
            if mount.mode is DriveMode.SNAPSHOT and not drive.written:
                raise ConflictError("drive_not_initialized", "never written")
            if mount.mode is DriveMode.READ_WRITE and self._holders(mount.drive_id, writing=True):
                raise ConflictError("drive_attached", "somebody has it")
        for mount in mounts:
            if mount.mode is DriveMode.READ_WRITE:
                self.drives[mount.drive_id] = msgspec.structs.replace(self.drives[mount.drive_id], written=True)

    def _drive(self, drive_id: str) -> DriveRecord:
        drive = self.drives.get(drive_id)
        if drive is None:
            raise NotFoundError("not_found", "no such drive")
        return drive

    def _breaks(self, when: str) -> bool:
        """`break_drive`: the connection breaks "before" or "after" a drive is made or removed."""
        if self.break_drive != when:
            return False
        self.break_drive = ""
        self.drop_connections()
        return True

    async def _on_drive_create(self, stream: Stream) -> None:
        spec = stream.params(DriveSpec)
        if self.refuse_drive is not None:
            raise self.refuse_drive
        await self.drive_gate.wait()
        if self._breaks("before"):
            return
        if spec.source_id is not None and spec.drive_id not in self.drives and not self._drive(spec.source_id).written:
            raise ConflictError("drive_not_initialized", "never written")
        made = DriveRecord(drive_id=spec.drive_id, size_bytes=spec.size_bytes, created_at=1, written=spec.source_id is not None)
        self.drives.setdefault(spec.drive_id, made)
        if not self._breaks("after"):
            stream.send_reply(made)

    async def _on_drive_usage(self, stream: Stream) -> None:
        if self.refuse_drive is not None:
            raise self.refuse_drive
        stream.send_reply(DriveUsage(len(self._drive(stream.params(DriveRef).drive_id).drive_id)))

    async def _on_drive_delete(self, stream: Stream) -> None:
        drive_id = stream.params(DriveRef).drive_id
        if self._breaks("before"):
            return
        if self._holders(drive_id, writing=False):
            raise ConflictError("drive_attached", "mounted")
        self.drives.pop(drive_id, None)
        if not self._breaks("after"):
            stream.send_reply({})

    async def _on_image_resolve(self, stream: Stream) -> None:
        """References are names, as they were pulled; `exact` ones have a digest."""
        query = stream.params(ImageQuery)
        for (project, name), record in self.images.items():
            pinned = f"{name.rpartition(':')[0]}@{record.digest}"
            if (query.exact and query.reference == pinned) or (project in (query.project_id, "") and query.reference == name):
                stream.send_reply(ImageFound(pinned=pinned, cwd=record.cwd))
                return
        raise NotFoundError("image_not_found", f"The host has no image {query.reference}.")

    async def _on_image_pull(self, stream: Stream) -> None:
        pull = stream.params(ImagePull)
        self.pulls.append(pull)
        await self.pull_gate.wait()
        if self.refuse_pull is not None:
            raise self.refuse_pull
        record = ImageRecord(
            name=pull.name or pull.reference,
            digest=f"sha256:{len(self.pulls):064x}",
            source=pull.reference,
            shared=not pull.project_id,
            size_bytes=4096,
            pulled_at=PULLED_AT,
            user="joe",
            home="/home/joe",
            cwd="/srv",
            env={"A": "b"},
            layers=[("sha256:e", 4096)],
        )
        self.images[pull.project_id, record.name] = self.images[pull.project_id, pull.reference] = record
        stream.send_reply(record)

    async def _on_image_build(self, stream: Stream) -> None:
        build = stream.params(ImageBuild)
        self.builds.append(build)
        if self.refuse_pull is not None:
            raise self.refuse_pull
        user = build.user
        record = ImageRecord(
            name=f"{build.name}:latest",
            digest=f"sha256:{len(self.builds):064x}",
            source="",
            shared=not build.project_id,
            size_bytes=4096,
            pulled_at=PULLED_AT,
            user=user.name if user is not None else "joe",
            home=user.home if user is not None else "/home/joe",
            cwd=build.cwd or "/srv",
            env=build.env,
            labels=build.labels,
            cmd=build.cmd or [],
            entrypoint=build.entrypoint or [],
            layers=[("sha256:e", 4096), ("sha256:f", 4096)],
        )
        self.images[build.project_id, record.name] = record
        stream.send_reply(record)

    async def _on_image_list(self, stream: Stream) -> None:
        project_id = stream.params(dict[str, str])["project_id"]
        stream.send_reply({})
        for (project, name), record in self.images.items():
            if project in (project_id, ""):
                await stream.send_event(msgspec.structs.replace(record, name=name))

    async def _on_image_remove(self, stream: Stream) -> None:
        request = stream.params(ImageRemove)
        if self.images.pop((request.project_id, request.name), None) is None:
            raise NotFoundError("image_not_found", "The host has no such name.")
        stream.send_reply({})

    async def _on_session_extend(self, stream: Stream) -> None:
        request = stream.params(ExtendRequest)
        record = self._live(request.session_id)
        stream.send_reply(await self._set(msgspec.structs.replace(record, timeout_ms=record.timeout_ms + request.duration_ms)))

    async def _on_session_network(self, stream: Stream) -> None:
        """`break_network`: the connection breaks "before" or "after" the policy is enforced."""
        update = await stream.value(NetworkUpdate, MAX_LARGE_BYTES)
        await self.network_gate.wait()
        self._live(update.session_id)
        if self.refuse_network is not None:
            raise self.refuse_network
        breaks, self.break_network = self.break_network, ""
        if breaks != "before":
            self.networks[update.session_id] = update.network
        if breaks:
            self.drop_connections()
            return
        closed, kept = self.flows
        generation = self.networks[update.session_id].generation
        stream.send_reply(NetworkApplied(generation=generation, closed_flows=closed, kept_flows=kept))

    async def _on_credentials_change(self, stream: Stream) -> None:
        change = stream.params(CredentialChange)
        if self.refuse_change is not None:
            raise self.refuse_change
        self.changes.append(change)
        for session_id, network in self.networks.items():
            # The policy is JSON of ours, so that a name in it can't be anything else.
            named = network.policy is not None and f'"credential":"{change.name}"' in network.policy
            if named and self.sessions[session_id].project_id == change.project_id:
                others = {name: value for name, value in network.credentials.items() if name != change.name}
                values = others | ({change.name: change.value} if change.value is not None else {})
                self.networks[session_id] = msgspec.structs.replace(network, credentials=values)
        stream.send_reply({})

    async def _on_forwarding_key(self, stream: Stream) -> None:
        self.forwarding_key = stream.params(ForwardingKey)
        stream.send_reply({})

    async def _on_ingress_routes(self, stream: Stream) -> None:
        update = await stream.value(IngressUpdate, MAX_LARGE_BYTES)
        if self.refuse_routes is not None:
            raise self.refuse_routes
        if update.complete:
            self.routes = {}
        self.routes |= {routes.sandbox_id: routes for routes in update.sandboxes}
        stream.send_reply({})

    async def _on_ingress_key(self, stream: Stream) -> None:
        self.ingress_key = stream.params(IngressKey).key
        stream.send_reply({})

    async def _on_ingress_wakes(self, stream: Stream) -> None:
        stream.send_reply({})
        while True:
            await stream.send_event(IngressWake(await self.wakes.get()))

    async def _on_ingress_state(self, stream: Stream) -> None:
        if self.ingress_state is None:
            raise UnavailableError("ingress_unavailable", "The ingress is gone. Try again.")
        stream.send_reply(self.ingress_state)

    async def _on_ingress_failed(self, stream: Stream) -> None:
        self.not_waked.put_nowait(stream.params(IngressWake).sandbox_id)
        stream.send_reply({})

    async def _on_audit_read(self, stream: Stream) -> None:
        request = stream.params(AuditRead)
        records = self.audits.get(request.sandbox_id, [])[request.after :][: request.limit]
        stream.send_reply(AuditPage(records=records, next=request.after + len(records)))

    async def _on_session_traffic(self, stream: Stream) -> None:
        if stream.params(SessionRef).session_id not in self.sessions:
            raise NotFoundError("session_not_found", "The host has no such session.")
        stream.send_reply(self.traffic)

    # -- usage --------------------------------------------------------------------------------------

    async def close_window(
        self, session_id: str, *, final: bool = False, at_ms: int | None = None, **used: int
    ) -> NumberedWindow:
        """The next window of a session, told to whoever follows."""
        session = self.sessions[session_id]
        number = 1 + sum(told.window.session_id == session_id for told in self.windows)
        began = at_ms or session.started_at or 0
        window = UsageWindow(
            session_id=session_id,
            number=number,
            from_ms=began,
            to_ms=began + 1000,
            final=final,
            quantities=Quantities(**used),
        )
        spec = self.specs[session_id]
        owner = UsageOwner(spec.team_id, spec.project_id, spec.sandbox_id)
        told = NumberedWindow(len(self.windows) + 1, owner, window, self.passed.get(session_id, {}) if final else {})
        await self.tell(told)
        return told

    async def tell(self, told: NumberedWindow) -> None:
        async with self._event_added:
            self.windows.append(told)
            self._event_added.notify_all()

    async def tell_again(self) -> NumberedWindow:
        """The last window once more, as a host does that did not hear that it was taken."""
        told = msgspec.structs.replace(self.windows[-1], seq=len(self.windows) + 1)
        await self.tell(told)
        return told

    async def _on_usage_read(self, stream: Stream) -> None:
        session = self.sessions.get(stream.params(SessionRef).session_id)
        if session is None:
            raise NotFoundError("usage_not_found", "The host has no usage of the session.")
        began, name = session.started_at or 0, session.session_id
        quantities = self.used.get(name, Quantities(creations=1))
        network = self.passed.get(name, {})
        stream.send_reply(SessionUsage(name, began, began + 1, session.status not in LIVE, quantities, network))

    async def _on_usage_command(self, stream: Stream) -> None:
        request = stream.params(CommandRef)
        found = self.commands.get(request.session_id, {}).get(request.command_id)
        if found is None:
            raise NotFoundError("not_found", "The host has no usage of the command.")
        record = found.record
        stream.send_reply(
            CommandUsage(
                session_id=record.session_id,
                command_id=record.command_id,
                started_at=record.started_at,
                final=record.exit_code is not None,
                overlapped=False,
                quantities=self.used.get(record.session_id, Quantities()),
            )
        )

    async def _on_usage_windows(self, stream: Stream) -> None:
        after = stream.params(dict[str, int])["after"]
        stream.send_reply({})
        while True:
            for told in list(self.windows):
                if told.seq > after:
                    after = told.seq
                    await stream.send_event(told)
            async with self._event_added:
                while not any(told.seq > after for told in self.windows):
                    await self._event_added.wait()

    async def notice(self, notice: Notice) -> None:
        """Have a budget's owner be told."""
        async with self._event_added:
            self.notices.append(NumberedNotice(len(self.notices) + 1, notice))
            self._event_added.notify_all()

    async def _on_budget_notices(self, stream: Stream) -> None:
        after = stream.params(dict[str, int])["after"]
        stream.send_reply({})
        while True:
            for told in list(self.notices):
                if told.seq > after:
                    after = told.seq
                    await stream.send_event(told)
            async with self._event_added:
                while not any(told.seq > after for told in self.notices):
                    await self._event_added.wait()

    async def _on_usage_delivered(self, stream: Stream) -> None:
        async with self._event_added:
            self.delivered = stream.params(dict[str, int])["seq"]
            self._event_added.notify_all()
        stream.send_reply({})

    async def until_delivered(self, told: NumberedWindow) -> None:
        """Wait until whoever follows has written a window down."""
        async with asyncio.timeout(10), self._event_added:
            await self._event_added.wait_for(lambda: self.delivered >= told.seq)

    async def _on_budget_set(self, stream: Stream) -> None:
        if self.refuse_budget is not None:
            raise self.refuse_budget
        self.budgets_waiting.release()
        await self.budget_gate.wait()
        self._hold(stream.params(Budget))
        stream.send_reply({})

    def _hold(self, budget: Budget) -> None:
        place = (budget.key, budget.period.value)
        if budget.any:
            self.budgets[place] = budget
        else:
            self.budgets.pop(place, None)

    async def _on_budget_keep(self, stream: Stream) -> None:
        wanted = (await stream.value(Budgets, MAX_LARGE_BYTES)).budgets
        self.kept.append(wanted)
        self.budgets = {}
        for budget in wanted:
            self._hold(budget)
        stream.send_reply({})

    async def _on_budget_read(self, stream: Stream) -> None:
        key = stream.params(dict[str, str])["key"]
        found = [budget for (owner, _), budget in sorted(self.budgets.items()) if owner == key]
        spent = self.spent.get(key, Quantities())
        stream.send_reply(BudgetStates([BudgetState(budget, spent) for budget in found]))

    async def _on_session_forget(self, stream: Stream) -> None:
        request = stream.params(Forget)
        for session_id in request.session_ids:
            if session_id in self.sessions and self.sessions[session_id].status in LIVE:
                raise ConflictError("session_live", "not over")
            self.sessions.pop(session_id, None)
        self.forgotten.update(request.session_ids, request.sandbox_ids, request.owners)
        gone = {*map(sandbox_key, request.sandbox_ids), *request.owners}
        self.budgets = {place: budget for place, budget in self.budgets.items() if place[0] not in gone}
        stream.send_reply({})

    async def _on_host_scrub(self, stream: Stream) -> None:
        if self.refuse_scrub is not None:
            raise self.refuse_scrub
        self.scrubbed += 1
        stream.send_reply({})

    async def _on_events(self, stream: Stream) -> None:
        after = stream.params(dict[str, int])["after"]
        stream.send_reply({})
        while True:
            for event in self.events:
                if event.seq > after:
                    after = event.seq
                    await stream.send_event(event)
            async with self._event_added:
                while not self.events or self.events[-1].seq <= after:
                    await self._event_added.wait()

    # -- commands -----------------------------------------------------------------------------------

    def _command(self, session_id: str, command_id: str) -> FakeCommand:
        self._live(session_id)
        command = self.commands[session_id].get(command_id)
        if command is None:
            raise NotFoundError("command_not_found", f"Command '{command_id}' not found.")
        return command

    async def _on_command_start(self, stream: Stream) -> None:
        start = stream.params(CommandStart)
        session = self._live(start.session_id)
        program = start.argv[0].decode()
        if program not in ("echo", "both", "exit", "pieces", "nul", "cat", "wait", "flood", "die", "gone", "env", "node"):
            raise BadRequestError("executable_not_found", f"[invalid_argument] executable file not found in $PATH: {program}")
        record = CommandRecord(
            command_id=start.command_id,
            session_id=start.session_id,
            argv=start.argv,
            cwd=start.cwd or session.cwd.encode(),
            started_at=int(time.time() * 1000),
        )
        command = FakeCommand(record, has_stdin=start.stdin)
        self.commands[start.session_id] = {start.command_id: command, **self.commands[start.session_id]}
        stream.send_reply(record)
        if program == "node" and b"--manifest" in start.argv:
            running = self._load_worker(command, start)
        elif program == "node":
            running = self._work(command) if self.worker is not no_worker else self._run_worker(command, start)
        else:
            running = self._run(command, start)
        task = asyncio.create_task(running)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if start.follow:
            await self._follow(stream, command)
            await stream.send_event(command.record)

    async def _load_worker(self, command: FakeCommand, start: CommandStart) -> None:
        self.files[start.session_id][start.argv[-1]] = self.manifest
        await command.finish(0)

    async def _run(self, command: FakeCommand, start: CommandStart) -> None:
        program, arguments = start.argv[0].decode(), [argument.decode() for argument in start.argv[1:]]
        code = 0
        if program == "echo":
            await command.emit(1, " ".join(arguments).encode() + b"\n")
        elif program == "env":
            merged = self.specs[start.session_id].env | start.env
            await command.emit(1, "".join(f"{key}={value}\n" for key, value in sorted(merged.items())).encode())
        elif program == "both":
            await command.emit(2, b"err\n")
            await command.emit(1, b"out\n")
        elif program == "exit":
            code = int(arguments[0])
        elif program == "pieces":
            for byte in "größe €".encode():
                await command.emit(1, bytes([byte]))
                await asyncio.sleep(0)
        elif program == "nul":
            await command.emit(1, b"a\x00b\xff\xfe\n")
        elif program == "cat":
            async with command.changed:
                await command.changed.wait_for(lambda: command.stdin_closed)
            await command.emit(1, bytes(command.stdin))
        elif program == "wait":
            return
        elif program == "flood":
            for _ in range(int(arguments[0]) * 4):
                await command.emit(1, b"y" * 262_143 + b"\n")
        elif program == "die":
            await command.emit(1, b"last words\n")
            await asyncio.sleep(0.05)
            self.drop_connections()
            return
        elif program == "gone":
            await command.emit(1, b"last words\n")
            await self._end(start.session_id, SessionStatus.STOPPED, "timeout")
            await command.finish(-1)
            return
        await command.finish(code)

    async def _work(self, command: FakeCommand) -> None:
        """A worker, to its end."""
        async with command.changed:
            await command.changed.wait_for(lambda: command.stdin_closed)
        job = json.loads(bytes(command.stdin))
        self.worker_jobs.append(job)
        output, code = await self.worker(job)
        await command.emit(1, output)
        await command.finish(code)

    async def _run_worker(self, command: FakeCommand, start: CommandStart) -> None:
        """Every capability returns its context, throws what it has as `throw`, or for `environment` returns its own."""
        async with command.changed:
            await command.changed.wait_for(lambda: command.stdin_closed)
        context = json.loads(bytes(command.stdin))["context"]
        thrown = context.get("throw") if isinstance(context, dict) else None
        value = start.env if context == "environment" else context
        said = {"_tag": "error", "error": thrown} if thrown else {"_tag": "success", "value": value}
        await command.emit(1, b"<__notion_output__>" + json.dumps(said).encode() + b"</__notion_output__>\n")
        await command.finish(0)

    async def _follow(self, stream: Stream, command: FakeCommand) -> None:
        sent = 0
        while True:
            while sent < len(command.output):
                channel, data = command.output[sent]
                sent += 1
                await stream.send_data(data, channel)
            async with command.changed:
                if sent == len(command.output) and command.record.exit_code is not None:
                    break
                while sent == len(command.output) and command.record.exit_code is None:
                    await command.changed.wait()
        if command.record.exit_code == -1:
            raise GoneError("sandbox_stopped", "Sandbox has stopped execution and is no longer available")

    async def _on_command_get(self, stream: Stream) -> None:
        request = stream.params(CommandGet)
        command = self._command(request.session_id, request.command_id)
        stream.send_reply(command.record)
        if request.wait:
            await stream.send_event(await command.finished())

    async def _on_command_list(self, stream: Stream) -> None:
        session_id = stream.params(SessionRef).session_id
        self._live(session_id)
        stream.send_reply({})
        for command in list(self.commands[session_id].values()):
            await stream.send_event(command.record)

    async def _on_command_logs(self, stream: Stream) -> None:
        reference = stream.params(CommandRef)
        command = self._command(reference.session_id, reference.command_id)
        stream.send_reply({})
        await self._follow(stream, command)

    async def _on_command_kill(self, stream: Stream) -> None:
        request = stream.params(CommandKill)
        command = self._command(request.session_id, request.command_id)
        if command.record.exit_code is not None:
            raise NotFoundError("command_not_found_or_exited", "The command has exited.")
        stream.send_reply(command.record)
        await command.finish(128 + request.signal)

    async def _on_command_stdin(self, stream: Stream) -> None:
        request = stream.params(CommandStdin)
        command = self._command(request.session_id, request.command_id)
        if not command.has_stdin or command.stdin_closed:
            raise BadRequestError("command_stdin_unavailable", "The command has no standard input.")
        if command.record.exit_code is not None:
            raise NotFoundError("command_not_found_or_exited", "The command was not found or has exited.")
        data = b"".join([item.data async for item in stream if isinstance(item, Data)])
        start = request.offset if request.offset is not None else len(command.stdin)
        skip = len(command.stdin) - start
        if self.stall_stdin:
            stream.send_reply({"written": len(command.stdin), "stalled": True})
            return
        async with command.changed:
            command.stdin += data[skip:]
            command.stdin_closed = request.close
            command.changed.notify_all()
        stream.send_reply({"written": len(command.stdin), "stalled": False})

    async def _on_pty_open(self, stream: Stream) -> None:
        """A terminal that shows what is typed; `exit N` ends it with that code."""
        request = stream.params(PtyOpen)
        self.ptys.append(request)
        self._live(request.session_id)
        if request.argv[0] != b"sh":
            raise BadRequestError("executable_not_found", "[invalid_argument] executable file not found in $PATH: nosuch")
        self.sizes.append([request.cols, request.rows])
        stream.send_reply({})
        await stream.send_data(b"$ ")
        try:
            async for item in stream:
                if isinstance(item, Message):
                    self.sizes.append(item.decode(dict[str, list[int]])["resize"])
                    await stream.send_data(b"resized\r\n")
                elif item.data.startswith(b"exit "):
                    await stream.send_event({"exit_code": int(item.data[5:])})
                    return
                else:
                    await stream.send_data(item.data)
        finally:
            self.pty_closed.set()

    # -- files --------------------------------------------------------------------------------------

    async def _on_file_read(self, stream: Stream) -> None:
        request = stream.params(FileRead)
        self._live(request.session_id)
        path = request.path if request.path.startswith(b"/") else b"/vercel/" + request.path
        content = self.files[request.session_id].get(path)
        if content is None:
            raise NotFoundError("not_found", "No such file or directory")
        stream.send_reply({"size": len(content)})
        await stream.send_data(content)

    async def _on_file_mkdir(self, stream: Stream) -> None:
        request = stream.params(FileMkdir)
        self._live(request.session_id)
        if request.path == b"/exists":
            raise BadRequestError("file_error", "error creating directory: /exists: File exists")
        stream.send_reply({})

    async def _on_archive_write(self, stream: Stream) -> None:
        request = stream.params(ArchiveWrite)
        self._live(request.session_id)
        raw = b"".join([item.data async for item in stream if isinstance(item, Data)])
        try:
            with tarfile.open(fileobj=io.BytesIO(gzip.decompress(raw) if request.gzip else raw)) as archive:
                members = archive.getmembers()
                for member in members:
                    content = archive.extractfile(member)
                    assert content is not None
                    path = request.cwd.rstrip(b"/") + b"/" + member.name.encode()
                    self.files[request.session_id][path] = content.read()
        except (OSError, EOFError, tarfile.TarError) as error:
            raise BadRequestError("invalid_archive", f"The archive can't be read: {error}.") from error
        stream.send_reply({"files": len(members), "bytes": len(raw)})


HOST_FULL = UnavailableError("host_full", "The host has no room for another session.", retry_after_s=5)

__all__ = ["HOST_FULL", "FakeCommand", "FakeHost"]
