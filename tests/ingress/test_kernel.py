"""What the kernel lets the ingress's user and guests do, without an ingress or a gateway in between."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hutch.host.names import Names
from hutch.host.network import Network, Networks
from tests import leaks

pytestmark = pytest.mark.root

REACH = """
import errno, json, os, socket, sys
os.setgroups([]); os.setresgid(int(sys.argv[1]), int(sys.argv[1]), int(sys.argv[1])); os.setresuid(*[int(sys.argv[1])] * 3)
found = []
for kind, host, port in json.loads(sys.argv[2]):
    probe = socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    probe.settimeout(1)
    try:
        probe.connect((host, port))
        probe.send(b"x")
        found.append(probe.recv(16).decode())
    except OSError as error:
        found.append("no")
print(json.dumps(found))
"""
SERVE = """
import socket, sys
listener = socket.create_server(("0.0.0.0", 8000))
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind(("0.0.0.0", 8000))
print("ready", flush=True)
import select
while True:
    for ready in select.select([listener, datagrams], [], [])[0]:
        if ready is listener:
            connection, _ = listener.accept()
            connection.recv(16)
            connection.sendall(b"guest")
            connection.close()
        else:
            datagrams.sendto(b"guest", datagrams.recvfrom(16)[1])
"""
FORGE = """
import json, socket, struct, sys
source, target, port, flags = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
def checksum(data):
    data += b"\\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
raw.settimeout(1)
for own in range(40000, 40010):
    def segment(check):
        return struct.pack("!HHIIBBHHH", own, port, 1, 1, 5 << 4, flags, 1000, check, 0) + b"GET / HTTP/1.0\\r\\n\\r\\n"
    pseudo = socket.inet_aton(source) + socket.inet_aton(target) + struct.pack("!BBH", 0, 6, len(segment(0)))
    raw.sendto(segment(checksum(pseudo + segment(0))), (target, 0))
answers = set()
try:
    while True:
        packet = raw.recv(2048)
        tcp = packet[(packet[0] & 15) * 4:]
        if struct.unpack("!H", tcp[:2])[0] == port:
            answers.add(tcp[13] & 0x3f)
except OSError:
    pass
