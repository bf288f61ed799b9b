"""The asynchronous Python SDK: what its users do."""

from __future__ import annotations

import asyncio
import os
import subprocess
from datetime import timedelta

import pytest
from vercel.sandbox import (
    SandboxApiError,
    SandboxClient,
    SandboxPathNotFoundError,
    SandboxQueryByName,
    SandboxResources,
    SandboxStdinError,
)

pytestmark = [pytest.mark.clients, pytest.mark.sandbox, pytest.mark.root]


@pytest.mark.section("6.1")
async def test_a_sandbox_is_created_used_stopped_and_destroyed(sdk: SandboxClient) -> None:
    name = f"python-{os.getpid()}"
    size = SandboxResources(vcpus=1)
    async with sdk.create_sandbox(name=name, persistent=False, env={"COLOUR": "blue"}, resources=size) as sandbox:
        assert sandbox.name == name
        assert sandbox.status == "running"
        assert sandbox.cwd == "/vercel"
        done = await sandbox.run_process("sh", ["-c", "echo $COLOUR; echo problem >&2; exit 3"], capture_output=True)
        assert (done.returncode, done.stdout, done.stderr) == (3, "blue\n", "problem\n")
        found = await sdk.get_sandbox(name=name)
        assert found.current_session_id == sandbox.current_session_id
    with pytest.raises(SandboxApiError) as error:
        await sdk.get_sandbox(name=name)
    assert error.value.status_code == 404


@pytest.mark.section("8.5")
async def test_a_process_gets_input_and_gives_output(sdk: SandboxClient) -> None:
    async with sdk.create_sandbox(persistent=False) as sandbox:
        big = os.urandom(700_000).hex().encode()
        done = await sandbox.run_process("wc", ["-c"], input=big, capture_output=True)
        assert done.stdout is not None
        assert int(done.stdout) == len(big)

        process = await sandbox.create_process("cat", stdin=subprocess.PIPE)
        assert process.stdin is not None
        assert process.stdout is not None
        await process.stdin.send(b"one\n")
        assert await process.stdout.readline() == "one\n"
        await process.stdin.send("grüße\n".encode())
        await process.stdin.aclose()
        assert await process.stdout.read() == "grüße\n"
        assert await process.wait() == 0


@pytest.mark.section("4.5")
async def test_input_for_a_process_without_any_is_refused(sdk: SandboxClient) -> None:
    async with sdk.create_sandbox(persistent=False) as sandbox:
        process = await sandbox.create_process("sleep", ["600"])
        found = await sandbox.get_process(process.id)
        assert found.stdin is not None
        with pytest.raises(SandboxStdinError):
            await found.stdin.send(b"x")
        await process.kill()
        assert await process.wait() == 137


@pytest.mark.section("8.4")
async def test_processes_are_signalled_limited_and_listed(sdk: SandboxClient) -> None:
    async with sdk.create_sandbox(persistent=False) as sandbox:
        limited = await sandbox.run_process("sleep", ["600"], kill_after=timedelta(milliseconds=300))
        assert limited.returncode == 137
        process = await sandbox.create_process("sleep", ["600"])
        assert [item.id for item in await sandbox.query_processes()] == [process.id, limited.id]
        await process.terminate()
        assert await process.wait() == 143
        root = await sandbox.run_process("id", ["-u"], sudo=True, capture_output=True)
        assert root.stdout == "0\n"


