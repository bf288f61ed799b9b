"""JSON whose numbers are integers and whose keys appear once: what is computed with, and what is signed."""

from __future__ import annotations

import json
from typing import Any

MAX_DIGITS = 40


def loads(data: bytes | str) -> Any:
    """The value. Raises `ValueError` with what is wrong."""
    try:
        return _DECODER.decode(data.decode("utf-8") if isinstance(data, bytes) else data)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number has more than {MAX_DIGITS} digits")
    return int(text)


def _no_integer(text: str) -> Any:
    raise ValueError(f"{text[:32]} is not an integer")


_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_int=_integer, parse_float=_no_integer, parse_constant=_no_integer)
