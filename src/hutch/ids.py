"""The one id generator. Every identifier comes from the operating system's random source and is never guessable.

| kind | form | bits |
| --- | --- | --- |
| session | `sbx_` + 28 base62 characters | 166 |
| snapshot | `snap_` + 28 base62 | 166 |
| drive | `drive_` + 24 base62 | 142 |
| command | `cmd_` + 28 lowercase hexadecimal | 112 |
| team, project | `team_`, `prj_` + 24 base62 | 142 |
| token | `tok_` + 24 base62 | 142 |
| route subdomain | `sb-` + 12 lowercase base36 | 62 |
"""

from __future__ import annotations

import secrets
import string

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


def subdomain() -> str:
    return "sb-" + _random(BASE36, 12)


def pty_ticket() -> str:
    """The single-use secret that opens one terminal WebSocket."""
    return secrets.token_urlsafe(32)
