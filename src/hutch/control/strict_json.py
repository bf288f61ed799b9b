"""JSON that means one thing to whoever reads it.

Parsers differ in what they make of a name that an object has twice, of `NaN`, of numbers beyond what a double or 64 bits hold,
and of halves of surrogate pairs. What one of them lets through and the next one sees otherwise is how checks are got around,
so nothing of the kind is taken anywhere.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any, NoReturn

MAX_SHOWN = 64
"""Characters of a name or number in a message."""
_INT64 = range(-(2**63), 2**63)
_INT64_DIGITS = 20
_MAX_EXACT = 2.0**53


def load(raw: bytes) -> Any:
    """The value that `raw` is. Raises `ValueError` for what is no JSON, or ambiguous (then its text goes on after "the body"),
    and `RecursionError`."""
    value = _DECODER.decode(raw.decode())
    if b"\\ud" in raw or b"\\uD" in raw:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError("has half of a surrogate pair") from error
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        times = Counter(name for name, _ in pairs)
        name = next(name for name in times if times[name] > 1)
        raise ValueError(f"has the name {name[:MAX_SHOWN]!a} more than once in an object")
    return value


def _integer(text: str) -> int:
    if len(text) > _INT64_DIGITS or (value := int(text)) not in _INT64:
        raise ValueError(f"has the integer {text[:MAX_SHOWN]}, which 64 bits don't hold")
    return value


def _number(text: str) -> float | int:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"has the number {text[:MAX_SHOWN]}, which is too large")
    # JSON knows no kinds of numbers: some clients write 2 as 2.0.
    return int(value) if value.is_integer() and abs(value) <= _MAX_EXACT else value


def _constant(text: str) -> NoReturn:
    raise ValueError(f"has {text}, which is no JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_number, parse_constant=_constant)
