"""A user's program, for the type checker (`make lint`): what it says about types holds, or mypy complains. Never run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import assert_type

import httpx

import hutch
from hutch.client import (
    AsyncCommand,
    AsyncSandbox,
    Command,
    CompletedCommand,
    DirectoryEntry,
    DriveMount,
    Finished,
    Output,
    Retry,
    Sandbox,
    SandboxResources,
    Server,
    Session,
    Snapshot,
    Started,
    models,
)


def blocking(transport: httpx.BaseTransport) -> None:
    server = Server("http://127.0.0.1:7070", "token")
    with hutch.Client(server, transport=transport, retry=Retry(attempts=1)) as client:
        assert_type(client, hutch.Client)
        resources, limit = SandboxResources(vcpus=2), timedelta(minutes=5)
        with client.create_sandbox(resources=resources, execution_time_limit=limit, mounts={"/d": DriveMount("d")}) as sandbox:
            assert_type(sandbox, Sandbox)
            assert_type(sandbox.run_command("true", on_output=lambda piece: print(piece.text)), CompletedCommand)
            command = assert_type(sandbox.create_command("true", kill_after=1.5), Command)
            assert_type(command.wait(), int)
            assert_type(command.returncode, int | None)
            for event in sandbox.stream_command("true"):
                assert_type(event, Started | Output | Finished)
            assert_type(sandbox.fs.listdir(), list[DirectoryEntry])
            assert_type(sandbox.fs.read_text("a"), str)
            sandbox.fs.write_stream("a", iter([b"a"]), size=1)
            assert_type(sandbox.session, Session)
            assert_type(sandbox.snapshot(keep_running=True), Snapshot)
            assert_type(sandbox.explain("https://a.test/").decision == "allow", bool)
            assert_type(sandbox.usage(), models.Usage)
            sandbox.update_network_policy({"allow": ["a.test"]})
            with sandbox.open_interactive("sh") as terminal:
                assert_type(next(terminal.output()), bytes)
        records: Iterator[models.Sandbox] = client.query_sandboxes(status="running")
        assert_type(next(records).name, str)
        assert_type(client.get_or_create_sandbox("a"), tuple[Sandbox, bool])
        # What can't be meant is said before it is run.
        client.query_sandboxes(sort_by="size")  # type: ignore[arg-type]
        client.create_sandbox(nme="a")  # type: ignore[call-arg]


async def waiting(transport: httpx.AsyncBaseTransport) -> None:
    async def resumed(sandbox: AsyncSandbox) -> None:
        await sandbox.run_command("true")

    async with hutch.AsyncClient(transport=transport) as client:
        assert_type(client, hutch.AsyncClient)
        async with await client.create_sandbox(network_policy="deny-all", on_resume=resumed) as sandbox:
            assert_type(sandbox, AsyncSandbox)
            assert_type(await sandbox.run_command("true"), CompletedCommand)
            command = assert_type(await sandbox.create_command("true", stdin=True), AsyncCommand)
            async for piece in command.logs():
                assert_type(piece, Output)
            async with sandbox.open_interactive("sh") as terminal:
                await terminal.send(b"exit\n")
        records: AsyncIterator[models.Sandbox] = client.query_sandboxes()
        assert_type((await anext(records)).name, str)