async def test_files_are_written_read_listed_moved_and_removed(sdk: SandboxClient) -> None:
    async with sdk.create_sandbox(persistent=False) as sandbox:
        fs = sandbox.fs
        blob = os.urandom(2_000_003)
        await fs.write_bytes("data/blob", blob)
        assert await fs.read_bytes("/vercel/data/blob") == blob
        await fs.write_text("data/grüße 🐇", "text\n")
        assert await fs.read_text("data/grüße 🐇") == "text\n"
        async with fs.batch() as batch:
            batch.write_text("batch/a", "a")
            batch.write_text("batch/b", "b")
        assert sorted(entry.path for entry in await fs.listdir("batch")) == ["a", "b"]
        await fs.mkdir("new/deep")
        assert await fs.is_dir("new/deep")
        await fs.rename("batch/a", "new/a")
        assert await fs.exists("new/a")
        assert await fs.is_file("new/a")
        await fs.remove("new", recursive=True)
        assert not await fs.exists("new")
        with pytest.raises(SandboxPathNotFoundError):
            await fs.read_bytes("nothing")


async def test_a_terminal_runs_a_shell(sdk: SandboxClient) -> None:
    async with sdk.create_sandbox(persistent=False) as sandbox, sandbox.open_interactive(cols=91, rows=23) as terminal:
        await terminal.stream.send(b"stty size; exit 7\n")
        shown = b""
        while b"23 91" not in shown:
            shown += await terminal.stream.receive()
        assert await terminal.wait() == 7


async def test_updates_extensions_and_lists(sdk: SandboxClient) -> None:
    prefix = f"pylist-{os.getpid()}"
    async with (
        sdk.create_sandbox(name=f"{prefix}-a", persistent=False, execution_time_limit=60) as first,
        sdk.create_sandbox(name=f"{prefix}-b", persistent=False),
    ):
        query = SandboxQueryByName(name_prefix=prefix)
        names = [sandbox.name async for sandbox in sdk.query_sandboxes(query=query)]
        assert sorted(names) == [f"{prefix}-a", f"{prefix}-b"]
        await first.update(tags={"kind": "test"})
        again = await sdk.get_sandbox(name=first.name)
        assert dict(again.tags or {}) == {"kind": "test"}
        session = await first.extend_execution_time_limit(30)
        assert session.execution_time_limit == timedelta(seconds=90)


async def test_many_processes_at_once_keep_their_output(sdk: SandboxClient) -> None:
    async with sdk.create_sandbox(persistent=False) as sandbox:
        done = await asyncio.gather(
            *(sandbox.run_process("sh", ["-c", f"echo {number}; exit {number}"], capture_output=True) for number in range(50))
        )
        assert [(item.returncode, item.stdout) for item in done] == [(number, f"{number}\n") for number in range(50)]


@pytest.mark.section("4.3")
async def test_what_can_not_be_meant_is_refused(sdk: SandboxClient) -> None:
    with pytest.raises(SandboxApiError) as error:
        await sdk.create_sandbox(name="not a name", persistent=False)
    assert (error.value.status_code, error.value.code) == (400, "bad_request")
    async with sdk.create_sandbox(persistent=False) as sandbox:
        with pytest.raises(SandboxApiError) as error:
            await sandbox.run_process("no-such-program")
        assert error.value.code == "executable_not_found"


async def test_a_persistent_sandbox_goes_on_and_its_snapshots_begin_others(sdk: SandboxClient) -> None:
    async with sdk.create_sandbox(persistent=True) as sandbox:
        await sandbox.run_process("sh", ["-c", "echo here > kept"])
        first = sandbox.current_session_id
        await sandbox.stop()
        # The client resumes by itself.
        done = await sandbox.run_process("cat", ["kept"], capture_output=True)
        assert done.stdout == "here\n"
        assert sandbox.current_session_id != first
        snapshot = await sandbox.snapshot()
        async with sdk.fork_sandbox(source_sandbox=sandbox.name) as fork:
            done = await fork.run_process("cat", ["kept"], capture_output=True)
            assert done.stdout == "here\n"
        made = [one.id async for one in sdk.query_snapshots(name=sandbox.name)]
        assert made[0] == snapshot.id
        assert len(made) == 2
        await snapshot.delete()
        assert (await sdk.get_snapshot(snapshot_id=snapshot.id)).status == "deleted"
        async for other in sdk.query_snapshots(name=sandbox.name):
            await other.delete()
