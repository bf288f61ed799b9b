"""JSON that a stranger's program wrote: bounded in size and depth, with one meaning, and harmless to whoever reads it next."""

from __future__ import annotations

import json
import re
from typing import Any, TypeVar

import msgspec

from hutch.control import strict_json

MAX_SHOWN = 64
"""Characters of a stranger's text in a message."""
_PROTOTYPE = "__proto__"
Converted = TypeVar("Converted")


def load(raw: bytes, *, most_bytes: int, most_depth: int) -> Any:
    """The value. Raises `ValueError`, whose text ends a sentence that begins with what is read ("the manifest …").

    Names by which programs in JavaScript that copy objects are made to change all objects (`__proto__`, and `prototype`
    below `constructor`) are refused: what is read here is shown by such programs.
    """
    if len(raw) > most_bytes:
        raise ValueError(f"has {len(raw)} bytes; at most {most_bytes} are read")
    try:
        value = strict_json.load(raw)
    except RecursionError as error:
        raise ValueError(f"is nested more than {most_depth} deep") from error
    except UnicodeDecodeError as error:
        raise ValueError("is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"is no JSON: {error}") from error
    _inspect(value, most_depth)
    return value


def _inspect(value: Any, most_depth: int) -> None:
    waiting = [(value, 1)]
    while waiting:
        item, depth = waiting.pop()
        if not isinstance(item, dict | list):
            continue
        if depth > most_depth:
            raise ValueError(f"is nested more than {most_depth} deep")
        if isinstance(item, dict):
            if _PROTOTYPE in item:
                raise ValueError(f"has the name `{_PROTOTYPE}`, which changes other objects in JavaScript")
            below = item.get("constructor")
            if isinstance(below, dict) and "prototype" in below:
                raise ValueError("has `constructor.prototype`, which changes other objects in JavaScript")
        waiting += [(child, depth + 1) for child in (item.values() if isinstance(item, dict) else item)]


def shown(text: str, most: int = MAX_SHOWN) -> str:
    """A stranger's text for a message: in quotes, in one line, not long."""
    cut = text if len(text) <= most else text[: most - 1] + "…"
    return json.dumps(cut, ensure_ascii=not cut.isprintable())


def convert(value: Any, kind: type[Converted]) -> Converted:
    """A value as a struct. Raises `ValueError` with a text such as "`schedule.type` should be a string": never the value
    itself, which may be a secret."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ValueError(_sentence(str(error))) from None


_PLACE = re.compile(r" - at `(?:key in )?\$\.?([^`]*)`$")
_KINDS = {
    "str": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "object": "an object",
    "array": "a list",
}
_EXPECTED = re.compile(r"Expected `([^`]+)`, got `([^`]+)`")
_MISSING = re.compile(r"Object missing required field `([^`]+)`")


def _sentence(message: str) -> str:
    """msgspec's message in our words; "Expected `str`, got `int` - at `$.title`" becomes "`title` should be a string"."""
    found = _PLACE.search(message)
    place = found[1] if found else ""
    message = message[: found.start()] if found else message
    if missing := _MISSING.fullmatch(message):
        return f"`{place + '.' if place else ''}{missing[1]}` is missing"
    subject = f"`{place}`" if place else "it"
    if expected := _EXPECTED.fullmatch(message):
        kinds = [_KINDS.get(kind.strip(), kind.strip()) for kind in expected[1].split("|") if kind.strip() != "null"]
        return f"{subject} should be {' or '.join(kinds)}"
    if message.startswith("Invalid enum value"):
        return f"{subject} has a value that is not one of those that there are"
    return f"{subject} is not valid: {message}"
