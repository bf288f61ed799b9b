"""kill -9 of every process of a server at once, or of one of them: sandboxes and their commands run on."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
from pathlib import Path

import httpx
import pytest

from hutch.client import AsyncClient, Output, Server
from tests import leaks
from tests.conftest import start_server, stop_server, wait_until

pytestmark = [pytest.mark.root, pytest.mark.sandbox, pytest.mark.campaign]

SCRIPT = "n=1; while [ $n -le 40 ]; do echo line $n; n=$((n+1)); sleep 0.05; done; exit 7"
EXPECTED = "".join(f"line {number}\n" for number in range(1, 41))


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def gateway(data_dir: Path) -> int:
    """The id of the gateway's process."""
    return int((data_dir / "host" / "gateway" / "process").read_text().split()[0])


def kill_everything(process: subprocess.Popen[bytes], *others: int) -> None:
    """SIGKILL to the supervisor and its children, so that none can tell another."""
    processes = [process.pid, *children(process.pid), *others]
    for pid in processes:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    wait_until(lambda: all(gone(pid) for pid in processes), 10, "the server's processes to be gone")


async def begin(where: Server) -> tuple[str, str, str]:
    """A new sandbox with a detached command: name, session, command."""
    async with AsyncClient(where) as client:
        made = await client.sandboxes.create()
        command = await client.commands.start(made.session.id, ["sh", "-c", SCRIPT])
        return made.sandbox.name, made.session.id, command.id


async def check(where: Server, session: str, command: str) -> None:
    """The command ended by itself, and nothing of its output is missing."""
    async with AsyncClient(where) as client:
        ended = await client.commands.get(session, command, wait=True)
        assert ended.exit_code == 7
        assert "".join([output.text async for output in client.commands.logs(session, command)]) == EXPECTED


async def delete(where: Server, names: list[str]) -> None:
    async with AsyncClient(where) as client:
        for name in names:
            await client.sandboxes.delete(name)


@pytest.mark.timeout(1800)
async def test_sandboxes_survive_the_death_of_every_process(no_leaks: Path, full_campaign: bool) -> None:
    no_leaks.mkdir()
    log = no_leaks.parent / "serve.log"
    chance = random.Random(7)
    process, where = start_server(no_leaks, log)
    names = []
    for _ in range(20 if full_campaign else 2):
        name, session, command = await begin(where)
        names.append(name)
        if chance.random() < 0.5:
            async with AsyncClient(where) as client:
                assert (await client.commands.run(session, ["true"]))[0] == 0
        # The gateway outlives the others, or dies with them.
        kill_everything(process, *([gateway(no_leaks)] if chance.random() < 0.5 else []))
        process, where = start_server(no_leaks, log)
        await check(where, session, command)
        async with AsyncClient(where) as client:
            assert (await client.sandboxes.session(session)).status == "running"
            assert (await client.commands.run(session, ["echo", "still here"]))[1] == "still here\n"
    await delete(where, names)
    stop_server(process, log)


async def test_sandboxes_survive_the_death_of_each_process_alone(no_leaks: Path) -> None:
    no_leaks.mkdir()
    log = no_leaks.parent / "serve.log"
    process, where = start_server(no_leaks, log)
    name, session, command = await begin(where)
    for victim in sorted(children(process.pid)):
        os.kill(victim, signal.SIGKILL)
        # Who calls a webhook waits for an API that starts again.
        url = f"{where.ingress_url}/webhooks/worker/{where.project_id}/none/none/none"
        called = await asyncio.to_thread(httpx.post, url, timeout=60)
        assert (called.status_code, called.json()["error"]["code"]) == (404, "not_found")
        wait_until(lambda victim=victim: gone(victim) and len(children(process.pid)) == 2, 30, "a new child")  # type: ignore[misc]
    wait_until(lambda: answers(where, session), 60, "an answer after both were killed")
    await check(where, session, command)
    await delete(where, [name])
    stop_server(process, log)


@pytest.mark.parametrize("moment", ["the host is gone", "another one starts"])
async def test_a_server_that_is_stopped_after_its_host_died_ends_every_sandbox(no_leaks: Path, moment: str) -> None:
    no_leaks.mkdir()
    log = no_leaks.parent / "serve.log"
    process, where = start_server(no_leaks, log)
    name, session, _ = await begin(where)
    (host,) = [pid for pid in children(process.pid) if b"\0host\0" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(host, signal.SIGKILL)
    if moment == "another one starts":
        wait_until(lambda: gone(host) and len(children(process.pid)) == 2, 30, "a new child")
    # With 0.
    stop_server(process, log)
    assert leaks.machines(no_leaks) == set()
    process, where = start_server(no_leaks, log)
    async with AsyncClient(where) as client:
        while (seen := await client.sandboxes.session(session)).status == "running":
            await asyncio.sleep(0.02)
    await delete(where, [name])
    stop_server(process, log)
    assert (seen.status, seen.stop_reason) == ("stopped", "host_shutdown")


async def test_a_client_that_follows_a_command_misses_nothing_when_a_process_dies(no_leaks: Path) -> None:
    no_leaks.mkdir()
    log = no_leaks.parent / "serve.log"
    process, where = start_server(no_leaks, log)
    async with AsyncClient(where) as client:
        sandbox = await client.create_sandbox()
        for victim in sorted(children(process.pid)):
            seen: list[str] = []

            def look(piece: Output, victim: int = victim, seen: list[str] = seen) -> None:
                if not seen:
                    os.kill(victim, signal.SIGKILL)
                seen.append(piece.text)

            done = await sandbox.run_command("sh", ["-c", SCRIPT], on_output=look)
            assert (done.returncode, done.stdout, "".join(seen)) == (7, EXPECTED, EXPECTED)
        # Each of them ran once.
        assert len(await sandbox.query_commands()) == 2
        await sandbox.destroy()
    stop_server(process, log)


def answers(where: Server, session: str) -> bool:
    done = subprocess.run(
        [
            "curl",
            "-sf",
            "-m",
            "5",
            "-H",
            f"authorization: Bearer {where.token}",
            f"{where.url}/api/v2/sandboxes/sessions/{session}/cmd",
        ],
        capture_output=True,
        check=False,
    )
    return done.returncode == 0
