"""What the gateway spends on each guest, and what it counts under each rule."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable

import pytest

from hutch.host.gateway import Counted
from hutch.host.kernel import Process, start_ticks
from hutch.host.protocol import RULE, RuleTraffic, Traffic
from tests.egress.world import API, CANARY, EVIL, SHARED, Guest, World

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("canary_stays")]

OK = b"HTTP/1.1 200 OK\r\n"
RULE_OF_API = {"transform": [{"headers": {"authorization": f"Bearer {CANARY}"}}]}
RULE_OF_CDN = {"transform": [{"headers": {"x-from": "hutch"}}]}
POLICY = {"allow": {"api.test": [RULE_OF_API], "cdn.test": [RULE_OF_CDN]}, "subnets": {"allow": [f"{EVIL}/32"]}}
MIB = 2**20
Work = Callable[[World, Guest], Awaitable[None]]

HANDSHAKES = """
for _ in range(int(sys.argv[2])):
    answer = exchange(sys.argv[1], "api.test", b"GET / HTTP/1.1\\r\\nhost: api.test\\r\\nconnection: close\\r\\n\\r\\n")
    assert answer.startswith("HTTP/1.1 200 "), answer
say("done")
"""
DOWNLOAD = """
stream = tls(sys.argv[1], "api.test", alpn=["http/1.1"])
stream.sendall(b"GET / HTTP/1.1\\r\\nhost: api.test\\r\\nconnection: close\\r\\n\\r\\n")
got = 0
while chunk := stream.recv(262_144):
    got += len(chunk)
say(got)
"""
DATAGRAMS = """
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stream:
    for number in range(4000):
        stream.sendto(b"x" * 100, (sys.argv[1], 5000 + number % 8))
        if number % 50 == 0:
            # What comes faster than it is read is dropped by the kernel, and costs nothing.
            time.sleep(0.005)
