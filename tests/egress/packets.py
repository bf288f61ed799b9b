"""Packets byte by byte, and sockets in other networks: what a guest with root and raw sockets can put on its link.

A socket belongs to the network in which it was made, so a test opens one there and uses it here, without another process.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import threading
from pathlib import Path

CLONE_NEWNET = 0x4000_0000
ETHERTYPE_IPV4 = 0x0800
ETHERTYPE_ARP = 0x0806
ETHERTYPE_IPV6 = 0x86DD
ETHERTYPE_ALL = 0x0003
BROADCAST = b"\xff" * 6
FIN, SYN, RST, PUSH, ACK = 1, 2, 4, 8, 16
MORE_FRAGMENTS = 0x2000
PACKET_OUTGOING = 4
_libc = ctypes.CDLL(None, use_errno=True)


def socket_in(namespace: Path, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A socket in another network."""
    made: list[socket.socket | OSError] = []

    def make() -> None:
        # A thread of its own: it stays in that network until it ends.
        descriptor = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if _libc.setns(descriptor, CLONE_NEWNET) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
            made.append(socket.socket(family, kind, protocol))
        except OSError as error:
            made.append(error)
        finally:
            os.close(descriptor)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if isinstance(made[0], OSError):
        raise made[0]
    return made[0]


class Link:
    """The interface of a network, frame by frame. Use as a context manager."""

    def __init__(self, namespace: Path, interface: str = "eth0") -> None:
        self._socket = socket_in(namespace, socket.AF_PACKET, socket.SOCK_RAW)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self._socket.bind((interface, ETHERTYPE_ALL))
        self._socket.setblocking(False)
        self.address: bytes = self._socket.getsockname()[4]

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, frame: bytes) -> None:
        self._socket.send(frame)

    def send_ipv4(self, packet: bytes, to: bytes = BROADCAST) -> None:
        self.send(ethernet(to, self.address, ETHERTYPE_IPV4, packet))

    def received(self) -> list[bytes]:
        """Frames that came in since the last call."""
        frames: list[bytes] = []
        while True:
            try:
                frame, (_, _, kind, _, _) = self._socket.recvfrom(65536)
            except BlockingIOError:
                return frames
            if kind != PACKET_OUTGOING:
                frames.append(frame)


def ethernet(to: bytes, sender: bytes, ethertype: int, payload: bytes) -> bytes:
    return (to + sender + struct.pack("!H", ethertype) + payload).ljust(60, b"\0")


def arp(operation: int, sender: tuple[bytes, str], target: tuple[bytes, str]) -> bytes:
    """1 asks, 2 answers; each party is a hardware and an IPv4 address."""
    parties = b"".join(hardware + socket.inet_aton(address) for hardware, address in (sender, target))
    return struct.pack("!HHBBH", 1, ETHERTYPE_IPV4, 6, 4, operation) + parties


def ipv4(
    source: str,
    destination: str,
    protocol: int,
    payload: bytes,
    *,
    identifier: int = 0,
    fragment: int = 0,
    options: bytes = b"",
    ttl: int = 64,
) -> bytes:
    """`fragment` is the field as sent: an offset in units of eight bytes, and `MORE_FRAGMENTS`."""
    words = 5 + len(options) // 4
    head = struct.pack("!BBHHHBBH", 0x40 | words, 0, words * 4 + len(payload), identifier, fragment, ttl, protocol, 0)
    head += socket.inet_aton(source) + socket.inet_aton(destination) + options
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def _sum_of(source: str, destination: str, protocol: int, segment: bytes) -> int:
    pseudo = socket.inet_aton(source) + socket.inet_aton(destination) + struct.pack("!BBH", 0, protocol, len(segment))
    return checksum(pseudo + segment)


def tcp(
    source: tuple[str, int],
    destination: tuple[str, int],
    flags: int,
    payload: bytes = b"",
    sequence: int = 1000,
    acknowledged: int = 0,
) -> bytes:
    segment = struct.pack("!HHIIBBHHH", source[1], destination[1], sequence, acknowledged, 5 << 4, flags, 65535, 0, 0) + payload
    total = _sum_of(source[0], destination[0], socket.IPPROTO_TCP, segment)
    return segment[:16] + struct.pack("!H", total) + segment[18:]


def read_tcp(packet: bytes) -> tuple[int, int, int, bytes]:
    """Flags, sequence, acknowledgement and payload of a packet with TCP."""
    segment = packet[(packet[0] & 15) * 4 : int.from_bytes(packet[2:4])]
    sequence, acknowledged = struct.unpack("!II", segment[4:12])
    return segment[13], sequence, acknowledged, segment[(segment[12] >> 4) * 4 :]


def udp(source: tuple[str, int], destination: tuple[str, int], payload: bytes) -> bytes:
    datagram = struct.pack("!HHHH", source[1], destination[1], 8 + len(payload), 0) + payload
    total = _sum_of(source[0], destination[0], socket.IPPROTO_UDP, datagram)
    return datagram[:6] + struct.pack("!H", total or 0xFFFF) + datagram[8:]


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
