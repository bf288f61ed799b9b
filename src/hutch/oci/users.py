"""Who `user` of an image is, by its own /etc/passwd and /etc/group: lines of somebody else's, where they can be read."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from hutch.oci.documents import invalid

MAX_ID = 2**32 - 2
MAX_GROUPS = 64
MAX_BYTES = 1024 * 1024
"""Of each of the two files; what lies beyond is not read."""


class User(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    uid: int
    gid: int
    groups: list[int]
    home: str


def find(user: str, passwd: bytes, group: bytes) -> User:
    """`user` is what an image says: `NAME`, `UID`, either with `:GROUP` or `:GID`, or "" for root. Raises `BadRequestError`."""
    wanted, _, wanted_group = user.partition(":")
    wanted = wanted or "0"
    number = _id(wanted)
    found = None
    for name, uid, gid, home in _passwd(passwd):
        if name == wanted or (number is not None and uid == number):
            found = (name, uid, gid, home)
            break
    if found is None:
        if number is None:
            raise invalid(f"its user {wanted[:80]!r} is not in its /etc/passwd")
        # As container runtimes have it: a number needs no entry.
        found = ("root" if number == 0 else str(number), number, 0, "/")
    name, uid, gid, home = found
    groups = [] if wanted_group else sorted({other for _, other, members in _group(group) if name in members} - {gid})
    if wanted_group:
        gid = _group_id(wanted_group, group)
    return User(name=name, uid=uid, gid=gid, groups=groups[:MAX_GROUPS], home=home)


def _group_id(wanted: str, group: bytes) -> int:
    for name, gid, _ in _group(group):
        if name == wanted:
            return gid
    number = _id(wanted)
    if number is None:
        raise invalid(f"its group {wanted[:80]!r} is not in its /etc/group")
    return number


def _passwd(content: bytes) -> Iterator[tuple[str, int, int, str]]:
    for fields in _lines(content, 7):
        uid, gid = _id(fields[2]), _id(fields[3])
        home = fields[5]
        if uid is not None and gid is not None and 0 < len(fields[0]) <= 256:
            usable = home.startswith("/") and ".." not in home.split("/") and len(home) <= 1024
            yield fields[0], uid, gid, home if usable else "/"


def _group(content: bytes) -> Iterator[tuple[str, int, list[str]]]:
    for fields in _lines(content, 4):
        gid = _id(fields[2])
        if gid is not None and fields[0]:
            yield fields[0], gid, fields[3].split(",")


def _lines(content: bytes, fields: int) -> Iterator[list[str]]:
    for line in content[:MAX_BYTES].split(b"\n"):
        parts = line.split(b":")
        if len(parts) >= fields and b"\0" not in line:
            yield [part.decode("utf-8", "replace") for part in parts]


def _id(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= MAX_ID else None
