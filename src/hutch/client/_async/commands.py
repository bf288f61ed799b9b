"""Commands: processes in a session."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import httpx
import msgspec

from hutch.client import paths
from hutch.client._async.transport import Http
from hutch.client.models import Command
from hutch.client.wire import Finished, Lines, Output, Record, Started, output_of
from hutch.errors import InternalError


class _One(msgspec.Struct):
    command: Command


class _Many(msgspec.Struct):
    commands: list[Command]


class Commands:
    def __init__(self, http: Http) -> None:
        self._http = http

    def _body(
        self,
        argv: Sequence[str],
        cwd: str | None,
        env: Mapping[str, str] | None,
        sudo: bool,
        timeout_ms: int | None,
        stdin: bool,
    ) -> dict[str, Any]:
        body: dict[str, Any] = {"command": argv[0], "args": list(argv[1:]), "env": dict(env or {}), "sudo": sudo}
        if cwd is not None:
            body["cwd"] = cwd
        if timeout_ms is not None:
            body["timeout"] = timeout_ms
        if stdin:
            body["attachStdin"] = True
        return body

    async def start(
        self,
        session_id: str,
        argv: Sequence[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        sudo: bool = False,
        timeout_ms: int | None = None,
        stdin: bool = False,
    ) -> Command:
        """Start a command and leave it running. Raises `BadRequestError` `executable_not_found`."""
        body = self._body(argv, cwd, env, sudo, timeout_ms, stdin)
        return (await self._http.call("POST", f"{paths.session(session_id)}/cmd", _One, body=body)).command

    async def follow(
        self,
        session_id: str,
        argv: Sequence[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        sudo: bool = False,
        timeout_ms: int | None = None,
        stdin: bool = False,
    ) -> AsyncGenerator[Started | Output | Finished, None]:
        """Start a command and yield `Started`, its `Output` as it comes, then `Finished`.

        Raises the session's error when it ends first. Closing the iterator leaves the command running.
        """
        body = self._body(argv, cwd, env, sudo, timeout_ms, stdin) | {"wait": True, "logs": True}
        started = False
        async with self._http.open("POST", f"{paths.session(session_id)}/cmd", body=body) as response:
            async for record in _records(response):
                if record.command is not None:
                    if started:
                        yield Finished(record.command)
                        return
                    started = True
                    yield Started(record.command)
                else:
                    yield output_of(record)
        raise InternalError("stream_ended_early", "The server ended the stream before the command's exit code.")

    async def run(self, session_id: str, argv: Sequence[str], **options: Any) -> tuple[int, str, str]:
        """Run a command to its end: exit code, standard output, standard error."""
        parts: dict[str, list[str]] = {"stdout": [], "stderr": []}
        async for event in self.follow(session_id, argv, **options):
            if isinstance(event, Output):
                parts[event.stream].append(event.text)
            elif isinstance(event, Finished):
                assert event.command.exit_code is not None
                return event.command.exit_code, "".join(parts["stdout"]), "".join(parts["stderr"])
        raise AssertionError("follow ends with Finished or raises")

    async def get(self, session_id: str, command_id: str, *, wait: bool = False) -> Command:
        """A command; with `wait` when it has ended."""
        query = {"wait": "true"} if wait else None
        path = paths.command(session_id, command_id)
        return (await self._http.call("GET", path, _One, query=query, timeout_s=None if wait else 0.0)).command

    async def list(self, session_id: str) -> list[Command]:
        """The session's commands, newest first."""
        return (await self._http.call("GET", f"{paths.session(session_id)}/cmd", _Many)).commands

    async def logs(self, session_id: str, command_id: str) -> AsyncGenerator[Output, None]:
        """Output from the start, then as it comes, until the command ends."""
        async with self._http.open("GET", f"{paths.command(session_id, command_id)}/logs") as response:
            async for record in _records(response):
                yield output_of(record)

    async def kill(self, session_id: str, command_id: str, signal: int = 15) -> None:
        await self._http.call("POST", f"{paths.command(session_id, command_id)}/kill", _One, body={"signal": signal})

    async def write_stdin(self, session_id: str, command_id: str, data: bytes, *, offset: int, close: bool = False) -> int:
        """Write to a command that was started with `stdin`; the bytes it has accepted in all. `offset` is where `data` starts."""
        body: dict[str, Any] = {"data": base64.b64encode(data).decode("ascii"), "offset": offset}
        if close:
            body["close"] = True
        answer = await self._http.call("POST", f"{paths.command(session_id, command_id)}/stdin", dict[str, Any], body=body)
        return int(answer.get("bytesWritten", offset + len(data)))


async def _records(response: httpx.Response) -> AsyncGenerator[Record, None]:
    """The lines of an NDJSON answer."""
    lines = Lines()
    async for chunk in response.aiter_bytes():
        for record in lines.feed(chunk):
            yield record
    lines.end()
