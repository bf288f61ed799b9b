"""Everything that the Python SDK offers, in both flavours: in one scenario, in which the synchronous one is not awaited."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
import vercel.sandbox
import vercel.sandbox.sync
from vercel.api import session as ambient_session
from vercel.sandbox import (
    NetworkPolicy,
    NetworkPolicyRule,
    NetworkPolicyTransform,
    SandboxApiError,
    SandboxClient,
    SandboxQueryByName,
    SandboxResources,
    SandboxServiceOptions,
    SnapshotRetention,
    SnapshotSource,
)
from vercel.sandbox.sync import SandboxServiceOptions as SyncOptions
from vercel.sandbox.sync import SyncSandboxClient

from tests.clients.python.conftest import credentials
from tests.conftest import RunningServer

pytestmark = [pytest.mark.clients, pytest.mark.sandbox, pytest.mark.root]

FLAVOURS = ("async", "sync")
SIZE = 64 * 1024**2
READ, WRITTEN = "one\ntwo\nthree\n", "\u00fcber\n"


async def now(result: Any) -> Any:
    """What a call gives, awaited where it has to be."""
    return await result if inspect.isawaitable(result) else result


async def items(results: Any) -> list[Any]:
    return [item async for item in results] if hasattr(results, "__aiter__") else list(results)


async def entered(handle: Any) -> Any:
    """What `with` would give; `close` is its end."""
    return await handle.__aenter__() if hasattr(handle, "__aenter__") else handle.__enter__()


async def close(handle: Any) -> None:
    await now(handle.aclose() if hasattr(handle, "aclose") else handle.close())


@pytest.fixture(params=FLAVOURS)
async def either(request: pytest.FixtureRequest, watched: RunningServer, leak_check: None) -> AsyncIterator[Any]:
    client: Any
    if request.param == "sync":
        options = SyncOptions(base_url=f"{watched.where.url}/api", credentials_factory=lambda: credentials(watched.where))
        client = SyncSandboxClient.create(options=options)
    else:

        async def factory() -> Any:
            return credentials(watched.where)

        client = SandboxClient.create(
            options=SandboxServiceOptions(base_url=f"{watched.where.url}/api", credentials_factory=factory)
        )
    yield client
    await close(client)


@pytest.fixture
async def box(either: Any) -> AsyncIterator[Any]:
    sandbox = await now(either.create_sandbox(persistent=False, env={"LAYER": "sandbox"}))
    yield sandbox
    await now(sandbox.destroy(delete_orphan_snapshots=True))


@pytest.mark.section("5.1", "5.2", "6.1", "6.3", "7.1")
async def test_a_sandbox_and_its_session_say_what_they_are(either: Any) -> None:
    name = f"whole-{os.getpid()}"
    sandbox = await now(
        either.create_sandbox(
            name=name,
            persistent=False,
            execution_time_limit=120,
            resources=SandboxResources(vcpus=1),
            tags={"kind": "whole"},
            ports=[3000],
            snapshot_expiration=timedelta(days=2),
            snapshot_retention=SnapshotRetention(count=3),
        )
    )
    try:
        assert (sandbox.name, str(sandbox.status.value), sandbox.persistent) == (name, "running", False)
        assert (sandbox.vcpus, sandbox.memory, sandbox.cwd) == (1, 2048, "/vercel")
        assert sandbox.execution_time_limit == timedelta(seconds=120)
        assert (sandbox.region, tuple(sandbox.failover_regions or ()), sandbox.network_id) == ("iad1", (), None)
        assert dict(sandbox.tags) == {"kind": "whole"}
        assert [route.port for route in sandbox.routes] == [3000]
        assert "@sha256:" in sandbox.image
        assert sandbox.network_policy is None
        assert not sandbox.mounts
        assert sandbox.snapshot_expiration is not None
        assert (sandbox.snapshot_retention.count, sandbox.snapshot_retention.delete_evicted) == (3, True)
        assert sandbox.current_snapshot_id is None
        assert sandbox.created_at == sandbox.updated_at
        assert sandbox.status_updated_at >= sandbox.created_at
        assert sandbox.project_id
        assert sandbox.raw is None or sandbox.raw["name"] == name

        session = sandbox.current_session
        assert session.id == sandbox.current_session_id
        await now(session.refresh())
        assert (session.sandbox_name, session.project_id) == (name, sandbox.project_id)
        assert (session.vcpus, session.memory, session.region, session.cwd) == (1, 2048, "iad1", "/vercel")
        assert (session.network_id, session.network_policy, session.stopped_at) == (None, None, None)
        assert session.started_at >= session.requested_at
        assert session.execution_time_limit == timedelta(seconds=120)
        assert str(session.status.value) == "running"

        assert (await now(either.get_sandbox(name=name))).current_session_id == session.id
        assert [one.id for one in await now(sandbox.list_sessions())] == [session.id]
        assert [one.id for one in await items(either.query_sessions(name=name))] == [session.id]
        found = await items(either.query_sandboxes(query=SandboxQueryByName(name_prefix=name)))
        assert [one.name for one in found] == [name]
        again, created = await now(either.get_or_create_sandbox(name=name))
        assert (again.current_session_id, created) == (session.id, False)
    finally:
        await now(sandbox.destroy())
    with pytest.raises(SandboxApiError) as gone:
        await now(either.get_sandbox(name=name))
    assert gone.value.status_code == 404


@pytest.mark.section("6.4", "7.3", "7.4", "14.3")
async def test_updates_reach_the_record_and_the_session(box: Any) -> None:
    await now(box.update(tags={"a": "b"}, ports=[3000], execution_time_limit=400, persistent=True))
    assert (dict(box.tags), box.persistent, [route.port for route in box.routes]) == ({"a": "b"}, True, [3000])
    assert box.execution_time_limit == timedelta(seconds=400)
    session = await now(box.extend_execution_time_limit(30))
    assert session.execution_time_limit == timedelta(seconds=430)
    await now(box.current_session.extend_execution_time_limit(30))
    assert box.current_session.execution_time_limit == timedelta(seconds=460)
    await now(box.update(persistent=False, snapshot_retention=None, tags={}))
    assert not box.tags

    rule = NetworkPolicyRule(transform=[NetworkPolicyTransform(headers={"authorization": "secret"})])
    policy = NetworkPolicy.custom({"b.example.com": [], "a.example.com": [rule]})
    with pytest.warns(DeprecationWarning, match="update_network_policy"):
        session = await now(box.update_network_policy(policy))
    read = session.network_policy
    assert (read.mode, list(read.allowed_domains)) == ("custom", ["b.example.com", "a.example.com"])
    assert [(one.domain, list(one.header_names)) for one in read.injection_rules] == [("a.example.com", ["authorization"])]
    await now(box.current_session.update_network_policy(NetworkPolicy.deny_all()))
    assert box.current_session.network_policy.mode == "deny-all"
    with pytest.raises(SandboxApiError) as late:
        await now(box.extend_execution_time_limit(5 * 86_400))
    assert (late.value.status_code, late.value.code) == (400, "sandbox_timeout_invalid")


@pytest.mark.section("8.1", "8.2", "8.3", "8.4", "8.5")
async def test_processes_from_their_start_to_their_end(box: Any) -> None:
    done = await now(box.run_process("sh", ["-c", "echo $LAYER; exit 3"], env={"LAYER": "command"}, capture_output=True))
    assert (done.returncode, done.stdout) == (3, "command\n")
    with pytest.raises(Exception, match="3"):
        done.check_returncode()

    process = await now(box.create_process("cat", stdin=subprocess.PIPE))
    assert (process.name, list(process.args), process.cwd) == ("cat", [], "/vercel")
    assert (process.session_id, process.returncode) == (box.current_session_id, None)
    assert process.started_at is not None
    assert str(process.status.value) == "running"
    assert (await now(process.communicate("typed\n")))[0] == "typed\n"
    await now(process.refresh())
    assert (process.returncode, str(process.status.value)) == (0, "exited")

    for method, given, code in (("send_signal", [signal.SIGINT], 130), ("terminate", [], 143), ("kill", [], 137)):
        process = await now(box.create_process("sleep", ["600"]))
        found = await now(box.get_process(process.id))
        await now(getattr(found, method)(*given))
        assert await now(process.wait()) == code
    assert len(await now(box.query_processes())) == 5

    lines = await now(box.create_process("printf", ["one\ntwo\nthree"]))
    assert await now(lines.stdout.readline()) == "one\n"
    assert not lines.stdout.closed
    assert await now(lines.stdout.read()) == "two\nthree"
    if hasattr(lines.stdout, "close"):
        lines.stdout.close()

    typed = await now(box.create_process("wc", ["-c"], stdin=subprocess.PIPE))
    if hasattr(typed.stdin, "send"):
        await typed.stdin.send(b"12345")
        await typed.stdin.aclose()
    else:
        assert typed.stdin.writable()
        typed.stdin.write(b"12345")
        typed.stdin.close()
    assert await now(typed.stdout.read()) == "5\n"

    unattached = await now(box.create_process("sleep", ["600"]))
    found = await now(box.get_process(unattached.id))
    with pytest.raises(vercel.sandbox.SandboxStdinError):
        await now(found.stdin.send(b"x") if hasattr(found.stdin, "send") else found.stdin.write(b"x"))
    await now(unattached.kill())


@pytest.mark.section("9.1", "9.2", "9.3", "17.3")
async def test_files_as_a_whole_in_batches_and_as_streams(box: Any) -> None:
    fs = box.fs
    await now(fs.write_bytes("d/bytes", b"\0\1\2"))
    assert await now(fs.read_bytes("d/bytes")) == b"\0\1\2"
    await now(fs.write_text("d/text", READ, mode=0o600))
    assert await now(fs.read_text("d/text")) == READ
    batch = fs.batch()
    if hasattr(batch, "__aenter__"):
        async with batch as filling:
            filling.write_text("b/one", "1")
            filling.write_bytes("b/two", b"2")
    else:
        with batch as filling:
            filling.write_text("b/one", "1")
            filling.write_bytes("b/two", b"2")
    assert sorted(entry.path for entry in await now(fs.listdir("b"))) == ["one", "two"]
    await now(fs.mkdir("new/deep"))
    assert await now(fs.is_dir("new/deep"))
    assert await now(fs.is_file("b/one"))
    await now(fs.rename("b/one", "new/one"))
    assert await now(fs.exists("new/one"))
    await now(fs.remove("new", recursive=True))
    assert not await now(fs.exists("new"))

    reader = await entered(fs.open("d/text", "rb"))
    assert (reader.mode, reader.closed, reader.readable(), reader.writable(), reader.seekable()) == (
        "rb",
        False,
        True,
        False,
        False,
    )
    assert reader.name
    assert await now(reader.readline()) == b"one\n"
    buffer = bytearray(4)
    assert await now(reader.readinto(buffer)) == 4
    assert bytes(buffer) == b"two\n"
    assert await now(reader.read()) == b"three\n"
    await close(reader)
    text = await entered(fs.open("d/text"))
    assert (text.mode, text.closed, text.readable(), text.writable(), text.seekable()) == ("r", False, True, False, False)
    assert text.name
    assert await now(text.readline()) == "one\n"
    assert await now(text.read()) == "two\nthree\n"
    await close(text)
    for mode, whole, lines in (("wb", b"a", [b"b\n", b"c\n"]), ("w", "a", ["b\n", WRITTEN])):
        writer = await entered(fs.open("d/written", mode))
        assert (writer.mode, writer.closed, writer.readable(), writer.writable(), writer.seekable()) == (
            mode,
            False,
            False,
            True,
            False,
        )
        assert writer.name
        await now(writer.write(whole))
        await now(writer.writelines(lines))
        await now(writer.flush())
        await close(writer)
        assert writer.closed
    assert await now(fs.read_text("d/written")) == f"ab\n{WRITTEN}"


@pytest.mark.section("17.3", "16.4")
async def test_users_have_what_is_theirs(box: Any) -> None:
    user = await now(box.create_user("alice"))
    assert (user.username, user.home_dir) == ("alice", "/home/alice")
    with pytest.raises(vercel.sandbox.SandboxUserAlreadyExistsError):
        await now(box.create_user("alice"))
    await now(user.fs.write_text("note", "hers"))
    assert await now(user.fs.read_text("note")) == "hers"
    done = await now(user.run_process("sh", ["-c", "id -un; pwd"], capture_output=True))
    assert done.stdout == "alice\n/home/alice\n"
    process = await now(user.create_process("id", ["-un"]))
    assert await now(process.stdout.read()) == "alice\n"
    other = await now(box.current_session.create_user("bob"))
    assert other.username == "bob"
    for handle in (box, box.current_session):
        root = handle.as_user("root")
        assert (await now(root.run_process("id", ["-u"], capture_output=True))).stdout == "0\n"
    refused = await now(user.run_process("sudo", ["-n", "true"]))
    assert refused.returncode != 0


@pytest.mark.section("10.1", "10.2", "10.3")
async def test_terminals_are_typed_to_and_resized(box: Any) -> None:
    async def typed(terminal: Any) -> None:
        stream = terminal.stream
        assert terminal.returncode is None
        await now(terminal.resize(91, 23))
        shown = b""
        if hasattr(stream, "send"):
            await stream.send(b"stty size; exit 7\n")
            while b"23 91" not in shown:
                shown += await stream.receive()
        else:
            assert stream.readable()
            assert stream.writable()
            stream.write(b"stty size; exit 7\n")
            chunk = bytearray(4096)
            while b"23 91" not in shown:
                shown += bytes(chunk[: stream.readinto(chunk)])
        assert await now(terminal.wait()) == 7
        assert await now(terminal.returncode) == 7

    for handle in (box, box.current_session):
        opened = handle.open_interactive("/bin/bash", ["--norc"], cols=80, rows=24)
        if hasattr(opened, "__aenter__"):
            async with opened as terminal:
                await typed(terminal)
        else:
            with opened as terminal:
                await typed(terminal)
    opened = box.open_interactive("cat")
    if hasattr(opened, "__aenter__"):
        async with opened as terminal:
            await terminal.stream.send(b"x\n")
            with pytest.raises(NotImplementedError):
                await terminal.stream.send_eof()
            await terminal.stream.send(b"\x04")
            assert await terminal.wait() == 0
            await terminal.stream.aclose()
            await terminal.aclose()
    else:
        with opened as terminal:
            terminal.stream.write(b"x\n\x04")
            assert terminal.wait() == 0
            terminal.stream.close()
            terminal.close()


@pytest.mark.section("7.2", "7.5", "11", "13.3", "13.4", "6.6")
async def test_a_session_ends_and_its_files_go_on(either: Any) -> None:
    sandbox = await now(either.create_sandbox(persistent=True))
    try:
        await now(sandbox.fs.write_text("kept", "yes"))
        await now(sandbox.stop())
        assert str(sandbox.status.value) == "stopped"
        resumed = await now(either.resume_sandbox(name=sandbox.name))
        assert resumed.current_session_id != sandbox.current_session_id
        assert await now(resumed.fs.read_text("kept")) == "yes"
        entered = resumed.session()
        if hasattr(entered, "__aenter__"):
            async with entered as session:
                assert await session.fs.read_text("kept") == "yes"
        else:
            with entered as session:
                assert session.fs.read_text("kept") == "yes"
        resumed = await now(either.resume_sandbox(name=sandbox.name))
        session = resumed.current_session
        done = await now(session.run_process("cat", ["kept"], capture_output=True))
        assert done.stdout == "yes"
        process = await now(session.create_process("sleep", ["600"]))
        assert [one.id for one in await now(session.query_processes())] == [process.id, done.id]
        assert (await now(session.get_process(process.id))).id == process.id
        snapshot = await now(session.snapshot(expiration=timedelta(days=1)))
        assert (str(snapshot.status), snapshot.creation_method, snapshot.source_session_id) == ("created", "manual", session.id)
        assert snapshot.size_bytes > 0
        assert snapshot.expires_at is not None
        assert (snapshot.region, list(snapshot.regions)) == ("iad1", ["iad1"])
        assert snapshot.parent_id is not None
        assert snapshot.last_used_at is not None
        assert snapshot.updated_at >= snapshot.created_at
        assert (await now(either.get_snapshot(snapshot_id=snapshot.id))).id == snapshot.id
        listed = [one.id for one in await now(resumed.list_snapshots())]
        assert listed[0] == snapshot.id
        assert [one.id for one in await items(either.query_snapshots(name=sandbox.name))] == listed
        fork = await now(either.fork_sandbox(source_sandbox=sandbox.name))
        assert await now(fork.fs.read_text("kept")) == "yes"
        await now(fork.current_session.stop())
        await now(fork.destroy(delete_orphan_snapshots=True))
        child = await now(either.create_sandbox(source=SnapshotSource(snapshot_id=snapshot.id), persistent=False))
        assert child.current_snapshot_id == snapshot.id
        second = await now(child.snapshot())
        await now(child.destroy())
        await now(second.delete())
        await now(snapshot.delete())
        with pytest.raises(SandboxApiError) as gone:
            await now(either.resume_sandbox(name=sandbox.name))
        assert (gone.value.status_code, gone.value.code) == (410, "snapshot_not_found")
        anew, created = await now(either.get_or_create_sandbox(name=sandbox.name, persistent=False))
        assert created
        assert not await now(anew.fs.exists("kept"))
    finally:
        found = await now(either.get_sandbox(name=sandbox.name))
        await now(found.destroy(delete_orphan_snapshots=True))


@pytest.mark.section("12")
async def test_drives_by_their_names(either: Any) -> None:
    name = f"whole-{os.getpid()}"
    drive, created = await now(either.get_or_create_drive(name=name, max_size_bytes=SIZE))
    assert created
    assert (drive.name, drive.max_size_bytes, drive.region) == (name, SIZE, "iad1")
    assert (drive.current_session_id, drive.current_sandbox_name) == (None, None)
    assert (drive.parent_drive_id, drive.root_drive_id) == (None, None)
    assert drive.project_id
    assert drive.updated_at >= drive.created_at
    sandbox = await now(either.create_sandbox(persistent=False, mounts={"/data": drive}))
    await now(sandbox.fs.write_text("/data/f", "one"))
    assert (await now(either.get_drive(name_or_id=drive.id))).current_sandbox_name == sandbox.name
    await now(sandbox.destroy())
    fork = await now(drive.fork(name=f"{name}-a"))
    assert fork.parent_drive_id == drive.id
    assert (await now(either.fork_drive(source=name, name=f"{name}-b"))).parent_drive_id == drive.id
    reader = await now(either.create_sandbox(persistent=False, mounts={"/seen": fork.snapshot()}))
    assert await now(reader.fs.read_text("/seen/f")) == "one"
    await now(reader.destroy())
    assert {one.name for one in await items(either.query_drives())} >= {name, f"{name}-a", f"{name}-b"}
    await now(drive.delete())
    await now(either.delete_drive(name=f"{name}-a"))
    await now(either.delete_drive(name=f"{name}-b"))


@pytest.mark.section("2.3")
@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_the_functions_of_the_module_do_the_same(flavour: str, watched: RunningServer, leak_check: None) -> None:
    url = f"{watched.where.url}/api"
    if flavour == "sync":
        options = SyncOptions(base_url=url, credentials_factory=lambda: credentials(watched.where))
        with ambient_session(service_options=[options]):
            await _module(vercel.sandbox.sync)
        return

    async def factory() -> Any:
        return credentials(watched.where)

    async with ambient_session(service_options=[SandboxServiceOptions(base_url=url, credentials_factory=factory)]):
        await _module(vercel.sandbox)


async def _module(module: Any) -> None:
    name = f"{module.__name__.rpartition('.')[2]}-{os.getpid()}"
    sandbox = await now(module.create_sandbox(name=name, persistent=True))
    try:
        assert (await now(module.get_sandbox(name=name))).name == name
        assert (await now(module.get_or_create_sandbox(name=name)))[1] is False
        assert (await now(module.resume_sandbox(name=name))).name == name
        assert name in [one.name for one in await items(module.query_sandboxes())]
        assert len(await items(module.query_sessions(name=name))) == 1
        fork = await now(module.fork_sandbox(source_sandbox=name, persistent=False))
        await now(fork.destroy())
        await now(sandbox.stop())
        [snapshot] = await items(module.query_snapshots(name=name))
        assert (await now(module.get_snapshot(snapshot_id=snapshot.id))).id == snapshot.id
    finally:
        await now(sandbox.destroy(delete_orphan_snapshots=True))
    drive, _ = await now(module.get_or_create_drive(name=name, max_size_bytes=SIZE))
    assert (await now(module.get_drive(name_or_id=name))).id == drive.id
    assert name in [one.name for one in await items(module.query_drives())]
    with pytest.raises(SandboxApiError) as early:
        await now(module.fork_drive(source=name, name=f"{name}-fork"))
    assert early.value.code == "drive_not_initialized"
    await now(module.delete_drive(name=name))


@pytest.mark.section("2.3")
async def test_a_client_is_made_and_closed(watched: RunningServer, leak_check: None) -> None:
    async def factory() -> Any:
        return credentials(watched.where)

    for base in (watched.where.url, f"{watched.where.url}/api", f"{watched.where.url}/api/"):
        client = SandboxClient.create(options=SandboxServiceOptions(base_url=base, credentials_factory=factory))
        assert isinstance(await items(client.query_sandboxes()), list)
        await client.aclose()
        sync = SyncSandboxClient.create(
            options=SyncOptions(base_url=base, credentials_factory=lambda: credentials(watched.where))
        )
        assert isinstance(list(sync.query_sandboxes()), list)
        sync.close()
