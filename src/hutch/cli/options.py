"""Options and arguments that several commands share."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from hutch.errors import BadRequestError

DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir", help="Data directory of a server on this machine. Default: HUTCH_URL and HUTCH_TOKEN, else /var/lib/hutch."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON.")]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="Configuration file. Default: $HUTCH_CONFIG, then /etc/hutch/hutch.toml.")
]
Name = Annotated[str, typer.Argument(help="Name of a sandbox.")]
Names = Annotated[list[str], typer.Argument(help="Names of sandboxes.")]
Image = Annotated[str | None, typer.Option("--image", help="Image, such as vercel/sandbox/universal:latest.")]
Runtime = Annotated[str | None, typer.Option("--runtime", help="Legacy runtime: node24, node22 or python3.13.")]
Vcpus = Annotated[int | None, typer.Option("--vcpus", help="1, or an even number; 2048 MB of memory each.")]
Timeout = Annotated[str | None, typer.Option("--timeout", help="Life of the session, such as 90s, 5m or 2h.")]
Env = Annotated[list[str] | None, typer.Option("--env", "-e", help="KEY=VALUE; KEY alone takes it from here. Repeatable.")]
NetworkPolicy = Annotated[
    str | None,
    typer.Option("--network-policy", help="File with a network policy, `-` for standard input, or the policy itself as JSON."),
]
Cwd = Annotated[str | None, typer.Option("--cwd", "-w", help="Working directory in the sandbox.")]
Sudo = Annotated[bool, typer.Option("--sudo", help="Run as root in the sandbox.")]
Tty = Annotated[bool, typer.Option("--tty", "-t", help="Give the program a terminal.")]
Interactive = Annotated[bool, typer.Option("--interactive", "-i", help="Pass standard input on.")]

_DURATION = re.compile(r"([0-9]{1,12})(ms|s|m|h|d)?")
_UNIT_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def duration_ms(text: str | None, option: str) -> int | None:
    """`90s`, `5m`, `2h`, `1d`, `500ms` as milliseconds; a bare number counts seconds. Raises `BadRequestError`."""
    if text is None:
        return None
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise BadRequestError("bad_option", f"{option} is {text!r}; it should be a number with ms, s, m, h or d, such as 90s.")
    return int(match[1]) * _UNIT_MS[match[2] or "s"]


def policy_text(text: str) -> bytes:
    """A network policy from where `text` says: a file, `-` for standard input, or itself. Raises `BadRequestError`."""
    if text in ("allow-all", "deny-all"):
        return f'"{text}"'.encode()
    if text.lstrip()[:1] in ("{", '"'):
        return text.encode("utf-8", "surrogateescape")
    try:
        return sys.stdin.buffer.read() if text == "-" else Path(text).read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no file can have that name"
        raise BadRequestError("not_readable", f"The policy {text[:256]} can't be read: {reason}.") from error


def policy_to_send(text: str | None) -> msgspec.Raw | None:
    """The same as part of a request, byte for byte: it is the server that says what is wrong with it, unless it is no JSON and
    would break what is around it. Raises `BadRequestError`."""
    if text is None:
        return None
    raw = policy_text(text)
    try:
        msgspec.json.decode(raw)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise BadRequestError("invalid_network_policy", f"The network policy is not JSON: {error}.") from error
    return msgspec.Raw(raw)


def pairs(items: list[str] | None, option: str, environment: dict[str, str] | None = None) -> dict[str, str]:
    """`KEY=VALUE` items as a map. With `environment`, a bare KEY takes its value from there. Raises `BadRequestError`."""
    found = {}
    for item in items or []:
        key, separator, value = item.partition("=")
        if not separator and environment is not None and key in environment:
            value = environment[key]
        elif not separator or not key:
            raise BadRequestError("bad_option", f"{option} is {item!r}; it should be KEY=VALUE.")
        found[key] = value
    return found