say("done")
"""
QUESTIONS = """
import struct
for number in range(1000):
    name = b"".join(bytes([len(part)]) + part for part in (b"n%d" % number, b"api", b"test")) + bytes(1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stream:
        stream.sendto(struct.pack("!6H", number, 256, 1, 0, 0, 0) + name + struct.pack("!2H", 1, 1), (sys.argv[1], 53))
    if number % 20 == 0:
        # As above.
        time.sleep(0.01)
say("done")
"""


def spent_us(outside: World) -> int:
    """CPU time of the gateway's process, as the kernel counts it."""
    pid = outside.gateway_pid
    return Process(pid, start_ticks(pid) or 0).cpu_us()


def network(counted: Counted) -> dict[str, RuleTraffic]:
    return Traffic(
        up_bytes=0, down_bytes=0, flows=0, egress_bytes=0, ingress_bytes=0, tallies=counted.tallies, unruled=counted.unruled
    ).network


async def handshakes(outside: World, guest: Guest) -> None:
    outside.origins.script("api.test", OK + b"content-length: 0\r\nconnection: close\r\n\r\n")
    assert (await guest.python(HANDSHAKES, API, "400", timeout_s=60)).json() == "done"


async def download(outside: World, guest: Guest) -> None:
    size = 300 * MIB
    outside.origins.script("api.test", OK + b"connection: close\r\ncontent-length: %d\r\n\r\n" % size, repeat=bytes(MIB))
    assert (await guest.python(DOWNLOAD, API, timeout_s=60)).json() >= size


async def over_http2(outside: World, guest: Guest) -> None:
    size = 300 * MIB
    outside.origins.script("api.test", OK + b"connection: close\r\ncontent-length: %d\r\n\r\n" % size, repeat=bytes(MIB))
    ran = await guest.curl("--http2", "-o", "/dev/null", "-w", "%{size_download}", "https://api.test/")
    assert ran.out.split()[0].startswith(str(size)), ran


async def datagrams(outside: World, guest: Guest) -> None:
    assert (await guest.python(DATAGRAMS, EVIL)).json() == "done"


async def questions(_outside: World, guest: Guest) -> None:
    assert (await guest.python(QUESTIONS, guest.network.host_address)).json() == "done"


@pytest.mark.parametrize("work", [handshakes, download, over_http2, datagrams, questions])
async def test_what_a_guest_has_the_gateway_do_is_counted_to_it(outside: World, work: Work) -> None:
    busy, idle = await outside.guest(POLICY), await outside.guest(POLICY)
    assert (await idle.curl("https://api.test/")).code == 0
    whole, own, other = spent_us(outside), (await busy.counters()).cpu_us, (await idle.counters()).cpu_us
    await work(outside, busy)
    # The kernel's clock of a process moves in steps of 10 ms.
    whole, own, other = spent_us(outside) - whole, (await busy.counters()).cpu_us - own, (await idle.counters()).cpu_us - other
    print(f"{whole} us by the gateway, {own} us counted to the guest, {other} us to an idle one")
    assert own >= 0.7 * whole - 20_000
    assert own <= whole + 40_000
    assert other <= 0.02 * own + 1000
    if work not in (datagrams, questions):
        assert own >= 50_000, "it is enough to tell"


async def test_bytes_by_rule_are_what_guest_and_origin_counted(outside: World) -> None:
    guest = await outside.guest(POLICY)
    body = guest.directory / "body"
    body.write_bytes(b"~" * 70_001)
    outside.origins.script("api.test", OK + b"content-length: 5\r\n\r\nhello", whole=True)
    outside.origins.script("cdn.test", OK + b"content-length: 30000\r\n\r\n" + b"y" * 30_000, whole=True)
    outside.origins.script(f"{EVIL}:8080", echo=True)
    sent = ("--http1.1", "-H", "expect:", "--data-binary", f"@{body}", "https://api.test/")
    # Two requests over one connection, and another connection.
    assert (await guest.curl(*sent, "--next", *sent)).out.count("hello") == 2
    assert (await guest.curl("-o", "/dev/null", "https://cdn.test/")).out.endswith("200")
    assert (await guest.python("say(outcome(sys.argv[1], 8080, b'z' * 1000, 5.0)['end'])", EVIL)).json() == "data"
    counted = network(await guest.counters())
    rules = [(await guest.audited(name=name, kind="http"))["rule"] for name in ("api.test", "cdn.test")]
    rule_of_api, rule_of_cdn = rules
    assert counted == {
        rule_of_api: RuleTraffic(sent_bytes=140_002, received_bytes=10, connections=1, requests=2),
        rule_of_cdn: RuleTraffic(received_bytes=30_000, connections=1, requests=1),
        "": RuleTraffic(sent_bytes=1000, received_bytes=1000, connections=1),
    }
    assert outside.origins.seen().data.count(b"~") == 140_002
    # Another policy: what passed under a rule that is gone is kept, and a rule that stays goes on.
    await guest.policy({"allow": {"cdn.test": [RULE_OF_CDN]}})
    assert (await guest.curl("-o", "/dev/null", "https://cdn.test/")).out.endswith("200")
    counted = network(await guest.counters())
    assert counted[rule_of_api].sent_bytes == 140_002
    assert counted[rule_of_cdn] == RuleTraffic(received_bytes=60_000, connections=2, requests=2)


async def test_a_name_without_rules_and_datagrams_are_counted_without_a_rule(outside: World) -> None:
    guest = await outside.guest({"allow": ["cdn.test"], "subnets": {"allow": [f"{EVIL}/32"]}})
    outside.origins.script("cdn.test", OK + b"content-length: 30000\r\n\r\n" + b"y" * 30_000)
    assert (await guest.curl("-o", "/dev/null", "https://cdn.test/")).out.endswith("200")
    assert (await guest.datagram(EVIL, 123, b"x" * 100)).end == "data"
    [(rule, counted)] = network(await guest.counters()).items()
    assert rule == ""
    assert counted.connections == 2
    # TLS's own bytes are counted where nobody looks into it.
    assert 100 < counted.sent_bytes < 5000
    assert 30_100 < counted.received_bytes < 40_000


@pytest.mark.parametrize("address", [API, SHARED])
async def test_what_is_refused_is_counted_under_no_rule(outside: World, address: str) -> None:
    guest = await outside.guest({"allow": {"api.test": [RULE_OF_API]}})
    await guest.curl("--resolve", f"evil.test:443:{address}", "https://evil.test/")
    counted = await guest.counters()
    assert network(counted) == {}
    assert not any(key.startswith(RULE) for key in counted.tallies)


async def test_a_guest_of_whom_nothing_was_counted_is_told_to_the_next_gateway(outside: World) -> None:
    guest = await outside.guest(POLICY)
    restarts = outside.gateway.restarts
    os.kill(outside.gateway_pid, signal.SIGKILL)
    async with asyncio.timeout(10):
        while outside.gateway.restarts == restarts or not outside.gateway._ready.is_set():
            await asyncio.sleep(0.01)
    outside.origins.script("cdn.test", OK + b"content-length: 3\r\n\r\nyes")
    assert (await guest.curl("https://cdn.test/")).out == "yes\n200"
    assert [traffic.requests for traffic in network(await guest.counters()).values()] == [1]
