"""Query parameters of lists, and their cursors."""

from __future__ import annotations

from starlette.requests import Request

from hutch.control import cursor
from hutch.control.cursor import Position
from hutch.control.names import NAME_PATTERN, is_name
from hutch.errors import BadRequestError

DEFAULT_LIMIT = 20
MAX_LIMIT = 100


def number(request: Request, name: str, default: int, *, least: int, digits: int = 9) -> int:
    """A query parameter that is a number of at most so many digits."""
    text = request.query_params.get(name)
    if text is None or text == "":
        return default
    if not text.isdecimal() or not text.isascii() or len(text) > digits or int(text) < least:
        raise BadRequestError("bad_request", f"Invalid request: `{name}` should be an integer >= {least}.")
    return int(text)


def limit(request: Request) -> int:
    """`limit`, 1 to 100."""
    return min(number(request, "limit", DEFAULT_LIMIT, least=1), MAX_LIMIT)


def choice(request: Request, name: str, default: str, allowed: tuple[str, ...]) -> str:
    """A query parameter that takes one of a few values."""
    value = request.query_params.get(name) or default
    if value not in allowed:
        values = ", ".join(f'"{item}"' for item in allowed)
        raise BadRequestError("bad_request", f"Invalid request: `{name}` should be equal to one of the allowed values {values}.")
    return value


def flag(request: Request, name: str) -> bool:
    """A query parameter that is `true` or `false` (absent: false)."""
    return choice(request, name, "false", ("true", "false", "1", "0")) in ("true", "1")


def text(request: Request, name: str, max_length: int = 512) -> str | None:
    """A query parameter that is any text without NUL."""
    value = request.query_params.get(name)
    if value is not None and ("\0" in value or len(value) > max_length):
        raise BadRequestError("bad_request", f"Invalid request: `{name}` should be at most {max_length} characters without NUL.")
    return value or None


def name_prefix(request: Request, sort_by: str) -> str | None:
    """`namePrefix`, which only a list by name takes."""
    prefix = text(request, "namePrefix")
    if prefix is not None and sort_by != "name":
        raise BadRequestError("bad_request", "Invalid request: `namePrefix` is only valid when `sortBy` is `name`.")
    if prefix is not None and not is_name(prefix):
        raise BadRequestError("bad_request", f'Invalid request: `namePrefix` should match pattern "{NAME_PATTERN.pattern}".')
    return prefix


def position(request: Request, query: str, kind: type[int] | type[str] = int) -> Position | None:
    """Where the page asked for begins. `query` describes the list and its order, `kind` what it is sorted by."""
    given = request.query_params.get("cursor")
    return cursor.decode(given, query=query, kind=kind) if given else None


def next_cursor(end: Position | None, query: str) -> str | None:
    return cursor.encode(end, query=query) if end is not None else None
