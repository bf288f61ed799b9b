"""A virtual machine's network card: whatever a guest puts on it, only its own packets get to the host's end of the link."""

from __future__ import annotations

import os
import select
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hutch.host.names import Names
from hutch.host.network import Network, Networks
from hutch.isolation import tap
from tests.egress.packets import (
    BROADCAST,
    ETHERTYPE_ARP,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    Link,
    arp,
    ethernet,
    ipv4,
    udp,
)

pytestmark = pytest.mark.root
HEADER = bytes(10)
"""Of virtio: nothing is left to the host to do."""
SOMEBODY = bytes.fromhex("024800000002")
GROUP = bytes.fromhex("01005e000001")
WAIT_S = 5.0


class Card:
    """The guest's end, and what arrives at the host's."""

    def __init__(self, network: Network, descriptor: int) -> None:
        self.descriptor = descriptor
        self.guest, self.host = network.guest_address, network.host_address
        self.hardware = bytes.fromhex(tap.HARDWARE.replace(":", ""))
        self.arrived = Link(Path("/proc/self/ns/net"), network.link)

    def send(self, frame: bytes) -> None:
        os.write(self.descriptor, HEADER + frame)

    def packet(self, source: str = "", payload: bytes = b"x", to: str = "192.0.2.1") -> bytes:
        source = source or self.guest
        return ipv4(source, to, 17, udp((source, 1000), (to, 9), payload))

    def frame(self, to: bytes, sender: bytes = b"", ethertype: int = ETHERTYPE_IPV4, payload: bytes | None = None) -> bytes:
        return ethernet(to, sender or self.hardware, ethertype, self.packet() if payload is None else payload)

    def until(self, marked: bytes) -> list[bytes]:
        """What arrived up to a frame with this in it."""
        frames: list[bytes] = []
        while not any(marked in frame for frame in frames):
            assert select.select([self.arrived._socket], [], [], WAIT_S)[0], frames
            frames += self.arrived.received()
        return frames


@pytest.fixture
def card(tmp_path: Path) -> Iterator[Card]:
    with ThreadPoolExecutor(1) as executor:
        networks = Networks(Names.of(tmp_path), executor)
        networks.open(None, set())
        try:
            network = networks.make()
            descriptor = tap.attach(network.namespace_path)
            tap.join(network.namespace_path, network.guest_address, network.host_address)
            try:
                made = Card(network, descriptor)
                with made.arrived:
                    yield made
            finally:
                os.close(descriptor)
        finally:
            networks.close()


STRAY: dict[str, Callable[[Card], bytes]] = {
    "another source address": lambda card: card.frame(SOMEBODY, payload=card.packet("100.64.0.2")),
    "the host's address": lambda card: card.frame(SOMEBODY, payload=card.packet(card.host)),
    "another hardware address": lambda card: card.frame(SOMEBODY, SOMEBODY),
    "broadcast": lambda card: card.frame(BROADCAST),
    "multicast": lambda card: card.frame(GROUP, payload=card.packet(to="224.0.0.1")),
    "IPv6": lambda card: card.frame(SOMEBODY, ethertype=ETHERTYPE_IPV6, payload=b"\x60" + bytes(39)),
    "a VLAN": lambda card: card.frame(SOMEBODY, ethertype=0x8100, payload=struct.pack("!HH", 7, ETHERTYPE_IPV4) + card.packet()),
    "a VLAN in a VLAN": lambda card: card.frame(
        SOMEBODY, ethertype=0x88A8, payload=struct.pack("!HHHH", 7, 0x8100, 8, ETHERTYPE_IPV4) + card.packet()
    ),
    "MPLS": lambda card: card.frame(SOMEBODY, ethertype=0x8847, payload=bytes(4) + card.packet()),
    "spanning tree": lambda card: card.frame(bytes.fromhex("0180c2000000"), ethertype=38, payload=bytes(38)),
    "ARP for another address": lambda card: card.frame(
        BROADCAST, ethertype=ETHERTYPE_ARP, payload=arp(1, (card.hardware, card.guest), (bytes(6), "100.64.0.2"))
    ),
    "ARP of another address": lambda card: card.frame(
        BROADCAST, ethertype=ETHERTYPE_ARP, payload=arp(2, (card.hardware, card.host), (bytes(6), card.host))
    ),
    "ARP of another hardware address": lambda card: card.frame(
        BROADCAST, ethertype=ETHERTYPE_ARP, payload=arp(2, (SOMEBODY, card.guest), (bytes(6), card.host))
    ),
    "half a header": lambda card: card.frame(SOMEBODY)[:20],
}


@pytest.mark.parametrize("what", STRAY)
def test_what_is_not_the_guests_own_packet_does_not_arrive(card: Card, what: str) -> None:
    stray, marked = STRAY[what](card), card.packet(payload=b"the last one")
    card.send(stray)
    card.send(card.frame(SOMEBODY, payload=marked))
    assert [frame for frame in card.until(b"the last one") if b"the last one" not in frame] == []


def test_its_own_packets_and_questions_arrive_as_they_were_sent(card: Card) -> None:
    question = card.frame(BROADCAST, ethertype=ETHERTYPE_ARP, payload=arp(1, (card.hardware, card.guest), (bytes(6), card.host)))
    packet = card.frame(SOMEBODY, payload=card.packet(payload=b"the last one"))
    card.send(question)
    card.send(packet)
    assert card.until(b"the last one") == [question, packet]


def test_the_host_answers_the_guest_and_nobody_else_does(card: Card) -> None:
    question = arp(1, (card.hardware, card.guest), (bytes(6), card.host))
    card.send(card.frame(BROADCAST, ethertype=ETHERTYPE_ARP, payload=question))
    assert select.select([card.descriptor], [], [], WAIT_S)[0]
    answer = os.read(card.descriptor, 2000).removeprefix(HEADER)
    assert answer[:6] == card.hardware
    assert answer[20:22] == b"\0\2"
    assert answer[28:32] == bytes(map(int, card.host.split(".")))


def test_a_namespace_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        tap.attach(tmp_path / "none")
