"""Bounds against a sandbox that runs: a real server, a real gateway, a real sandbox, and the firewall's own world outside."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hutch.client import AsyncClient, Server
from hutch.errors import ForbiddenError
from tests import leaks
from tests.conftest import start_server, stop_server, wait_until
from tests.egress.world import EVIL, NAME_SERVER, Origins

pytestmark = [pytest.mark.root, pytest.mark.sandbox]

COULD_NOT_RESOLVE, CONNECTION_FAILED, TLS_FAILED = 6, 56, 35
"""Exit codes of curl."""
BLOCK = {"mode": "allow-all", "block": ["evil.test", "*.evil.test"]}
HOLD = """
import socket, ssl, sys
stream = ssl.create_default_context().wrap_socket(socket.create_connection(("evil.test", 443)), server_hostname="evil.test")
stream.sendall(b"GET /held HTTP/1.1\\r\\nhost: evil.test\\r\\n\\r\\n")
print("open", flush=True)
try:
    while stream.recv(4096):
        pass
    print("ended")
except OSError as error:
    print(type(error).__name__)
"""


@dataclass(slots=True)
class Bounded:
    """A server with an operator's policy, and the origins that its sandboxes reach."""

    client: AsyncClient
    origins: Origins

    async def curl(self, session_id: str, url: str) -> int:
        """curl's exit code in the sandbox."""
        code, _, _ = await self.client.commands.run(session_id, ["curl", "-sS", "-m", "10", "-o", "/dev/null", url])
        return code


@pytest.fixture
async def bounded(origins: Origins, tmp_path: Path) -> AsyncIterator[Bounded]:
    """Nothing of it is left afterwards."""
    data_dir, log, policy = tmp_path / "data", tmp_path / "serve.log", tmp_path / "operator.json"
    data_dir.mkdir()
    policy.write_text(json.dumps({"mode": "allow-all", "block": ["other.test"]}))
    # The API process reads it as root, before it shuts itself in.
    policy.chmod(0o600)
    origins.reset()
    before = leaks.snapshot(data_dir)
    process, where = start_server(
        data_dir,
        log,
        environment={
            "HUTCH_POOL__SIZE": "0",
            "HUTCH_EGRESS__DNS_UPSTREAMS": f"{NAME_SERVER}:53",
            "HUTCH_EGRESS__EXTRA_TRUST_ROOTS": str(origins.ca),
            "HUTCH_EGRESS__POLICY": str(policy),
        },
    )
    try:
        async with AsyncClient(where) as client:
            yield Bounded(client, origins)
    finally:
        stop_server(process, log)
    wait_until(
        lambda: not leaks.new(before, leaks.snapshot(data_dir)), 20, lambda: str(leaks.new(before, leaks.snapshot(data_dir)))
    )


async def test_a_teams_block_list_wins_over_a_sandboxs_allow_all_while_it_runs(bounded: Bounded) -> None:
    client, team = bounded.client, bounded.client.server.team_id
    session = (await client.sandboxes.create(name="one", networkPolicy="allow-all", persistent=False)).session
    assert [await bounded.curl(session.id, f"https://{name}.test/") for name in ("evil", "api")] == [0, 0]
    # The operator's own list is there from the start.
    assert await bounded.curl(session.id, "https://other.test/") == COULD_NOT_RESOLVE
    holding = await client.commands.start(session.id, ["python3", "-c", HOLD])
    await bounded.origins.wait(lambda seen: b"/held" in seen.data, "the connection was not made")

    done = await client.bounds.put(BLOCK, team=team)
    # It is answered when it is so: what was open is cut, and what comes is refused.
    assert (done.hutch["sessions"], done.hutch["closedFlows"]) == (1, 1)
    finished = await client.commands.get(session.id, holding.id, wait=True)
    said = "".join([piece.text async for piece in client.commands.logs(session.id, holding.id)])
    assert (finished.exit_code, said) == (0, "open\nConnectionResetError\n")
    bounded.origins.reset()
    assert await bounded.curl(session.id, "https://evil.test/") == COULD_NOT_RESOLVE
    # Neither a name of its own making nor an update of the sandbox's policy helps.
    resolved = await client.commands.run(
        session.id, ["curl", "-sS", "-m", "10", "--resolve", f"evil.test:443:{EVIL}", "https://evil.test/"]
    )
    assert resolved[0] in (CONNECTION_FAILED, TLS_FAILED)
    updated = await client.sandboxes.set_network_policy(session.id, "allow-all")
    assert updated.network_policy is not None
    assert updated.network_policy["hutch"]["bounded"]
    assert [warning["code"] for warning in updated.network_policy["hutch"]["warnings"]] == ["outside_bounds"]
    assert await bounded.curl(session.id, "https://evil.test/") == COULD_NOT_RESOLVE
    assert await bounded.curl(session.id, "https://api.test/") == 0
    seen = bounded.origins.seen()
    assert not seen.to("evil.test")
    assert "evil.test" not in seen.questions
    records = [record async for record in client.audit.all("one")]
    assert [record["kind"] for record in records if record["reason"] == "name_blocked"].count("tls") == 1

    # A member of the project can't take it away.
    member = await client.tokens.create(team=team, project=client.server.project_id, role="member")
    async with AsyncClient(Server(client.server.url, member.token or "", team, client.server.project_id)) as tenant:
        with pytest.raises(ForbiddenError):
            await tenant.bounds.delete(team=team)
    await client.bounds.delete(team=team)
    assert await bounded.curl(session.id, "https://evil.test/") == 0
    assert await bounded.curl(session.id, "https://other.test/") == COULD_NOT_RESOLVE
    await client.sandboxes.delete("one")
