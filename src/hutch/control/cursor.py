"""Opaque page cursors.

A cursor is the position of the last item of a page: the value it was sorted by and its number, which breaks ties. It is bound
to the query that made it by a digest, so that a cursor used with another sort order is refused instead of answering nonsense.
It is not secret and grants nothing: every query is scoped by its caller anyway.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass

import msgspec

from hutch.errors import BadRequestError

MAX_CURSOR_LENGTH = 1024


@dataclass(frozen=True, slots=True)
class Position:
    """Where a page ended: the sort value of its last item, and that item's number (rows are numbered as they are made)."""

    value: int | str
    number: int


class _Payload(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    query: bytes
    value: int | str
    number: int


def _digest(query: str) -> bytes:
    return hashlib.blake2b(query.encode(), digest_size=6).digest()


def encode(position: Position, *, query: str) -> str:
    """The cursor of `position` for the query that `query` describes (resource, scope, sort)."""
    payload = msgspec.msgpack.encode(_Payload(_digest(query), position.value, position.number))
    return base64.urlsafe_b64encode(payload).decode().rstrip("=")


def decode(cursor: str, *, query: str, kind: type[int] | type[str] = int) -> Position:
    """The position in `cursor`; `kind` is the type of its sort value.

    Raises `BadRequestError` for anything that `encode` did not make for the same query.
    """
    invalid = BadRequestError(
        "bad_request",
        "Invalid request: `cursor` is not a cursor of this list. Use `pagination.next` of the page before, with the same query.",
    )
    if not cursor or len(cursor) > MAX_CURSOR_LENGTH:
        raise invalid
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        payload = msgspec.msgpack.decode(raw, type=_Payload)
    except (binascii.Error, ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise invalid from error
    if payload.query != _digest(query) or encode(Position(payload.value, payload.number), query=query) != cursor:
        raise invalid
    if not isinstance(payload.value, kind):
        raise invalid
    if any(isinstance(value, int) and not -(2**63) <= value < 2**63 for value in (payload.value, payload.number)):
        raise invalid
    if isinstance(payload.value, str) and "\0" in payload.value:
        raise invalid
    return Position(payload.value, payload.number)
