"""A program in a sandbox, with this process's own input and output. What `hutch run` and `hutch exec` share."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from hutch.cli import output, stdio
from hutch.cli.terminal import run_in_terminal
from hutch.client import AsyncClient, AsyncCommand, Finished, Output, Started
from hutch.client.wire import STDIN_CHUNK_BYTES
from hutch.errors import BadRequestError, HutchError


@dataclass(frozen=True, slots=True)
class Program:
    argv: Sequence[str]
    cwd: str | None = None
    env: dict[str, str] = field(default_factory=dict)
    sudo: bool = False
    timeout_ms: int | None = None
    interactive: bool = False
    tty: bool = False
    as_json: bool = False


def check(program: Program) -> None:
    """Refuse what can't work before a sandbox is made for it. Raises `BadRequestError`."""
    if not program.argv or not program.argv[0]:
        raise BadRequestError("no_program", "Name the program to run, for example: hutch run -- python3 -c 'print(1)'.")
    if program.tty and program.as_json:
        raise BadRequestError("bad_option", "--tty and --json can't be used together.")
    if program.tty and not sys.stdin.isatty():
        raise BadRequestError("not_a_terminal", "--tty needs a terminal as standard input. Use -i alone to pass a pipe on.")


async def run_program(client: AsyncClient, session_id: str, program: Program) -> int:
    """Run to the end; the program's exit code. Cancelling kills the program."""
    if program.tty:
        return await run_in_terminal(client, session_id, program.argv, program.cwd, program.env, program.sudo)
    if program.as_json:
        return await _collected(client, session_id, program)
    return await _streamed(client, session_id, program)


async def _streamed(client: AsyncClient, session_id: str, program: Program) -> int:
    command_id = ""
    pump: asyncio.Task[None] | None = None
    try:
        async with contextlib.aclosing(_events(client, session_id, program)) as events:
            async for event in events:
                if isinstance(event, Started):
                    command_id = event.command.id
                    if program.interactive:
                        pump = asyncio.create_task(_feed(AsyncCommand(client, event.command)))
                elif isinstance(event, Output):
                    await write_output(event)
                else:
                    assert event.command.exit_code is not None
                    return event.command.exit_code
    except (asyncio.CancelledError, BrokenPipeError):
        if command_id:
            await _kill(client, session_id, command_id)
        raise
    finally:
        if pump is not None:
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)
    raise AssertionError("follow ends with Finished or raises")


async def _collected(client: AsyncClient, session_id: str, program: Program) -> int:
    """As `_streamed`, but the output becomes one JSON document: for scripts."""
    parts: dict[str, list[str]] = {"stdout": [], "stderr": []}
    command_id = ""
    try:
        async with contextlib.aclosing(_events(client, session_id, program)) as events:
            async for event in events:
                if isinstance(event, Started):
                    command_id = event.command.id
                elif isinstance(event, Output):
                    parts[event.stream].append(event.text)
                else:
                    assert event.command.exit_code is not None
                    texts = {name: "".join(chunks) for name, chunks in parts.items()}
                    output.write_json({"command": event.command, **texts})
                    return event.command.exit_code
    except asyncio.CancelledError:
        if command_id:
            await _kill(client, session_id, command_id)
        raise
    raise AssertionError("follow ends with Finished or raises")


def _events(client: AsyncClient, session_id: str, program: Program) -> AsyncGenerator[Started | Output | Finished, None]:
    return client.commands.follow(
        session_id,
        program.argv,
        cwd=program.cwd,
        env=program.env,
        sudo=program.sudo,
        timeout_ms=program.timeout_ms,
        stdin=program.interactive,
    )


async def write_output(event: Output) -> None:
    """Pass output on. A reader that is slow holds the program back, not this process's memory."""
    stream = sys.stdout if event.stream == "stdout" else sys.stderr
    await stdio.write_all(stream.fileno(), event.text.encode("utf-8", "surrogatepass"))


async def _feed(command: AsyncCommand) -> None:
    """Pass standard input on until it ends; then the program sees end of file."""
    # The program may have ended or closed its input, as `head` does: then nobody wants the rest.
    with contextlib.suppress(HutchError):
        async for chunk in stdio.chunks(sys.stdin.fileno(), STDIN_CHUNK_BYTES):
            await command.write_stdin(chunk)
        await command.close_stdin()


async def _kill(client: AsyncClient, session_id: str, command_id: str) -> None:
    """End the program because we were told to leave. It may be gone already."""
    with contextlib.suppress(HutchError, TimeoutError):
        async with asyncio.timeout(5):
            await client.commands.kill(session_id, command_id, 9)
