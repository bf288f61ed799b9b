"""The host's end of its protocol: requests of the control plane → supervisor. One method of the protocol, one function."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import hutch
from hutch.errors import NotFoundError
from hutch.host.commands import Command, Commands, relay
from hutch.host.machine import Machine, gone_when_closed
from hutch.host.protocol import (
    MAX_LARGE_BYTES,
    ArchiveWrite,
    AuditPage,
    AuditRead,
    Budgets,
    BudgetStates,
    CommandGet,
    CommandKill,
    CommandRef,
    CommandStart,
    CommandStdin,
    CredentialChange,
    DriveRef,
    DriveSpec,
    ExtendRequest,
    FileMkdir,
    FileRead,
    Forget,
    ForwardingKey,
    HostInfo,
    ImageBuild,
    ImagePull,
    ImageQuery,
    ImageRemove,
    IngressKey,
    IngressUpdate,
    IngressWake,
    NetworkUpdate,
    NumberedWindow,
    PersistRequest,
    PtyOpen,
    SessionEvent,
    SessionRef,
    SessionSpec,
    SessionStatus,
    SnapshotExport,
    SnapshotImport,
    SnapshotRef,
    SnapshotRequest,
    StopRequest,
)
from hutch.host.supervisor import Supervisor
from hutch.metering.budgets import Budget
from hutch.metering.notices import NumberedNotice
from hutch.settings import Settings
from hutch.wire import Hello, Role, Stream
from hutch.wire.connection import Data

HELLO = Hello(version=1, role=Role.HOST, window=1024 * 1024, max_streams=4096)
# A file request that makes no progress for this long gets the agent checked.
PROGRESS_TIMEOUT_S = 60.0
MAX_ROUTES_BYTES = 48 * 1024 * 1024


class Service:
    """Answers every stream that the control plane opens."""

    def __init__(self, supervisor: Supervisor, settings: Settings, host_id: str, isolation: str) -> None:
        self.supervisor = self._supervisor = supervisor
        self._settings = settings
        self._host_id = host_id
        self._isolation = isolation
        self._methods: dict[str, Callable[[Stream], Awaitable[None]]] = {
            "host.info": self._info,
            "session.create": self._create,
            "session.get": self._get,
            "session.list": self._list,
            "session.stop": self._stop,
            "session.extend": self._extend,
            "session.persist": self._persist,
            "session.snapshot": self._snapshot,
            "snapshot.delete": self._snapshot_delete,
            "snapshot.list": self._snapshot_list,
            "drive.create": self._drive_create,
            "drive.usage": self._drive_usage,
            "drive.delete": self._drive_delete,
            "snapshot.verify": self._snapshot_verify,
            "snapshot.export": self._snapshot_export,
            "snapshot.import": self._snapshot_import,
            "image.resolve": self._image_resolve,
            "image.pull": self._image_pull,
            "image.build": self._image_build,
            "image.list": self._image_list,
            "image.remove": self._image_remove,
            "events": self._events,
            "command.start": self._command_start,
            "command.get": self._command_get,
            "command.list": self._command_list,
            "command.logs": self._command_logs,
            "command.kill": self._command_kill,
            "command.stdin": self._command_stdin,
            "pty.open": self._pty_open,
            "file.read": self._file_read,
            "session.network": self._network,
            "credentials.change": self._credential,
            "audit.read": self._audit,
            "session.traffic": self._traffic,
            "usage.read": self._usage,
            "usage.command": self._command_usage,
            "usage.windows": self._usage_windows,
            "usage.delivered": self._usage_delivered,
            "budget.set": self._budget_set,
            "budget.keep": self._budget_keep,
            "budget.read": self._budget_read,
            "budget.notices": self._budget_notices,
            "session.forget": self._forget,
            "host.scrub": self._scrub,
            "forwarding.key": self._forwarding,
            "ingress.routes": self._ingress_routes,
            "ingress.key": self._ingress_key,
            "ingress.wakes": self._ingress_wakes,
            "ingress.failed": self._ingress_failed,
            "ingress.state": self._ingress_state,
            "file.mkdir": self._file_mkdir,
            "archive.write": self._archive_write,
        }

    async def handle(self, stream: Stream) -> None:
        """Answer one stream."""
        method = self._methods.get(stream.method)
        if method is None:
            raise NotFoundError("unknown_method", f"The host has no method '{stream.method}'.")
        await method(stream)

    # -- sessions ----------------------------------------------------------------------------------

    async def _info(self, stream: Stream) -> None:
        supervisor = self._supervisor
        stream.send_reply(
            HostInfo(
                host_id=self._host_id,
                ready=not supervisor.ready_reason,
                isolation=self._isolation,
                version=hutch.__version__,
                sessions=supervisor.live_sessions,
                pooled=len(supervisor.pool),
                max_timeout_ms=self._settings.sandbox.max_timeout_ms,
                reason=supervisor.ready_reason,
                platform_cpu_us=supervisor.platform_cpu_us,
            )
        )

    async def _create(self, stream: Stream) -> None:
        stream.send_reply(await self._supervisor.create(await stream.value(SessionSpec, MAX_LARGE_BYTES)))

    async def _get(self, stream: Stream) -> None:
        stream.send_reply(self._supervisor.get(stream.params(SessionRef).session_id).record)

    async def _list(self, stream: Stream) -> None:
        stream.send_reply({})
        for record in self._supervisor.records():
            await stream.send_event(record)

    async def _stop(self, stream: Stream) -> None:
        request = stream.params(StopRequest)
        session = self._supervisor.get(request.session_id)
        stream.send_reply(await self._supervisor.end(session, SessionStatus.STOPPED, request.reason))

    async def _extend(self, stream: Stream) -> None:
        request = stream.params(ExtendRequest)
        stream.send_reply(await self._supervisor.extend(request.session_id, request.duration_ms, request.max_timeout_ms))

    async def _persist(self, stream: Stream) -> None:
        request = stream.params(PersistRequest)
        stream.send_reply(await self._supervisor.set_persistent(request.session_id, persistent=request.persistent))

    async def _snapshot(self, stream: Stream) -> None:
        stream.send_reply(await self._supervisor.snapshot(stream.params(SnapshotRequest)))

    async def _snapshot_delete(self, stream: Stream) -> None:
        await self._supervisor.remove_snapshot(stream.params(SnapshotRef).snapshot_id)
        stream.send_reply({})

    async def _snapshot_list(self, stream: Stream) -> None:
        stream.send_reply({})
        for record in self._supervisor.snapshots.records():
            await stream.send_event(record)

    async def _drive_create(self, stream: Stream) -> None:
        stream.send_reply(await self._supervisor.drives.create(stream.params(DriveSpec)))

    async def _drive_usage(self, stream: Stream) -> None:
        stream.send_reply(await self._supervisor.drives.usage(stream.params(DriveRef).drive_id))

    async def _drive_delete(self, stream: Stream) -> None:
        await self._supervisor.drives.remove(stream.params(DriveRef).drive_id)
        stream.send_reply({})

    async def _snapshot_verify(self, stream: Stream) -> None:
        stream.send_reply(await self._supervisor.snapshots.verify(stream.params(SnapshotRef).snapshot_id))

    async def _snapshot_export(self, stream: Stream) -> None:
        request = stream.params(SnapshotExport)
        replied = False

        async def send(piece: bytes) -> None:
            nonlocal replied
            if not replied:
                # Not before: what can't be exported is an error, not a tar that breaks off.
                stream.send_reply({})
                replied = True
            await stream.send_data(piece, 1)

        await self._supervisor.snapshots.export(request, send)

    async def _snapshot_import(self, stream: Stream) -> None:
        request = stream.params(SnapshotImport)
        stream.send_reply(await self._supervisor.load_snapshot(request, _pieces(stream)))

    async def _image_resolve(self, stream: Stream) -> None:
        stream.send_reply(self._supervisor.images.find(stream.params(ImageQuery)))

    async def _image_pull(self, stream: Stream) -> None:
        stream.send_reply(await self._supervisor.images.pull(stream.params(ImagePull)))

    async def _image_build(self, stream: Stream) -> None:
        stream.send_reply(await self._supervisor.build_image(stream.params(ImageBuild)))

    async def _image_list(self, stream: Stream) -> None:
        records = self._supervisor.images.list(stream.params(dict[str, str]).get("project_id", ""))
        stream.send_reply({})
        for record in records:
            await stream.send_event(record)

    async def _image_remove(self, stream: Stream) -> None:
        await self._supervisor.images.remove(stream.params(ImageRemove))
        stream.send_reply({})

    async def _network(self, stream: Stream) -> None:
        stream.send_reply(await self._supervisor.set_network(await stream.value(NetworkUpdate, MAX_LARGE_BYTES)))

    async def _credential(self, stream: Stream) -> None:
        await self._supervisor.change_credential(stream.params(CredentialChange))
        stream.send_reply({})

    async def _audit(self, stream: Stream) -> None:
        request = stream.params(AuditRead)
        records, last = await self._supervisor.audit.read(request.sandbox_id, request.after, request.limit)
        stream.send_reply(AuditPage(records=records, next=last))

    async def _traffic(self, stream: Stream) -> None:
        stream.send_reply(await self._supervisor.traffic(stream.params(SessionRef).session_id))

    async def _usage(self, stream: Stream) -> None:
        stream.send_reply(await self._supervisor.metered.read(stream.params(SessionRef).session_id))

    async def _command_usage(self, stream: Stream) -> None:
        request = stream.params(CommandRef)
        stream.send_reply(await self._supervisor.metered.read_command(request.session_id, request.command_id))

    async def _usage_windows(self, stream: Stream) -> None:
        after = stream.params(dict[str, int]).get("after", 0)
        stream.send_reply({})

        async def send(window: NumberedWindow) -> None:
            await stream.send_event(window)

        await self._supervisor.metered.usage.windows(after, send)

    async def _usage_delivered(self, stream: Stream) -> None:
        await self._supervisor.metered.usage.delivered(stream.params(dict[str, int])["seq"])
        stream.send_reply({})

    async def _budget_set(self, stream: Stream) -> None:
        await self._supervisor.metered.usage.budgets.put(stream.params(Budget))
        stream.send_reply({})

    async def _budget_keep(self, stream: Stream) -> None:
        await self._supervisor.metered.usage.budgets.keep((await stream.value(Budgets, MAX_LARGE_BYTES)).budgets)
        stream.send_reply({})

    async def _budget_read(self, stream: Stream) -> None:
        stream.send_reply(BudgetStates(self._supervisor.metered.usage.budgets.states(stream.params(dict[str, str])["key"])))

    async def _budget_notices(self, stream: Stream) -> None:
        after = stream.params(dict[str, int]).get("after", 0)
        stream.send_reply({})

        async def send(numbered: NumberedNotice) -> None:
            await stream.send_event(numbered)

        await self._supervisor.metered.usage.budgets.notices.tell(after, send)

    async def _forget(self, stream: Stream) -> None:
        await self._supervisor.forget(stream.params(Forget))
        stream.send_reply({})

    async def _scrub(self, stream: Stream) -> None:
        await self._supervisor.scrub()
        stream.send_reply({})

    async def _forwarding(self, stream: Stream) -> None:
        key = stream.params(ForwardingKey)
        await self._supervisor.set_forwarding(key)
        stream.send_reply({})

    async def _ingress_routes(self, stream: Stream) -> None:
        update = await stream.value(IngressUpdate, MAX_ROUTES_BYTES)
        await self._supervisor.ingress.put_routes(update.sandboxes, complete=update.complete)
        stream.send_reply({})

    async def _ingress_key(self, stream: Stream) -> None:
        await self._supervisor.ingress.verify_with(stream.params(IngressKey).key)
        stream.send_reply({})

    async def _ingress_wakes(self, stream: Stream) -> None:
        stream.send_reply({})
        async with contextlib.aclosing(self._supervisor.ingress.wakes()) as wakes:
            async for sandbox_id in wakes:
                await stream.send_event(IngressWake(sandbox_id))

    async def _ingress_failed(self, stream: Stream) -> None:
        await self._supervisor.ingress.not_waked(stream.params(IngressWake).sandbox_id)
        stream.send_reply({})

    async def _ingress_state(self, stream: Stream) -> None:
        stream.send_reply(await self._supervisor.ingress.state())

    async def _events(self, stream: Stream) -> None:
        after = int(stream.params(dict[str, int]).get("after", 0))
        stream.send_reply({})

        async def send(event: SessionEvent) -> None:
            await stream.send_event(event)

        await self._supervisor.events(after, send)

    # -- commands ----------------------------------------------------------------------------------

    def _commands(self, session_id: str) -> Commands:
        return self._supervisor.running(session_id)[1]

    def _machine(self, session_id: str) -> Machine:
        session, _ = self._supervisor.running(session_id)
        assert session.machine is not None
        return session.machine

    async def _command_start(self, stream: Stream) -> None:
        request = stream.params(CommandStart)
        commands = self._commands(request.session_id)
        command = await commands.start(request)
        stream.send_reply(command.record)
        if request.follow:
            await commands.read(command, stream)
            await self._final(command, stream)

    async def _command_get(self, stream: Stream) -> None:
        request = stream.params(CommandGet)
        command = self._commands(request.session_id).get(request.command_id)
        stream.send_reply(command.record)
        if request.wait:
            await self._final(command, stream)

    @staticmethod
    async def _final(command: Command, stream: Stream) -> None:
        await stream.send_event(await asyncio.shield(command.finished))

    async def _command_list(self, stream: Stream) -> None:
        records = self._commands(stream.params(SessionRef).session_id).newest_first()
        stream.send_reply({})
        for record in records:
            await stream.send_event(record)

    async def _command_logs(self, stream: Stream) -> None:
        request = stream.params(CommandRef)
        commands = self._commands(request.session_id)
        command = commands.get(request.command_id)
        stream.send_reply({})
        await commands.read(command, stream)
        await asyncio.shield(command.finished)

    async def _command_kill(self, stream: Stream) -> None:
        request = stream.params(CommandKill)
        commands = self._commands(request.session_id)
        command = commands.get(request.command_id)
        before = command.record
        await commands.kill(command, request.signal)
        stream.send_reply(before)

    async def _command_stdin(self, stream: Stream) -> None:
        request = stream.params(CommandStdin)
        commands = self._commands(request.session_id)
        params: dict[str, Any] = {
            "id": request.command_id,
            "offset": request.offset,
            "timeout_ms": request.timeout_ms,
            "close": request.close,
        }
        commands.get(request.command_id)
        stream.send_reply(await commands.write_stdin(stream, params))

    async def _pty_open(self, stream: Stream) -> None:
        request = stream.params(PtyOpen)
        await self._commands(request.session_id).terminal(request, stream)

    # -- files -------------------------------------------------------------------------------------

    async def _file_read(self, stream: Stream) -> None:
        request = stream.params(FileRead)
        machine = self._machine(request.session_id)
        upward = await machine.open("file.read", {"path": request.path, "cwd": request.cwd, "user": "default"})
        upward.manual_credit = True
        upward.send_end()
        try:
            stream.send_reply(await machine.answer(upward.reply(dict[str, int]), PROGRESS_TIMEOUT_S))
            with gone_when_closed():
                while (item := await machine.answer(upward.next(), PROGRESS_TIMEOUT_S)) is not None:
                    if isinstance(item, Data):
                        await stream.send_data(item.data, 1)
                        upward.grant(len(item.data))
        finally:
            upward.cancel()

    async def _file_mkdir(self, stream: Stream) -> None:
        request = stream.params(FileMkdir)
        params = {"path": request.path, "cwd": request.cwd, "user": _user(sudo=request.sudo), "recursive": request.recursive}
        stream.send_reply(await self._machine(request.session_id).call("file.mkdir", params))

    async def _archive_write(self, stream: Stream) -> None:
        request = stream.params(ArchiveWrite)
        machine = self._machine(request.session_id)
        params = {
            "cwd": request.cwd,
            "user": _user(sudo=request.sudo),
            "gzip": request.gzip,
            "max_bytes": request.max_bytes,
            "max_files": request.max_files,
        }
        upward = await machine.open("archive.write", params)
        try:
            with gone_when_closed():
                sending = asyncio.ensure_future(relay(stream, upward, channel=0))
                answering = asyncio.ensure_future(upward.reply(dict[str, int]))
                try:
                    # A refusal may come before the client has sent everything.
                    await asyncio.wait({sending, answering}, return_when=asyncio.FIRST_COMPLETED)
                    if not answering.done():
                        await sending
                        upward.send_end()
                    stream.send_reply(await answering)
                finally:
                    sending.cancel()
                    answering.cancel()
                    await asyncio.gather(sending, answering, return_exceptions=True)
        finally:
            upward.cancel()


def _user(*, sudo: bool) -> str:
    """As the agent names them."""
    return "root" if sudo else "default"


async def _pieces(stream: Stream) -> AsyncIterator[bytes]:
    """What the client sends, as fast as it is taken."""
    stream.manual_credit = True
    while (item := await stream.next()) is not None:
        if isinstance(item, Data):
            yield item.data
            stream.grant(len(item.data))
