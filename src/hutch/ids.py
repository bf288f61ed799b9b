"""The one id generator. Every identifier comes from the operating system's random source and is never guessable.

| kind | form | bits |
| --- | --- | --- |
| session | `sbx_` + 28 base62 characters | 166 |
| snapshot | `snap_` + 28 base62 | 166 |
| drive | `drive_` + 24 base62 | 142 |
| command | `cmd_` + 28 lowercase hexadecimal | 112 |
| team, project | `team_`, `prj_` + 24 base62 | 142 |
| token | `tok_` + 24 base62 | 142 |
| member | `mem_` + 24 base62 | 142 |
| worker, deployment, run, job, button | UUID of version 7 | 74 |
| webhook address | 16 of base64url | 96 |
| login | `login_` + 24 base62 | 142 |
| route subdomain | `sb-` + 12 lowercase base36 | 62 |
"""

from __future__ import annotations

import secrets
import string
import uuid

from hutch.clock import now_ms

BASE62 = string.ascii_letters + string.digits
BASE36 = string.ascii_lowercase + string.digits


def _random(alphabet: str, length: int) -> str:
    return "".join(secrets.choice(alphabet) for _ in range(length))


def _base62(length: int) -> str:
    """`length` base62 characters out of one read of the random source (`secrets.choice` reads once per character)."""
    number = int.from_bytes(secrets.token_bytes(length), "big")
    characters = []
    for _ in range(length):
        number, remainder = divmod(number, 62)
        characters.append(BASE62[remainder])
    return "".join(characters)


def session_id() -> str:
    return "sbx_" + _base62(28)


def command_id() -> str:
    return "cmd_" + secrets.token_hex(14)


def snapshot_id() -> str:
    return "snap_" + _base62(28)


def drive_id() -> str:
    return "drive_" + _base62(24)


def team_id() -> str:
    return "team_" + _base62(24)


def project_id() -> str:
    return "prj_" + _base62(24)


def sandbox_id() -> str:
    """The internal key of a sandbox record; clients only ever see its name."""
    return "sand_" + _base62(24)


def token_id() -> str:
    return "tok_" + _base62(24)


def member_id() -> str:
    return "mem_" + _base62(24)


def login_id() -> str:
    return "login_" + _base62(24)


def subdomain() -> str:
    return "sb-" + _random(BASE36, 12)


def pty_ticket() -> str:
    """The single-use secret that opens one terminal WebSocket."""
    return secrets.token_urlsafe(32)


def worker_id() -> str:
    """The id of a worker, a deployment or a run: a UUID of version 7 (RFC 9562), as the vendor's are."""
    value = (now_ms() << 80) | secrets.randbits(80)
    value = (value & ~(0xF << 76)) | (7 << 76)
    return str(uuid.UUID(int=(value & ~(0b11 << 62)) | (0b10 << 62)))


def webhook_address() -> str:
    """The part of a webhook's URL that nobody guesses."""
    return secrets.token_urlsafe(12)


def secret() -> str:
    """256 bits for a URL."""
    return secrets.token_urlsafe(32)
