"""Variables as text that a shell or program reads back exactly, whatever the values are.

Each reader has its own idea of what a quote ends and what an escape is:

    sh          '…' is literal; a ' is written outside of it (`shlex`)
    fish        '…' with \\\\ and \\' as the only escapes
    powershell  '…' with every quote doubled, and four typographic ones count as quotes too
    dotenv      has no standard: what npm's `dotenv`, `python-dotenv` and Node's `--env-file` do not read alike is refused
    json        JSON
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from enum import StrEnum

from hutch.errors import BadRequestError

_POWERSHELL_QUOTES = re.compile("(['\u2018\u2019\u201a\u201b])")


class Format(StrEnum):
    SH = "sh"
    FISH = "fish"
    POWERSHELL = "powershell"
    JSON = "json"
    DOTENV = "dotenv"


def rendered(values: Mapping[str, str], form: Format) -> str:
    """The variables in a form that its reader reads back exactly.

    Raises `BadRequestError` for a value that dotenv files can't carry.
    """
    match form:
        case Format.JSON:
            return json.dumps(dict(values), indent=2)
        case Format.FISH:
            return "\n".join(f"set -gx {name} {_fish(value)};" for name, value in values.items())
        case Format.POWERSHELL:
            return "\n".join(f"$env:{name} = {_powershell(value)}" for name, value in values.items())
        case Format.DOTENV:
            return "\n".join(f"{name}={_dotenv(name, value)}" for name, value in values.items())
        case Format.SH:
            return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in values.items())


def _fish(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _powershell(value: str) -> str:
    doubled = _POWERSHELL_QUOTES.sub(r"\1\1", value)
    return f"'{doubled}'"


def _dotenv(name: str, value: str) -> str:
    # Some readers take a backslash for an escape, expand ${…}, and turn \r into \n, between quotes of any kind.
    for quote in "'\"":
        if quote not in value and not any(odd in value for odd in ("\\", "${", "\r")):
            return f"{quote}{value}{quote}"
    raise BadRequestError(
        "bad_request",
        f"{name} can't be written so that every reader of dotenv files reads the same: it has a backslash, a carriage return, "
        "${, or both kinds of quotes. Take --format json.",
    )