print(json.dumps(sorted(answers)))
"""
SYN, RST, PUSH, ACK = 2, 4, 8, 16


@pytest.fixture
def networks(tmp_path: Path) -> Iterator[Networks]:
    before = leaks.snapshot(tmp_path)
    with ThreadPoolExecutor(2) as executor:
        made = Networks(Names.of(tmp_path), executor)
        made.open(None, set())
        yield made
        made.close()
    assert leaks.new(before, leaks.snapshot(tmp_path)) == []


@pytest.fixture
def guest(networks: Networks) -> Iterator[Network]:
    """A guest's network in which a program listens."""
    network = networks.make()
    command = ["ip", "netns", "exec", network.namespace, sys.executable, "-c", SERVE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as serving:
        assert serving.stdout is not None
        assert serving.stdout.readline() == "ready\n"
        yield network
        serving.kill()


def reached(user: int, *targets: tuple[str, str, int]) -> list[str]:
    """What a user of this machine is answered."""
    command = [sys.executable, "-c", REACH, str(user), json.dumps(targets)]
    found: list[str] = json.loads(subprocess.check_output(command, text=True, cwd="/"))
    return found


def forged(network: Network, target: str, port: int, flags: int) -> list[int]:
    """Flags of what comes back for segments out of nowhere."""
    command = ["ip", "netns", "exec", network.namespace, sys.executable, "-c", FORGE, network.guest_address, target, str(port)]
    answers: list[int] = json.loads(subprocess.check_output([*command, str(flags)], text=True))
    return answers


def datagrams(network: Network) -> int:
    """Datagrams that have arrived in a guest's network."""
    lines = subprocess.check_output(["ip", "netns", "exec", network.namespace, "cat", "/proc/net/snmp"], text=True).splitlines()
    names, values = (line.split() for line in lines if line.startswith("Udp:"))
    counted = dict(zip(names[1:], map(int, values[1:]), strict=True))
    return counted["InDatagrams"] + counted["NoPorts"]


@pytest.mark.defence("ingress-guests")
@pytest.mark.defence("ingress-answers")
def test_only_the_ingress_begins_connections_with_guests(networks: Networks, guest: Network) -> None:
    targets = ("tcp", guest.guest_address, 8000), ("udp", guest.guest_address, 8000)
    before = datagrams(guest)
    assert reached(networks.ingress_user, *targets) == ["guest", "no"]
    assert reached(networks.gateway_user, *targets) == ["no", "no"]
    assert datagrams(guest) == before
    assert reached(65_000, *targets) == ["no", "no"]


@pytest.mark.defence("ingress-others")
@pytest.mark.defence("ingress-datagrams")
def test_the_ingress_begins_connections_with_nobody_else(networks: Networks, guest: Network) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_server((guest.host_address, 0)) as own:
        for server in (listener, own):
            host, port = server.getsockname()
            assert reached(networks.ingress_user, ("tcp", host, port)) == ["no"]
            server.settimeout(0.2)
            with pytest.raises(TimeoutError):
                server.accept()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(0.2)
        assert reached(networks.ingress_user, ("udp", *receiver.getsockname())) == ["no"]
        with pytest.raises(TimeoutError):
            receiver.recv(16)
    # A sandbox that is not there, or another server's.
    other = networks.network(guest.number + 1)
    assert reached(networks.ingress_user, ("tcp", other.guest_address, 8000)) == ["no"]


@pytest.mark.defence("ingress-others")
def test_the_ingress_begins_connections_with_the_servers_webhooks(networks: Networks) -> None:
    """With the last port that was said, at the loopback address alone, and nobody but the ingress may because of it."""
    with socket.create_server(("127.0.0.1", 0)) as former, socket.create_server(("0.0.0.0", 0)) as webhooks:
        for server in (former, webhooks):
            networks.open_webhooks(server.getsockname()[1])
        user = [sys.executable, "-c", REACH, str(networks.ingress_user)]
        targets = json.dumps([("tcp", *former.getsockname()), ("tcp", "127.0.0.2", webhooks.getsockname()[1])])
        assert json.loads(subprocess.check_output([*user, targets], text=True, cwd="/")) == ["no", "no"]
        targets = json.dumps([("tcp", "127.0.0.1", webhooks.getsockname()[1])])
        with subprocess.Popen([*user, targets], stdout=subprocess.PIPE, text=True, cwd="/") as asking:
            webhooks.settimeout(10)
            connection, _ = webhooks.accept()
            with connection:
                connection.sendall(b"server")
                assert json.loads(asking.communicate(timeout=10)[0]) == ["server"]
        for server in (former, webhooks):
            server.settimeout(0.2)
            with pytest.raises(TimeoutError):
                server.accept()


@pytest.mark.defence("ingress-answers")
@pytest.mark.parametrize("flags", [SYN, SYN | ACK, ACK, PUSH | ACK, RST, RST | ACK, 0])
@pytest.mark.parametrize("bound", ["0.0.0.0", "link"])
def test_segments_out_of_nowhere_reach_no_server_of_the_host(networks: Networks, guest: Network, flags: int, bound: str) -> None:
    address = guest.host_address if bound == "link" else bound
    with socket.create_server((address, 0)) as listener:
        answers = forged(guest, guest.host_address, listener.getsockname()[1], flags)
        # At most a reset by the rules; never that somebody took it.
        assert all(answer & RST for answer in answers), answers
        if bound == "link" and flags & ACK and not flags & SYN:
            assert answers == [], "what looks like an answer is dropped, not given to the listener"
        listener.settimeout(0.2)
        with pytest.raises(TimeoutError):
            listener.accept()
