"""Early data of TLS 1.3 (threat T42): what a client sends before the handshake is over, with a ticket from before a lock-down."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hutch.host import kernel
from tests.egress.world import CANARY, Origins, World

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("sealed")]

ADDRESS = "198.51.100.24"
INJECT = {"transform": [{"headers": {"authorization": f"Bearer {CANARY}"}}]}
EARLY = "said before anybody could judge"
DEADLINE_S = 15.0
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nanswered\n"
CLIENT = """
    import subprocess
    name, early, ticket, has_ticket = sys.argv[1:]
    command = ["openssl", "s_client", "-connect", f"{name}:443", "-servername", name, "-tls1_3", "-crlf", "-CAfile", BUNDLE]
    options = ["-sess_in", ticket, "-early_data", early] if has_ticket else ["-sess_out", ticket]
    client = subprocess.Popen([*command, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    client.stdout.readline()
    client.stdin.write(b"GET /late HTTP/1.1\\nhost: api.test\\n\\n")
    client.stdin.flush()
    told = ("New, ", "Reused, ", "Early data was ", "Verify return code", "Post-Handshake New")
    for line in client.stdout:
        line = line.decode(errors="replace").strip()
        if line.startswith(told):
            print(line)
        if line == "answered":
            client.stdin.close()
    client.wait()
"""


class Server:
    """OpenSSL's own, which takes early data and shows everything that it gets."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def shown(self, last: str) -> str:
        """What it shows, until this."""
        assert self._process.stdout is not None
        shown = ""
        async with asyncio.timeout(DEADLINE_S):
            while last not in shown:
                piece = await self._process.stdout.read(65536)
                assert piece, shown
                shown += piece.decode("utf-8", "replace")
        return shown

    async def answer(self) -> str:
        """Answer a request; everything that was shown until then."""
        shown = await self.shown("\r\n\r\n")
        assert self._process.stdin is not None
        self._process.stdin.write(ANSWER)
        return shown


@contextlib.asynccontextmanager
async def server(origins: Origins) -> AsyncIterator[Server]:
    """What `api.test` is in these tests."""
    certificate = str(origins.directory / "certificates" / "api.test.pem")
    kernel.run(["ip", "-n", origins.namespace, "addr", "add", f"{ADDRESS}/32", "dev", "eth0"])
    process = await asyncio.create_subprocess_exec(
        *["ip", "netns", "exec", origins.namespace, "openssl", "s_server", "-accept", f"{ADDRESS}:443"],
        *["-cert", certificate, "-key", certificate, "-tls1_3", "-early_data", "-no_anti_replay"],
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        made = Server(process)
        await made.shown("ACCEPT")
        yield made
    finally:
        process.kill()
        await process.communicate()
        kernel.run(["ip", "-n", origins.namespace, "addr", "del", f"{ADDRESS}/32", "dev", "eth0"])


@pytest.mark.defence("interception")
async def test_t42_early_data_reaches_nobody_once_requests_are_judged(outside: World, tmp_path: Path) -> None:
    """With a ticket of the server's own, which the gateway had no part in. Spliced, the server may take early data."""
    outside.origins.answer("api.test", ADDRESS)
    early, ticket = tmp_path / "early", tmp_path / "ticket"
    early.write_text(EARLY)
    guest = await outside.guest({"allow": ["api.test"]})

    async def connect() -> tuple[list[str], str]:
        has_ticket = "yes" if ticket.exists() else ""
        asking = guest.python(CLIENT, "api.test", str(early), str(ticket), has_ticket)
        ran, shown = await asyncio.gather(asking, openssl.answer())
        assert ran.code == 0, ran
        return ran.out.splitlines(), shown

    async with server(outside.origins) as openssl:
        said, _ = await connect()
        assert "Post-Handshake New Session Ticket arrived:" in said
        said, shown = await connect()
        assert ("Early data was accepted" in said, EARLY in shown) == (True, True), said

        await guest.policy({"allow": {"api.test": [INJECT]}})
        said, shown = await connect()
        assert "Early data was rejected" in said
        assert any(line.startswith("New, TLSv1.3") for line in said), said
        assert "Verify return code: 0 (ok)" in said
        assert "Post-Handshake New Session Ticket arrived:" not in said
        assert EARLY not in shown
        assert f"authorization: Bearer {CANARY}" in shown
