"""The Python codec and the real agent: requests, attached output, files, and what a careless host could send."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import shutil
import socket
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from hutch.errors import BadRequestError, ConflictError, HutchError, NotFoundError
from hutch.wire.connection import ConnectionClosed, Data, Message
from hutch.wire.frames import Kind, encode_frame
from tests.wire.agent import UID, Guest, expect, finish, guest

BEGINNING: dict[str, Any] = {"network": None, "entropy": b"", "time_ns": 1, "boot_id": "0" * 36}
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can start programs as another user"),
]


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[Guest]:
    """A claimed agent, an ordinary process."""
    # The path of a Unix socket is short, and the claim's user must be able to get to its home.
    directory = Path(f"/tmp/hutch-interop-{os.getpid()}-{os.urandom(4).hex()}")
    directory.mkdir(mode=0o755)
    try:
        async with guest(directory) as running:
            await running.claim()
            yield running
    finally:
        shutil.rmtree(directory)


@pytest.fixture
async def init(tmp_path: Path) -> AsyncIterator[Guest]:
    """An agent that is process 1, not claimed."""
    directory = Path(f"/tmp/hutch-interop-{os.getpid()}-{os.urandom(4).hex()}")
    directory.mkdir(mode=0o755)
    try:
        async with guest(directory, as_init=True) as running:
            yield running
    finally:
        shutil.rmtree(directory)


# -- the claim ------------------------------------------------------------------------------------------


async def test_a_claim_can_be_repeated_and_its_token_comes_back(agent: Guest) -> None:
    first = await agent.connection.greeted()
    assert (first.token, len(first.boot)) == ("", 32)
    assert (await (await agent.reconnected()).greeted()).token == "token-1"
    await agent.claim(token="token-2")
    again = await (await agent.reconnected()).greeted()
    assert (again.token, again.boot) == ("token-2", first.boot)


async def test_an_ordinary_process_leaves_the_hosts_name_alone(agent: Guest) -> None:
    assert socket.gethostname() != "sandbox"
    assert (await agent.run("hostname")).stdout.decode().strip() == socket.gethostname()


async def test_process_1_has_the_claims_name_and_reaps_what_nobody_waits_for(init: Guest) -> None:
    await init.claim()
    await init.claim()
    result = await init.shell("hostname; cat /etc/hosts; echo $$")
    lines = result.stdout.decode().splitlines()
    assert lines[0] == "sandbox"
    assert "127.0.1.1 sandbox" in lines
    assert socket.gethostname() != "sandbox"
    # Orphans of orphans, which end at the same time as commands do.
    results = await asyncio.gather(*(init.shell(f"(sh -c 'true & true &' &) ; (exit {code})") for code in range(30)))
    assert [result.exit_code for result in results] == list(range(30))
    states = await init.shell("sleep 0.1; cat /proc/[0-9]*/stat", user="root")
    assert b") Z " not in states.stdout


async def test_the_guests_clock_is_set_or_it_says_why_not(init: Guest) -> None:
    status = Path(f"/proc/{init.process.pid}/task/{init.process.pid}/children").read_text().split()
    effective = Path(f"/proc/{status[0]}/status").read_text().partition("CapEff:")[2].split()[0]
    assert not int(effective, 16) >> 25 & 1, "this agent could change the clock of this machine"
    with pytest.raises(HutchError) as error:
        await init.connection.call("clock.set", {"time_ns": 1_000_000_000})
    assert (error.value.status, error.value.code) == (500, "agent_error")
    await init.connection.call("entropy.add", {"data": os.urandom(4096)})
    await init.claim(time_ns=1_000_000_000)


async def test_no_guest_process_can_kill_or_trace_process_1(init: Guest) -> None:
    await init.claim()
    result = await init.shell("kill -9 1; kill -9 -1; cat /proc/1/environ /proc/1/mem; ls /proc/1/fd /proc/1/cwd")
    assert result.exit_code != 0
    assert result.stdout == b""
    # Root may try too: process 1 takes no signal of its own namespace.
    await init.shell("kill -9 1; kill -TERM 1; kill -STOP 1", user="root")
    assert (await init.run("echo", "alive")).stdout == b"alive\n"


async def test_shutdown_of_process_1_ends_everything(init: Guest) -> None:
    await init.claim()
    stubborn = init.start("sh", "-c", "trap '' TERM; setsid sleep 1000 & echo ready; while :; do sleep 1000; done")
    await stubborn.reply()
    await expect(stubborn, b"ready")
    await init.connection.call("shutdown", {"grace_ms": 100})
    assert (await finish(stubborn)).exit_code == 137
    assert (await init.shell("cat /proc/[0-9]*/comm")).stdout.count(b"sleep") == 0


# -- commands -------------------------------------------------------------------------------------------


async def test_a_command_runs_as_its_user_with_its_environment(agent: Guest) -> None:
    result = await agent.shell("id -u; id -G; pwd; echo $HOME $USER $CLAIMED $OWN; echo no >&2; exit 7", env={"OWN": "mine"})
    home = str(agent.home)
    assert result.stdout.decode().splitlines() == [str(UID), f"{UID} 27", home, f"{home} tester yes mine"]
    assert (result.stderr, result.exit_code) == (b"no\n", 7)
    result = await agent.shell("id -u; echo $HOME $SUDO_USER $SUDO_UID $SUDO_GID", user="root")
    assert result.stdout.decode().splitlines() == ["0", f"/root tester {UID} {UID}"]


async def test_output_is_continued_from_any_offset(agent: Guest) -> None:
    stream = agent.start("sh", "-c", "echo one; read x; echo two; read x; echo three", stdin=True, id="talk")
    await stream.reply()
    await expect(stream, b"one\n")
    await agent.reconnected()
    with pytest.raises(ConnectionClosed):
        await stream.next()
    attached = agent.connection.open("command.attach", {"id": "talk", "offset": 4})
    assert (await attached.reply())["offset"] == 4
    await attached.send_data(b"\n", 0)
    assert await expect(attached, b"two\n") == b"two\n"
    other = agent.connection.open("command.attach", {"id": "talk", "offset": 6})
    other.manual_credit = True  # What is not acknowledged can be had again.
    assert (await other.reply())["running"] is True
    assert await attached.next() is None, "the former stream ends"
    await other.send_data(b"\n", 0)
    assert (await finish(other)).stdout == b"o\nthree\n"
    late = agent.connection.open("command.attach", {"id": "talk", "offset": 8})
    assert await late.reply() | {"pid": 0} == {"pid": 0, "offset": 8, "running": False}
    assert await finish(late) == await finish_again(agent, "talk", 8)
    with pytest.raises(BadRequestError):
        await agent.connection.open("command.attach", {"id": "talk", "offset": 1000}).reply()
    with pytest.raises(NotFoundError):
        await agent.connection.open("command.attach", {"id": "other", "offset": 0}).reply()


async def finish_again(agent: Guest, command: str, offset: int) -> Any:
    stream = agent.connection.open("command.attach", {"id": command, "offset": offset})
    await stream.reply()
    return await finish(stream)


async def test_credit_is_the_acknowledgement(agent: Guest) -> None:
    stream = agent.start("sh", "-c", "printf 0123456789; sleep 1000", id="kept")
    stream.manual_credit = True
    await stream.reply()
    await expect(stream, b"0123456789")
    stream.grant(4)
    await agent.connection.ping(5)
    await agent.reconnected()
    listed = (await agent.connection.call("command.list", {}))["commands"][0]
    assert (listed["id"], listed["end"], listed["running"]) == ("kept", 10, True)
    attached = agent.connection.open("command.attach", {"id": "kept", "offset": 4})
    assert (await attached.reply())["offset"] == 4
    await expect(attached, b"456789")


async def test_a_command_waits_for_a_host_that_does_not_read(agent: Guest) -> None:
    stream = agent.start("sh", "-c", "head -c 3000000 /dev/zero; echo done >&2", id="big")
    await stream.reply()
    while sum(len(item.data) for item in stream._items if isinstance(item, Data)) < 256 * 1024:
        await agent.connection.ping(5)
    listed = (await agent.connection.call("command.list", {}))["commands"][0]
    assert listed["running"]
    assert listed["end"] - listed["start"] <= 256 * 1024
    result = await finish(stream)
    assert (len(result.stdout), result.stderr, result.exit_code) == (3_000_000, b"done\n", 0)


async def test_discarded_output_is_counted(agent: Guest) -> None:
    stream = agent.start("sh", "-c", "echo one; read x; head -c 5000000 /dev/zero; read x; echo two", stdin=True, id="d")
    await stream.reply()
    await expect(stream, b"one\n")
    await stream.send_event({"sink": "discard"})
    await stream.send_data(b"\n", 0)
    while (await agent.connection.call("command.list", {}))["commands"][0]["end"] < 5_000_004:
        pass
    await stream.send_event({"sink": "forward"})
    await stream.send_data(b"\n", 0)
    result = await finish(stream)
    assert (result.stdout, result.skipped, result.exit_code) == (b"two\n", 5_000_000, 0)


async def test_standard_input_and_its_end(agent: Guest) -> None:
    stream = agent.start("sha256sum", stdin=True)
    await stream.reply()
    body = os.urandom(3_000_000)
    await stream.send_data(body, 0)
    await stream.send_event({"eof": True})
    assert (await finish(stream)).stdout.decode().split()[0] == hashlib.sha256(body).hexdigest()


async def test_a_terminal_is_one(agent: Guest) -> None:
    stream = agent.start("sh", "-c", "test -t 0 && stty size; read x; stty size", pty={"cols": 91, "rows": 17})
    await stream.reply()
    await expect(stream, b"17 91")
    await stream.send_event({"resize": [100, 30]})
    await stream.send_data(b"\n", 0)
    result = await finish(stream)
    assert b"30 100" in result.stdout
    assert result.exit_code == 0


async def test_signals_and_timeouts(agent: Guest) -> None:
    stream = agent.start("sleep", "1000", id="s")
    await stream.reply()
    await agent.connection.call("command.signal", {"id": "s", "signal": 15, "group": True})
    assert (await finish(stream)).exit_code == 143
    with pytest.raises(NotFoundError) as error:
        await agent.connection.call("command.signal", {"id": "s", "signal": 15, "group": True})
    assert error.value.code == "command_not_found_or_exited"
    assert (await agent.run("sleep", "1000", timeout_ms=50)).exit_code == 137


async def test_starts_that_cannot_be(agent: Guest) -> None:
    with pytest.raises(BadRequestError) as error:
        await agent.start("no-such-program").reply()
    assert error.value.code == "executable_not_found"
    assert error.value.message == "[invalid_argument] executable file not found in $PATH: no-such-program"
    with pytest.raises(BadRequestError):
        await agent.start("true", cwd=b"/no/such/directory").reply()
    with pytest.raises(BadRequestError):
        await agent.start("true", env={"A": "x" * 140_000}).reply()
    await agent.run("true", id="twice")
    with pytest.raises(ConflictError):
        await agent.start("true", id="twice").reply()
    await agent.connection.call("command.forget", {"id": "twice"})
    assert (await agent.run("true", id="twice")).exit_code == 0


# -- files ------------------------------------------------------------------------------------------------


async def put(agent: Guest, method: str, body: bytes, **params: Any) -> dict[str, Any]:
    stream = agent.connection.open(method, {"user": "default"} | params)
    await stream.send_data(body, 0)
    stream.send_end()
    return await stream.reply()


async def get(agent: Guest, path: bytes) -> bytes:
    stream = agent.connection.open("file.read", {"path": path, "user": "default"})
    stream.send_end()
    await stream.reply()
    return (await finish(stream)).stdout


async def test_files_arrive_whole(agent: Guest) -> None:
    body = os.urandom(1_000_000)
    name = b"\xff\xfe odd \x01"
    assert await put(agent, "file.write", body, path=name, mode=0o640) == {"size": len(body)}
    assert await get(agent, name) == body
    stat = await agent.connection.call("file.stat", {"path": name, "user": "default"})
    assert (stat["kind"], stat["size"], stat["mode"], stat["uid"]) == ("file", len(body), 0o640, UID)
    with pytest.raises(NotFoundError):
        await get(agent, b"missing")
    with pytest.raises(BadRequestError):
        await get(agent, b"/root/.")
    await agent.connection.call("file.mkdir", {"path": b"a/b", "user": "default", "recursive": True})
    with pytest.raises(BadRequestError) as error:
        await agent.connection.call("file.mkdir", {"path": b"a", "user": "default", "recursive": False})
    assert error.value.message == f"error creating directory: {agent.home}/a: File exists"


def archive(*entries: tuple[str, bytes | None, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, content in entries:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.linkname = "/etc/passwd" if kind else ""
            if kind:
                info.type = kind
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


LIMITS = {"gzip": True, "max_bytes": 10_000_000, "max_files": 100}


async def test_archives_are_unpacked_or_refused_as_a_whole(agent: Guest) -> None:
    body = archive(("a/b.txt", None, b"one"), ("x" * 200 + "/ü", None, b"two"))
    assert await put(agent, "archive.write", body, cwd=bytes(agent.home), **LIMITS) == {"files": 2, "bytes": 6}
    assert await get(agent, b"a/b.txt") == b"one"
    for bad in [("../up", None), ("/abs", None), ("l", tarfile.SYMTYPE), ("h", tarfile.LNKTYPE), ("d", tarfile.CHRTYPE)]:
        with pytest.raises(BadRequestError) as error:
            await put(agent, "archive.write", archive(("good", None, b"x"), (*bad, b"")), cwd=bytes(agent.home), **LIMITS)
        assert error.value.code == "invalid_archive"
    with pytest.raises(BadRequestError):
        await put(agent, "archive.write", archive(("bomb", None, bytes(20_000_000))), cwd=bytes(agent.home), **LIMITS)
    assert not (agent.home / "good").exists()
    assert not list(agent.home.rglob(".hutch-*"))


# -- a host that errs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("no.such.method", {}),
        ("command.start", {}),
        ("command.start", {"id": 5, "argv": [b"true"], "env": {}, "user": "default", "stdin": False}),
        ("command.start", {"id": "x" * 200, "argv": [b"true"], "env": {}, "user": "default", "stdin": False}),
        ("command.start", {"id": "x", "argv": [], "env": {}, "user": "default", "stdin": False}),
        ("command.start", {"id": "x", "argv": ["text"], "env": {}, "user": "default", "stdin": False}),
        ("command.start", {"id": "x", "argv": [b"a\0b"], "env": {}, "user": "default", "stdin": False}),
        ("command.start", {"id": "x", "argv": [b"true"], "env": {"A=B": "c"}, "user": "default", "stdin": False}),
        ("command.start", {"id": "x", "argv": [b"true"], "env": {"A": "c\0"}, "user": "default", "stdin": False}),
        ("command.start", {"id": "x", "argv": [b"true"], "env": {}, "user": "daemon", "stdin": False}),
        ("command.start", {"id": "x", "argv": [b"true"], "env": {}, "user": "default", "stdin": "yes"}),
        ("command.attach", {"id": "x", "offset": -7}),
        ("command.signal", {"id": "x", "signal": 0, "group": False}),
        ("command.signal", {"id": "x", "signal": 2**40, "group": False}),
        ("file.read", {"path": b"", "user": "default"}),
        ("file.read", {"path": b"a\0b", "user": "default"}),
        ("file.write", {"path": b"x", "user": "default", "mode": -1}),
        ("archive.write", {"cwd": b"/", "user": "default", "gzip": True, "max_bytes": -1, "max_files": 1}),
        ("entropy.add", {"data": bytes(5000)}),
        ("claim", {"hostname": "x"}),
        # It is process 1 of no machine.
        ("machine.begin", BEGINNING),
        (
            "machine.begin",
            {"entropy": b"", "time_ns": 1, "boot_id": "0" * 36, "endings": [{"path": b"a\0", "size": 0, "data": b""}]},
        ),
        (
            "machine.begin",
            {"entropy": b"", "time_ns": 1, "boot_id": "0" * 36, "endings": [{"path": b"a", "size": -1, "data": b""}]},
        ),
        ("drives.mount", {"mounts": []}),
        ("drives.mount", {"mounts": [{"path": b"/a\0b", "read_only": False, "owner": None}]}),
        ("drives.mount", {"mounts": [{"path": b"/a", "read_only": False, "owner": [1]}]}),
        ("drives.mount", {"mounts": [{"path": b"/a", "read_only": False, "owner": None}] * 1000}),
        ("shutdown", {"grace_ms": -1}),
    ],
)
async def test_requests_of_the_wrong_form_are_answered(agent: Guest, method: str, params: dict[str, Any]) -> None:
    with pytest.raises(BadRequestError) as error:
        await agent.connection.call(method, params)
    assert error.value.code == "bad_request"
    assert (await agent.run("echo", "alive")).stdout == b"alive\n"


async def test_an_event_of_the_wrong_form_ends_the_stream_and_not_the_command(agent: Guest) -> None:
    stream = agent.start("sleep", "1000", id="s")
    await stream.reply()
    await stream.send_event({"resize": "large"})
    with pytest.raises(BadRequestError):
        await stream.next()
    assert (await agent.connection.call("command.list", {}))["commands"][0]["running"]


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n\r\n", encode_frame(Kind.DATA, 4000, b"x"), encode_frame(Kind.REPLY, 1, b"\x80")]
)
async def test_a_violation_ends_the_channel_and_the_agent_comes_back(agent: Guest, data: bytes) -> None:
    stream = agent.start("sh", "-c", "read x; echo $x", stdin=True, id="s")
    await stream.reply()
    assert agent.connection._transport is not None
    agent.connection._transport.write(data)
    await agent.next_connection()
    attached = agent.connection.open("command.attach", {"id": "s", "offset": -1})
    assert (await attached.reply())["running"] is True
    await attached.send_data(b"still here\n", 0)
    assert (await finish(attached)).stdout == b"still here\n"


async def test_requests_by_the_hundred(agent: Guest) -> None:
    results = await asyncio.gather(*(agent.run("echo", str(number)) for number in range(200)))
    assert [result.stdout for result in results] == [f"{number}\n".encode() for number in range(200)]
    assert not agent.connection.mux.streams
    await asyncio.gather(*(agent.connection.call("ping", {}) for _ in range(900)))


async def test_messages_are_events(agent: Guest) -> None:
    stream = agent.start("true")
    await stream.reply()
    items = [item async for item in stream]
    assert [type(item) for item in items] == [Message]
