"""DNS messages byte by byte: questions that no library would write, and what came back."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

A, CNAME, TXT, AAAA = 1, 5, 16, 28
NO_ERROR, FORMAT_ERROR, SERVER_FAILURE, NO_SUCH_NAME, REFUSED = 0, 1, 2, 3, 5


@dataclass(slots=True)
class Reply:
    """An answer. `records` are type, seconds to live and data."""

    code: int
    truncated: bool
    identifier: int
    records: list[tuple[int, int, bytes]]
    raw: bytes

    @property
    def addresses(self) -> list[str]:
        return [socket.inet_ntoa(data) for kind, _, data in self.records if kind == A]


def labels(name: str | bytes) -> bytes:
    text = name.encode() if isinstance(name, str) else name
    return b"".join(bytes([len(label)]) + label for label in text.split(b".") if label) + b"\0"


def question(
    name: str | bytes,
    kind: int = A,
    *,
    identifier: int = 0x1234,
    flags: int = 0x0100,
    of_class: int = 1,
    count: int = 1,
    options: bytes | None = None,
    encoded: bytes | None = None,
) -> bytes:
    """`options` are those of EDNS, `encoded` stands in the place of the name's labels."""
    asked = (encoded if encoded is not None else labels(name)) + struct.pack("!HH", kind, of_class)
    additional = b""
    if options is not None:
        additional = b"\0" + struct.pack("!HHIH", 41, 1232, 0, len(options)) + options
    return struct.pack("!HHHHHH", identifier, flags, count, 0, 0, int(bool(additional))) + asked + additional


def option(code: int, data: bytes) -> bytes:
    return struct.pack("!HH", code, len(data)) + data


def read_reply(raw: bytes) -> Reply:
    identifier, flags, questions, answers, _, _ = struct.unpack_from("!HHHHHH", raw)
    at = 12
    for _ in range(questions):
        at = _after_name(raw, at) + 4
    records = []
    for _ in range(answers):
        at = _after_name(raw, at)
        kind, _, seconds, length = struct.unpack_from("!HHIH", raw, at)
        records.append((kind, seconds, raw[at + 10 : at + 10 + length]))
        at += 10 + length
    return Reply(flags & 15, bool(flags & 0x0200), identifier, records, raw)


def _after_name(raw: bytes, at: int) -> int:
    while raw[at]:
        if raw[at] & 0xC0:
            return at + 2
        at += raw[at] + 1
    return at + 1
