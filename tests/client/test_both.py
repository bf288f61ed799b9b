"""Both flavours against a real server with real sandboxes. The blocking one is called inside a loop, as in a notebook."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from hutch.client import AsyncClient, Client, CommandFailedError, DriveMount, SnapshotSource
from hutch.errors import BadRequestError, ConflictError, GoneError, HutchError, NotFoundError
from hutch.metering import receipts
from tests.client.flavours import chunks, each, now, within
from tests.conftest import RunningServer


@pytest.fixture(params=[AsyncClient, Client], ids=["async", "sync"])
async def own(request: pytest.FixtureRequest, server: RunningServer, leak_check: None) -> AsyncIterator[Any]:
    """A client of either flavour; what a test leaves is deleted."""
    async with within(request.param(server.where)) as made:
        yield made
        for record in await each(made.query_sandboxes()):
            await now(made.sandboxes.delete(record.name))
        for snapshot in await each(made.query_snapshots()):
            if snapshot.status != "deleted":
                await now(snapshot.delete())


@pytest.fixture
async def box(own: Any) -> Any:
    return await now(own.create_sandbox(persistent=False))


async def test_a_command_says_all_and_its_code(box: Any) -> None:
    done = await now(box.run_command("sh", ["-c", "echo out; echo problem >&2; exit 3"]))
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "problem\n")
    with pytest.raises(CommandFailedError, match="problem") as raised:
        await now(box.run_command("sh", ["-c", "echo problem >&2; exit 3"], check=True))
    assert raised.value.completed.returncode == 3
    with pytest.raises(BadRequestError) as missing:
        await now(box.run_command("no-such-program"))
    assert missing.value.code == "executable_not_found"


async def test_output_comes_while_the_command_runs(box: Any) -> None:
    script = "echo first; read answer; echo $answer"
    command = await now(box.create_command("sh", ["-c", script], stdin=True))
    log = command.logs()
    first = await anext(log) if hasattr(log, "__anext__") else next(log)
    assert first.text == "first\n"
    # The second line is there only because the first one was seen.
    await now(command.write_stdin("second\n"))
    assert "".join(piece.text for piece in await each(log)) == "second\n"
    assert await now(command.wait()) == 0
    found = await now(box.get_command(command.id))
    assert (found.returncode, [one.id for one in await now(box.query_commands())]) == (0, [command.id])
    assert (await now(found.output())).stdout == "first\nsecond\n"


async def test_input_is_written_whole_also_what_is_not_read(box: Any) -> None:
    data = os.urandom(700_000).hex()
    assert (await now(box.run_command("wc", ["-c"], input=data))).stdout.strip() == str(len(data))
    assert (await now(box.run_command("head", ["-c", "3"], input=data))).stdout == data[:3]


async def test_commands_end_by_signal_and_by_time(box: Any) -> None:
    command = await now(box.create_command("sleep", ["600"]))
    await now(command.kill())
    assert await now(command.wait()) == 137
    await now(command.terminate())
    assert await now(command.wait()) == 137
    assert (await now(box.run_command("sleep", ["600"], kill_after=0.2))).returncode == 137


async def test_cancelling_closes_the_stream_and_the_client_works_on(server: RunningServer, leak_check: None) -> None:
    async with AsyncClient(server.where) as client, await client.create_sandbox(persistent=False) as sandbox:
        seen = asyncio.Event()
        running = asyncio.create_task(
            sandbox.run_command("sh", ["-c", "echo ready; exec sleep 600"], on_output=lambda piece: seen.set())
        )
        await seen.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        [left] = await sandbox.query_commands()
        assert left.returncode is None
        await left.kill()
        assert await left.wait() == 137


async def test_files_are_written_found_moved_and_removed(box: Any) -> None:
    fs = box.fs
    await now(fs.write_text("a dir/größe €.txt", "text", mode=0o755))
    await now(fs.write_bytes("/tmp/bytes", bytes(range(256))))
    assert await now(fs.read_bytes("/tmp/bytes")) == bytes(range(256))
    assert await now(fs.read_text("größe €.txt", cwd="a dir")) == "text"
    await now(box.run_command("ln", ["-s", "nowhere", "a dir/-link\n"]))
    await now(fs.mkdir("a dir/.hidden/below"))
    names = [(entry.path.rpartition("/")[2], entry.kind) for entry in await now(fs.listdir("a dir"))]
    assert names == [("-link\n", "symlink"), (".hidden", "directory"), ("größe €.txt", "file")]
    stat = await now(fs.stat("a dir/größe €.txt"))
    assert (stat.size_bytes, stat.kind, stat.mode) == (4, "file", 0o755)
    assert [await now(fs.exists(path)) for path in ("a dir", "nothing")] == [True, False]
    assert [await now(fs.is_dir(path)) for path in ("a dir", "/tmp/bytes")] == [True, False]
    assert [await now(fs.is_file(path)) for path in ("a dir", "/tmp/bytes")] == [False, True]
    await now(fs.rename("/tmp/bytes", "a dir/moved"))
    assert await now(fs.exists("a dir/moved"))
    await now(fs.remove("a dir/moved"))
    with pytest.raises(BadRequestError, match="not empty"):
        await now(fs.remove("a dir"))
    await now(fs.remove("a dir", recursive=True))
    await now(fs.remove("a dir", missing_ok=True))
    for asked in (fs.remove, fs.stat, fs.listdir, fs.read_bytes):
        with pytest.raises(NotFoundError):
            await now(asked("a dir"))
    with pytest.raises(NotFoundError):
        await now(fs.rename("a dir", "elsewhere"))
    with pytest.raises(BadRequestError, match="File exists"):
        await now(fs.mkdir("/tmp", recursive=False))


async def test_streams_of_files(own: Any, box: Any) -> None:
    flavour = type(own)
    parts = [os.urandom(300_000) for _ in range(5)]
    await now(box.fs.write_stream("known", chunks(flavour, *parts), size=1_500_000))
    await now(box.fs.write_stream("unknown", chunks(flavour, *parts)))
    for name in ("known", "unknown"):
        assert b"".join(await each(box.fs.read_stream(name))) == b"".join(parts)
    await now(box.fs.write_bytes("empty", b""))
    assert await now(box.fs.read_bytes("empty")) == b""
    assert b"".join(await each(box.fs.read_stream("empty"))) == b""
    for wrong in (1, 1_500_001):
        with pytest.raises(HutchError):
            await now(box.fs.write_stream("wrong", chunks(flavour, *parts), size=wrong))
    assert not await now(box.fs.exists("wrong"))


async def test_directories_go_in_and_come_out(box: Any, tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    (source / "sub" / "empty").mkdir(parents=True)
    (source / "sub" / "data").write_bytes(b"x" * 100_000)
    assert await now(box.fs.upload(source, "tree")) == 100_000
    assert await now(box.fs.download("tree", target)) == 100_000
    assert sorted(path.relative_to(target).as_posix() for path in target.rglob("*")) == ["sub", "sub/data", "sub/empty"]
    assert await now(box.fs.download("tree/sub/data", tmp_path / "one")) == 100_000
    with pytest.raises(NotFoundError):
        await now(box.fs.download("nothing", tmp_path / "two"))
    assert not list(tmp_path.glob("*two*"))


async def test_a_terminal_shows_and_ends(box: Any) -> None:
    async with within(box.open_interactive("sh", cols=101, rows=33)) as terminal:
        await now(terminal.send(b"stty size; read x; exit 7\n"))
        shown = io.BytesIO()
        output = terminal.output()
        while b"33 101" not in shown.getvalue():
            shown.write(await anext(output) if hasattr(output, "__anext__") else next(output))
        await now(terminal.resize(80, 24))
        await now(terminal.send(b"\n"))
        await each(output)
    assert terminal.returncode == 7


async def test_a_persistent_sandbox_goes_on_and_another_one_does_not(own: Any, box: Any) -> None:
    heard: list[Any] = []
    kept, made = await now(own.get_or_create_sandbox("kept", on_resume=heard.append))
    assert made
    await now(kept.fs.write_text("note", "one"))
    ended = await now(kept.stop())
    assert (ended.status, kept.status) == ("stopped", "stopped")
    with pytest.raises(GoneError):
        await now(ended.run_command("true"))
    assert await now(kept.fs.read_text("note")) == "one"
    assert heard == [kept]
    assert len(await each(kept.list_sessions())) == 2
    again, made = await now(own.get_or_create_sandbox("kept"))
    assert (again.session_id, made) == (kept.session_id, False)
    with pytest.raises(ConflictError):
        await now(own.create_sandbox(name="kept"))
    used = await now(kept.usage())
    assert used.active_cpu_us > 0
    assert used.wall_us > 0
    assert used.creations == 2
    assert used.amount_nano > 0
    receipt = await now(kept.receipt())
    receipts.verify(receipt, await now(own.usage.receipt_keys()))
    assert receipt["usage"]["creations"] == 2
    await now(box.stop())
    with pytest.raises(GoneError):
        await now(box.run_command("true"))


async def test_lists_go_from_page_to_page(own: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = "_async" if isinstance(own, AsyncClient) else "_sync"
    for name in ("c", "a", "b"):
        await now(own.create_sandbox(name=f"page-{name}", persistent=False))
    monkeypatch.setattr(f"hutch.client.{module}.sandboxes.PAGE", 1)
    found = await each(own.query_sandboxes(sort_by="name", sort_order="asc", name_prefix="page-"))
    assert [record.name for record in found] == ["page-a", "page-b", "page-c"]


async def test_an_update_and_a_policy(own: Any, box: Any) -> None:
    await now(box.update(tags={"a": "b"}, network_policy="deny-all"))
    assert box.tags == {"a": "b"}
    assert box.network_policy["mode"] == "deny-all"
    assert box.explain("https://example.com/").decision == "deny"
    rule = {"match": {"path": {"exact": "/only"}}, "transform": [{"headers": {"authorization": "Bearer secret"}}]}
    await now(box.update_network_policy({"allow": {"api.example.com": [rule]}}))
    found = box.explain("https://api.example.com/only")
    assert (found.decision, found.pattern, found.rule.index) == ("inject", "api.example.com", 0)
    assert box.explain("https://api.example.com/only", bounds=["deny-all"]).decision == "deny"
    assert {record["kind"] for record in await each(box.audit())} == {"policy"}
    assert (await now(box.traffic())).session_id == box.session_id


async def test_snapshots_forks_and_drives(own: Any, box: Any, tmp_path: Path) -> None:
    await now(box.fs.write_text("/tmp/state", "one"))
    await now(box.create_command("sleep", ["600"]))
    snapshot = await now(box.snapshot(keep_running=True))
    assert (snapshot.status, snapshot.memory_bytes) == ("created", 0)
    other = await now(own.create_sandbox(source=SnapshotSource(snapshot_id=snapshot.id), persistent=False))
    assert await now(other.fs.read_text("/tmp/state")) == "one"
    exported = b"".join(await each(snapshot.export()))
    imported = await now(own.import_snapshot(chunks(type(own), exported)))
    assert imported.id != snapshot.id
    assert await now(snapshot.export_to(tmp_path / "exported.tar")) == (tmp_path / "exported.tar").stat().st_size
    assert (await now(own.import_snapshot(tmp_path / "exported.tar"))).status == "created"
    with pytest.raises(BadRequestError, match="can't be read"):
        await now(own.import_snapshot(tmp_path / "nothing.tar"))
    forks = await now(box.fork(memory=True, count=2))
    for fork in forks:
        assert (await now(fork.run_command("pgrep", ["-f", "sleep 600"]))).returncode == 0
    assert [found.id for found in await each(box.list_snapshots()) if found.status == "created"] == [snapshot.id]
    drive = await now(own.get_or_create_drive("data", max_size_bytes=2**30))
    writer = await now(own.create_sandbox(persistent=False, mounts={"/data": drive.mount()}))
    await now(writer.run_command("sh", ["-c", "echo kept > /data/file"], sudo=True, check=True))
    with pytest.raises(ConflictError):
        await now(drive.delete())
    await now(writer.destroy())
    reader = await now(own.create_sandbox(persistent=False, mounts={"/data": DriveMount("data", "snapshot")}))
    assert await now(reader.fs.read_text("/data/file")) == "kept\n"
    await now(reader.destroy())
    copy = await now(drive.fork(name="copy"))
    assert [found.name for found in await each(own.query_drives(sort_by="name", sort_order="asc"))] == ["copy", "data"]
    await now(copy.delete())
    await now(drive.delete())


async def test_objects_show_what_they_are_and_obey_nobody(own: Any, box: Any) -> None:
    done = await now(box.run_command("echo", ["<script>alert(1)</script>"]))
    for shown in (own, box, box.session, await now(box.create_command("true"))):
        assert type(shown).__name__ in repr(shown)
    assert box.name in box._repr_html_()
    assert "<script>" not in done._repr_html_()


async def test_who_asks_and_how_the_server_is(own: Any) -> None:
    identity = await now(own.whoami())
    assert (identity.role, identity.team.id) == ("admin", own.server.team_id)
    assert (await now(own.health())).isolation == "gvisor"
