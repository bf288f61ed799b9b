"""Commands of one session: started through the agent, their output kept, their exits written down.

An exit is journaled before anybody hears of it, and only then may the agent forget the command. So whoever was told an exit
code is told the same one after any crash; and a command whose exit the host had not written yet is found again in the agent,
with the output that the host has not stored.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec

from hutch import ids
from hutch.clock import now_ms
from hutch.errors import BadRequestError, HutchError, NotFoundError
from hutch.host.journal import Journal
from hutch.host.logs import Output
from hutch.host.machine import Machine, gone, gone_when_closed
from hutch.host.protocol import CommandRecord, CommandStart, PtyOpen
from hutch.metering.quantities import Quantities
from hutch.wire import Stream
from hutch.wire.connection import ConnectionClosed, Data, Message

log = logging.getLogger(__name__)

MAX_COMMANDS = 10_000
HANGUP_GRACE_S = 2.0
CLOSE_TIMEOUT_S = 0.5
SIGHUP, SIGKILL = 1, 9


Size = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class Started(msgspec.Struct, frozen=True):
    pid: int


class Attached(msgspec.Struct, frozen=True):
    pid: int
    offset: Size
    running: bool


class Exit(msgspec.Struct, frozen=True):
    exit_code: int
    duration_us: int


class CommandEvent(msgspec.Struct, frozen=True):
    """An EVENT of a command stream; unknown ones are ignored."""

    exit: Exit | None = None
    skipped: Size = 0


class AgentCommand(msgspec.Struct, frozen=True):
    id: str


class AgentCommands(msgspec.Struct, frozen=True):
    commands: list[AgentCommand]


class Command:
    """One command. `finished` is done with its final record, or fails when its machine died first."""

    def __init__(self, record: CommandRecord, output: Output) -> None:
        self.record = record
        self.output = output
        self.finished: asyncio.Future[CommandRecord] = asyncio.get_running_loop().create_future()
        # Nobody has to wait for it.
        self.finished.add_done_callback(lambda future: future.cancelled() or future.exception())
        self.stream: Stream | None = None
        self.overlapped = record.overlapped
        self.discarding = False
        self.pump: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        return not self.finished.done()


async def _not_metered() -> None:
    return None


def _still_ran(record: CommandRecord, at: int) -> bool:
    """Whether a command was not over at a time, as far as is known."""
    return record.duration_ms is None or record.started_at + record.duration_ms >= at


class Commands:
    """All commands of one session. `env` gives what every command's environment has beside its own: placeholders of
    credentials, which may have come with a policy after the session's start. `used` is what the session used until it is
    called."""

    def __init__(
        self,
        session_id: str,
        machine: Machine,
        journal: Journal,
        directory: Path,
        cwd: str,
        log_bytes: int,
        env: Callable[[], dict[str, str]] = dict,
        used: Callable[[], Awaitable[Quantities | None]] = _not_metered,
    ) -> None:
        self._env = env
        self._used = used
        self._session_id = session_id
        self._machine = machine
        self._journal = journal
        self._directory = directory
        self._cwd = cwd.encode()
        self._log_bytes = log_bytes
        self._commands: dict[str, Command] = {}
        self._running: set[Command] = set()
        self._hangups: set[asyncio.Task[None]] = set()

    def get(self, command_id: str) -> Command:
        """Raises `NotFoundError`."""
        command = self._commands.get(command_id)
        if command is None:
            raise NotFoundError("not_found", f"Command '{command_id}' not found.")
        return command

    def newest_first(self) -> list[CommandRecord]:
        records = sorted(self._commands.values(), key=lambda command: command.record.started_at)
        return [command.record for command in reversed(records)]

    # -- start -------------------------------------------------------------------------------------

    async def start(self, request: CommandStart) -> Command:
        """Start a command; it runs when this returns. Raises what the agent says. Idempotent by id."""
        if request.command_id in self._commands:
            return self._commands[request.command_id]
        if len(self._commands) >= MAX_COMMANDS:
            self._drop_oldest()
        cwd = self._resolve(request.cwd)
        record = CommandRecord(
            command_id=request.command_id, session_id=self._session_id, argv=request.argv, cwd=cwd, started_at=now_ms()
        )
        before = self._used()
        stream = await self._machine.open(
            "command.start",
            {
                "id": request.command_id,
                "argv": request.argv,
                "cwd": request.cwd,
                "env": self._env() | request.env,
                "user": "root" if request.sudo else "default",
                "stdin": request.stdin,
                "timeout_ms": request.timeout_ms,
            },
        )
        stream.manual_credit = True
        journaled = asyncio.ensure_future(self._begun(record, before))
        try:
            await self._machine.answer(stream.reply(Started))
            record = await journaled
        except BaseException:
            stream.cancel()
            await asyncio.shield(self._abandon(request.command_id, journaled))
            raise
        command = Command(record, Output(self._log_path(request.command_id), self._log_bytes))
        self._follow(command, stream)
        return command

    async def _begun(self, record: CommandRecord, before: Awaitable[Quantities | None]) -> CommandRecord:
        """Write down that a command begins, and what was used before."""
        record = msgspec.structs.replace(record, before=await before)
        await self._journal.put_command(record)
        return record

    async def _abandon(self, command_id: str, journaled: asyncio.Future[CommandRecord]) -> None:
        """A start that failed, or whose caller went away: nobody was told of it, so it must not run on."""
        with contextlib.suppress(OSError):
            await journaled
        await self._journal.delete_command(self._session_id, command_id)
        with contextlib.suppress(HutchError):
            await self._kill(command_id)

    async def _kill(self, command_id: str) -> None:
        with contextlib.suppress(NotFoundError):
            await self._machine.call("command.signal", {"id": command_id, "signal": SIGKILL, "group": True})
        await self._machine.call("command.forget", {"id": command_id})

    def _drop_oldest(self) -> None:
        for command_id, command in self._commands.items():
            if not command.running:
                del self._commands[command_id]
                command.output.path.unlink(missing_ok=True)
                return
        raise BadRequestError("too_many_commands", f"The sandbox runs {MAX_COMMANDS} commands already.")

    def _resolve(self, cwd: bytes | None) -> bytes:
        if not cwd:
            return self._cwd
        return cwd if cwd.startswith(b"/") else self._cwd.rstrip(b"/") + b"/" + cwd

    def _log_path(self, command_id: str) -> Path:
        return self._directory / f"{command_id}.log"

    # -- adoption ----------------------------------------------------------------------------------

    async def adopt(self, records: list[CommandRecord]) -> None:
        """Take over what a predecessor started. Raises `HutchError` when the agent does not answer."""
        held = await self._machine.call("command.list", {}, AgentCommands)
        known = {record.command_id: record for record in records}
        for command in held.commands:
            if command.id not in known:
                # It was started, but nobody was told: its start or its terminal ended with the host.
                await self._kill(command.id)
        in_agent = {command.id for command in held.commands}
        for record in sorted(records, key=lambda record: record.started_at):
            output = Output.recover(self._log_path(record.command_id), self._log_bytes)
            if record.exit_code is not None:
                self._finished_before(record, output)
                if record.command_id in in_agent:
                    await self._machine.call("command.forget", {"id": record.command_id})
            elif record.command_id in in_agent:
                found = Command(record, output)
                found.overlapped |= any(_still_ran(other, record.started_at) for other in records if other is not record)
                await self._attach(found)
            else:
                await self._journal.delete_command(self._session_id, record.command_id)

    def _finished_before(self, record: CommandRecord, output: Output) -> None:
        command = Command(record, output)
        output.close()
        command.finished.set_result(record)
        self._commands[record.command_id] = command

    async def _attach(self, command: Command) -> None:
        output = command.output
        # Beyond the cap too: a reader that stays gets everything once.
        stream = await self._machine.open("command.attach", {"id": command.record.command_id, "offset": output.end})
        stream.manual_credit = True
        attached = await self._machine.answer(stream.reply(Attached))
        if attached.offset > output.end:
            output.skip(attached.offset - output.end)
        self._follow(command, stream)

    # -- while the machine's memory is saved -------------------------------------------------------

    async def let_go(self) -> None:
        """Take no more from the agent; what runs is found again by `take_up`. Idempotent."""
        followed = [command for command in self._commands.values() if command.running and command.stream is not None]
        streams = [command.stream for command in followed if command.stream is not None]
        for command in followed:
            command.stream = None
            if command.pump is not None:
                command.pump.cancel()
        await asyncio.gather(*(command.pump for command in followed if command.pump is not None), return_exceptions=True)
        for stream in streams:
            # A pump that had not begun has ended nothing.
            stream.cancel()

    async def take_up(self) -> None:
        """Go on with what was let go. A machine that does not let us is dead: nobody would hear of its commands again."""
        try:
            for command in list(self._commands.values()):
                if command.running and command.stream is None:
                    command.discarding = False
                    await self._attach(command)
        except HutchError as error:
            self._machine.dead(f"its commands could not be followed again: {error.message}")

    def copy(self, directory: Path) -> list[CommandRecord]:
        """The commands that were let go; `directory` gets their output so far, all of which the agent has sent. Blocks."""
        running = [command for command in self._commands.values() if command.running]
        for command in running:
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(command.output.path, directory / command.output.path.name)
        return [command.record for command in running]

    # -- output and exit ---------------------------------------------------------------------------

    def _follow(self, command: Command, stream: Stream) -> None:
        command.stream = stream
        for other in self._running:
            other.overlapped = command.overlapped = True
        self._running.add(command)
        command.finished.add_done_callback(lambda _: self._running.discard(command))
        self._commands[command.record.command_id] = command
        command.pump = asyncio.get_running_loop().create_task(self._pump(command, stream))

    async def _pump(self, command: Command, stream: Stream) -> None:
        """Take output and exit from the agent until the command is over."""
        try:
            ended = await self._take(command, stream)
        except (HutchError, OSError) as error:
            if not isinstance(error, ConnectionClosed):
                log.warning("command %s: %s", command.record.command_id, error)
                self._machine.dead(f"its agent ended a command's stream: {error}")
            ended = None
        finally:
            stream.cancel()
        command.output.close()
        if ended is None:
            command.finished.set_exception(gone())
            return
        # What the guest says about time is bounded by the host's own clock.
        longest = max(0, now_ms() - command.record.started_at)
        before, now = command.record.before, await self._used()
        final = msgspec.structs.replace(
            command.record,
            exit_code=ended.exit_code & 0xFF,
            duration_ms=min(max(0, ended.duration_us // 1000), longest),
            used=now.since(before) if now is not None and before is not None else None,
            overlapped=command.overlapped,
        )
        try:
            await self._journal.put_command(final)
        except sqlite3.Error as error:
            log.error("the exit of command %s could not be written: %s", command.record.command_id, error)
            command.finished.set_exception(gone())
            return
        command.record = final
        command.finished.set_result(final)
        with contextlib.suppress(HutchError):
            await self._machine.call("command.forget", {"id": final.command_id})

    async def _take(self, command: Command, stream: Stream) -> Exit | None:
        output, ended = command.output, None
        while (item := await stream.next()) is not None:
            if isinstance(item, Data):
                await output.append(item.channel, item.data)
                stream.grant(len(item.data))
                if not output.wanted and not command.discarding:
                    await self._sink(command, discard=True)
                continue
            stream.grant(len(item.payload))
            event = item.decode(CommandEvent)
            if event.skipped:
                output.skip(event.skipped)
            if event.exit is not None:
                ended = event.exit
        return ended

    async def _sink(self, command: Command, *, discard: bool) -> None:
        command.discarding = discard
        if command.stream is not None:
            with contextlib.suppress(HutchError):
                await command.stream.send_event({"sink": "discard" if discard else "forward"})

    async def read(self, command: Command, stream: Stream) -> None:
        """Send a command's output from its start to a client's stream, until the command is over."""
        reader = command.output.reader()
        try:
            if command.discarding:
                await self._sink(command, discard=False)
            while (piece := await reader.next()) is not None:
                await stream.send_data(piece[1], piece[0])
        finally:
            reader.close()

    # -- signals and input -------------------------------------------------------------------------

    async def kill(self, command: Command, number: int) -> None:
        """Signal a command's own process; nothing happens when it is over."""
        if command.running:
            with contextlib.suppress(NotFoundError):
                await self._machine.call("command.signal", {"id": command.record.command_id, "signal": number, "group": False})

    async def write_stdin(self, stream: Stream, params: dict[str, Any]) -> dict[str, Any]:
        """Hand a client's DATA to a process's standard input; the agent's answer."""
        upward = await self._machine.open("command.stdin", params)
        try:
            await relay(stream, upward, channel=0)
            upward.send_end()
            timeout_s = params["timeout_ms"] / 1000 + 10
            return await self._machine.answer(upward.reply(dict[str, Any]), timeout_s)
        finally:
            upward.cancel()

    # -- terminals ---------------------------------------------------------------------------------

    async def terminal(self, request: PtyOpen, stream: Stream) -> None:
        """Run a program on a terminal for as long as the client stays; then it is hung up."""
        command_id = ids.command_id()
        size = {"cols": min(max(request.cols, 1), 65535), "rows": min(max(request.rows, 1), 65535)}
        upward = await self._machine.open(
            "command.start",
            {
                "id": command_id,
                "argv": request.argv,
                "cwd": request.cwd,
                "env": self._env() | request.env,
                "user": "root" if request.sudo else "default",
                "stdin": True,
                "pty": size,
            },
        )
        upward.manual_credit = True
        exited = False
        try:
            await self._machine.answer(upward.reply(Started))
            stream.send_reply({})
            typing = asyncio.ensure_future(_type(stream, upward))
            try:
                with gone_when_closed():
                    while (item := await upward.next()) is not None:
                        if isinstance(item, Data):
                            await stream.send_data(item.data, 1)
                            upward.grant(len(item.data))
                        elif (event := item.decode(CommandEvent)).exit is not None:
                            exited = True
                            await stream.send_event({"exit_code": event.exit.exit_code & 0xFF})
            finally:
                typing.cancel()
        finally:
            upward.cancel()
            hangup = asyncio.get_running_loop().create_task(self._hang_up(command_id, exited=exited))
            self._hangups.add(hangup)
            hangup.add_done_callback(self._hangups.discard)

    async def _hang_up(self, command_id: str, *, exited: bool) -> None:
        with contextlib.suppress(HutchError):
            if not exited:
                for number in (SIGHUP, SIGKILL):
                    await self._machine.call("command.signal", {"id": command_id, "signal": number, "group": True})
                    if number == SIGHUP:
                        await asyncio.sleep(HANGUP_GRACE_S)
        with contextlib.suppress(HutchError):
            await self._machine.call("command.forget", {"id": command_id})

    # -- end ---------------------------------------------------------------------------------------

    async def close(self) -> None:
        """The machine is gone: everything that still waits fails."""
        tasks = {command.pump for command in self._commands.values() if command.pump is not None} | self._hangups
        if tasks:
            # What arrived before the end is still stored; a reader that does not read must not hold this up.
            _, late = await asyncio.wait(tasks, timeout=CLOSE_TIMEOUT_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        for command in self._commands.values():
            command.output.close()
            if command.running:
                command.finished.set_exception(gone())


async def relay(source: Stream, target: Stream, channel: int) -> None:
    """Copy DATA of one stream to another until the source's END, with back-pressure."""
    source.manual_credit = True
    while (item := await source.next()) is not None:
        if isinstance(item, Data):
            await target.send_data(item.data, channel)
            source.grant(len(item.data))
        else:
            source.grant(len(item.payload))


class _TerminalEvent(msgspec.Struct, frozen=True):
    resize: tuple[int, int] | None = None


async def _type(stream: Stream, upward: Stream) -> None:
    """What the client types, and its window's size."""
    while (item := await stream.next()) is not None:
        if isinstance(item, Data):
            await upward.send_data(item.data, 0)
        elif isinstance(item, Message) and (size := item.decode(_TerminalEvent).resize) is not None:
            await upward.send_event({"resize": [min(max(value, 1), 65535) for value in size]})
