"""A real client of HTTP/3 (threat T12): refused at once where datagrams are not admitted, so that programs fall back to TCP."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.egress.world import API, Guest, Origins, World

pytestmark = pytest.mark.root

PROGRAM = str(Path(__file__).with_name("http3.py"))


@pytest.fixture(scope="module")
def http3_server(origins: Origins) -> Iterator[None]:
    """`api.test` speaks HTTP/3, too."""
    certificate = origins.directory / "certificates" / "api.test.pem"
    command = ["ip", "netns", "exec", origins.namespace, sys.executable, PROGRAM, "serve", API, str(certificate)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    yield
    process.stdin.close()
    process.wait(10)
    process.stdout.close()


async def fetch(guest: Guest) -> dict[str, str]:
    found: dict[str, str] = (await guest.run(sys.executable, PROGRAM, "fetch", API, "api.test", str(guest.bundle))).json()
    return found


@pytest.mark.usefixtures("http3_server")
@pytest.mark.parametrize(
    "policy",
    ["allow-all", {"allow": ["other.test"], "subnets": {"allow": [f"{API}/32"]}}],
    ids=["allow-all", "range"],
)
async def test_t12_http3_is_relayed_where_datagrams_are_admitted(outside: World, policy: object) -> None:
    guest = await outside.guest(policy)
    assert await fetch(guest) == {"body": "hello over HTTP/3"}


@pytest.mark.usefixtures("http3_server")
@pytest.mark.parametrize(
    "policy",
    [{"allow": ["api.test"]}, {"allow": {"api.test": [{"transform": [{"headers": {"x-a": "b"}}]}]}}, "deny-all"],
    ids=["name", "rules", "deny-all"],
)
@pytest.mark.defence("datagrams")
async def test_t12_http3_is_refused_at_once_elsewhere(outside: World, policy: object) -> None:
    """The socket is told: a client that waits for its handshake to time out would print nothing of the kind."""
    guest = await outside.guest(policy)
    with outside.origins.wire() as wire:
        assert await fetch(guest) == {"error": "ECONNREFUSED"}
        to_server = [
            frame for frame in wire.received() if (frame[23], frame[30:34]) == (socket.IPPROTO_UDP, socket.inet_aton(API))
        ]
    assert to_server == []
    if policy != "deny-all":
        assert (await guest.curl("https://api.test/")).out == "ok\n200"
