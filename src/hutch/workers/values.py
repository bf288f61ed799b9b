"""Values of properties: the SDK's encodings, and the plain JSON that is stored, queried and exported.

The encodings are Notion's token arrays, `[[text, [[kind, argument], …]?], …]`, or objects. Plain values, by type of property:

    title text url email phone_number select status    string, or null when empty
    number                                             number or null
    checkbox                                           true or false
    multi_select people relation                       list of strings: names, addresses, primary keys
    file                                               list of {name, url}
    date                                               {start, end?, timeZone?} or null; start is 2026-01-31 or 2026-01-31T09:30
    place                                              {lat, lon, name?, address?, googlePlaceId?} or null

A text that is more than one plain token (bold, links) keeps its tokens beside the plain text: `Cell.tokens`. Plain values are
read as well as encoded ones. What can't be read is empty, with a problem: a single bad value is no reason to stop a sync.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from typing import Any, NamedTuple
from zoneinfo import available_timezones

import msgspec

from hutch.workers.manifest import Property
from hutch.workers.reading import shown

MAX_TEXT = 2**18
"""Characters of a text."""
MAX_ITEMS = 10_000
"""Items of a list, tokens of a text."""
MAX_OPTION = 256
_DATE_MARK = "‣"
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?", re.ASCII)
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)
_TIME = re.compile(r"(?:[01][0-9]|2[0-3]):[0-5][0-9]", re.ASCII)
_EXACT = 2**53
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_ZONES = frozenset(available_timezones())


class Cell(msgspec.Struct, frozen=True, omit_defaults=True):
    """A value: plain, and the tokens that say more than it where there are such."""

    value: Any = None
    tokens: list[Any] | None = None


class Decoded(msgspec.Struct, frozen=True):
    """A cell, and what could not be read of it, as the end of a sentence that begins with the property."""

    cell: Cell
    problem: str | None = None


class _Unreadable(ValueError):
    """Its text ends a sentence that begins with the property."""


def decode(kind: str, sent: Any) -> Decoded:
    """A value for a property of a type. Never raises."""
    try:
        value = _CODECS[kind].decode(sent)
    except _Unreadable as error:
        return Decoded(Cell(_CODECS[kind].empty()), str(error))
    if kind in _RICH and isinstance(sent, list) and sent != encode(kind, value) and value is not None:
        return Decoded(Cell(value, without_nul(sent)))
    return Decoded(Cell(value))


def encode(kind: str, value: Any) -> Any:
    """The SDK's encoding of a plain value."""
    return _CODECS[kind].encode(value)


def encoded(kind: str, cell: Cell) -> Any:
    """The SDK's encoding of a cell."""
    return cell.tokens if cell.tokens is not None else encode(kind, cell.value)


def empty(kind: str) -> Any:
    """The plain value of nothing."""
    return _CODECS[kind].empty()


def text(kind: str, value: Any) -> str:
    """A plain value for people, in one cell of a table."""
    return _CODECS[kind].text(value)


def csv_text(kind: str, value: Any) -> str:
    """The same for a CSV file: a text that a spreadsheet would compute (`=…`, `@…`) has an apostrophe before it."""
    written = text(kind, value)
    return "'" + written if kind != "number" and written.startswith(_FORMULA) else written


def new_options(item: Property, value: Any) -> list[str]:
    """Names in a plain value that a select, multi-select or status does not have yet: they are added."""
    if item.type not in {"select", "status", "multi_select"} or value is None:
        return []
    known = set(item.option_names)
    return [name for name in ([value] if isinstance(value, str) else value) if name not in known]


class _Codec(NamedTuple):
    decode: Callable[[Any], Any]
    encode: Callable[[Any], Any]
    text: Callable[[Any], str]
    empty: Callable[[], Any]


def _plain(sent: Any) -> str:
    """The text of tokens: their first elements, joined."""
    if sent is None:
        return ""
    if isinstance(sent, str):
        joined = sent
    elif isinstance(sent, list):
        if len(sent) > MAX_ITEMS:
            raise _Unreadable(f"has more than {MAX_ITEMS} tokens")
        for token in sent:
            if not isinstance(token, list) or not token or not isinstance(token[0], str):
                raise _Unreadable("should have tokens such as `[text]`")
        joined = "".join(token[0] for token in sent)
    else:
        raise _Unreadable("should have a list of tokens")
    if len(joined) > MAX_TEXT:
        raise _Unreadable(f"has {len(joined)} characters; there may be {MAX_TEXT}")
    # Databases take no NUL.
    return joined.replace("\x00", "")


def without_nul(value: Any) -> Any:
    """JSON without the one character that databases don't take."""
    if isinstance(value, str):
        return value.replace("\x00", "")
    if isinstance(value, list):
        return [without_nul(item) for item in value]
    if isinstance(value, dict):
        return {without_nul(name): without_nul(item) for name, item in value.items()}
    return value


def _string(sent: Any) -> str | None:
    return _plain(sent) or None


def _option(sent: Any) -> str | None:
    name = _plain(sent).strip()
    if len(name) > MAX_OPTION:
        raise _Unreadable(f"has an option of more than {MAX_OPTION} characters")
    return name or None


def _options(sent: Any) -> list[str]:
    # A list of strings is the plain form; tokens are lists.
    strings = isinstance(sent, list) and all(isinstance(item, str) for item in sent)
    names = [name.strip() for item in (sent if strings else [_plain(sent)]) for name in item.split(",")]
    if any(len(name) > MAX_OPTION for name in names) or len(names) > MAX_ITEMS:
        raise _Unreadable(f"has an option of more than {MAX_OPTION} characters, or more than {MAX_ITEMS} of them")
    return [name.replace("\x00", "") for name in dict.fromkeys(names) if name]


def _number(sent: Any) -> int | float | None:
    if isinstance(sent, bool):
        raise _Unreadable("should be a number")
    if isinstance(sent, int | float):
        return _finite(float(sent))
    written = _plain(sent).strip()
    if not written:
        return None
    if not _NUMBER.fullmatch(written) or len(written) > 400:
        raise _Unreadable(f"should be a number, not {shown(written)}")
    return _finite(float(written))


def _finite(value: float) -> int | float:
    if not math.isfinite(value):
        raise _Unreadable("should be a number that is not too large")
    return int(value) if value.is_integer() and abs(value) <= _EXACT else value


def number_text(value: float | None) -> str:
    """A number as JavaScript writes it."""
    if value is None:
        return ""
    if isinstance(value, int):
        return str(value)
    if value == 0:
        return "0"
    if 1e-6 <= abs(value) < 1e21:
        return format(Decimal(repr(value)), "f").removesuffix(".0")
    mantissa, _, exponent = repr(value).partition("e")
    return f"{mantissa}e{int(exponent):+d}"


def _checkbox(sent: Any) -> bool:
    if isinstance(sent, bool):
        return sent
    written = _plain(sent).strip()
    if written not in {"", "Yes", "No"}:
        raise _Unreadable(f"should be Yes or No, not {shown(written)}")
    return written == "Yes"


def _files(sent: Any) -> list[dict[str, str]]:
    if sent is None or isinstance(sent, str):
        sent = [[sent]] if sent else []
    if not isinstance(sent, list) or len(sent) > MAX_ITEMS:
        raise _Unreadable("should have a list of files")
    found = []
    for item in sent:
        if isinstance(item, dict) and isinstance(item.get("url"), str):
            name = item.get("name")
            found.append({"name": name if isinstance(name, str) else item["url"], "url": item["url"]})
            continue
        name = _plain([item])
        # Several files are parted by tokens that are only a comma.
        if name.strip() not in {"", ","}:
            found.append({"name": name, "url": _link(item) or name})
    return [{part: value[:MAX_TEXT].replace("\x00", "") for part, value in item.items()} for item in found]


def _link(token: list[Any]) -> str | None:
    """The address of a token `[text, [["a", address]]]`."""
    marks = token[1] if len(token) > 1 and isinstance(token[1], list) else []
    for mark in marks:
        if isinstance(mark, list) and len(mark) == 2 and mark[0] == "a" and isinstance(mark[1], str):
            return mark[1]
    return None


def _dated(sent: Any) -> dict[str, str] | None:
    if sent is None or sent in ([], "", [[""]]):
        return None
    if isinstance(sent, str):
        return _times({"start": sent})
    if isinstance(sent, dict):
        return _times(sent)
    if isinstance(sent, list) and sent and isinstance(sent[0], list) and len(sent[0]) > 1 and isinstance(sent[0][1], list):
        for mark in sent[0][1]:
            if isinstance(mark, list) and len(mark) == 2 and mark[0] == "d" and isinstance(mark[1], dict):
                return _token_times(mark[1])
    return _times({"start": _plain(sent)})


def _token_times(mark: dict[str, Any]) -> dict[str, str]:
    found = {}
    for side in ("start", "end"):
        day, time = mark.get(f"{side}_date"), mark.get(f"{side}_time")
        if day is None:
            continue
        found[side] = f"{day}T{time}" if time is not None else str(day)
    if mark.get("time_zone") is not None:
        found["timeZone"] = str(mark["time_zone"])
    return _times(found)


def _times(sent: dict[str, Any]) -> dict[str, str]:
    found = {"start": _moment(sent.get("start"))}
    if sent.get("end") is not None:
        found["end"] = _moment(sent["end"])
    zone = sent.get("timeZone")
    if zone is not None:
        if not isinstance(zone, str) or zone not in _ZONES:
            raise _Unreadable(f"has the time zone {shown(str(zone))}, which is not known")
        found["timeZone"] = zone
    return found


def _moment(sent: Any) -> str:
    day, mark, time = sent.partition("T") if isinstance(sent, str) else ("", "", "")
    try:
        good = bool(_DAY.fullmatch(day)) and bool(date.fromisoformat(day)) and (not mark or bool(_TIME.fullmatch(time)))
    except ValueError:
        good = False
    if not good:
        raise _Unreadable(f"should be a date such as 2026-01-31, not {shown(str(sent))}")
    assert isinstance(sent, str)
    return sent


def _encode_date(value: dict[str, str] | None) -> list[Any]:
    if value is None:
        return []
    start, mark, start_time = value["start"].partition("T")
    end, end_mark, end_time = value.get("end", "").partition("T")
    timed = bool(mark or end_mark)
    made: dict[str, str] = {"type": ("datetime" if timed else "date") + ("range" if end else ""), "start_date": start}
    if mark:
        made["start_time"] = start_time
    if end:
        made["end_date"] = end
    if end_mark:
        made["end_time"] = end_time
    if "timeZone" in value:
        made["time_zone"] = value["timeZone"]
    return [[_DATE_MARK, [["d", made]]]]


def _people(sent: Any) -> list[str]:
    items = sent if isinstance(sent, list) else [] if sent is None else [sent]
    found = []
    for item in items[: MAX_ITEMS + 1]:
        address = item.get("email") if isinstance(item, dict) else item
        if not isinstance(address, str):
            raise _Unreadable("should have people such as `{email}`")
        found.append(address[:MAX_OPTION].replace("\x00", ""))
    return _several(found)


def _relation(sent: Any) -> list[str]:
    items = sent if isinstance(sent, list) else [] if sent is None else [sent]
    found = []
    for item in items[: MAX_ITEMS + 1]:
        key = item.get("value") if isinstance(item, dict) and item.get("type") == "primaryKey" else item
        if not isinstance(key, str):
            raise _Unreadable('should have keys such as `{type: "primaryKey", value}`')
        found.append(key.replace("\x00", ""))
    return _several(found)


def _several(found: list[str]) -> list[str]:
    if len(found) > MAX_ITEMS:
        raise _Unreadable(f"has more than {MAX_ITEMS} items")
    return [item for item in dict.fromkeys(found) if item]


def _place(sent: Any) -> dict[str, Any] | None:
    if sent is None or sent in ([], ""):
        return None
    if not isinstance(sent, dict):
        raise _Unreadable("should be a place: an object with lat and lon")
    found: dict[str, Any] = {}
    for name, most in (("lat", 90), ("lon", 180)):
        value = sent.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not -most <= value <= most:
            raise _Unreadable(f"should be a place whose {name} is a number from -{most} to {most}")
        found[name] = value
    for name in ("name", "address", "googlePlaceId"):
        if isinstance(sent.get(name), str):
            found[name] = sent[name][:MAX_TEXT].replace("\x00", "")
    return found


def _tokens(value: str | None) -> list[Any]:
    return [[value]] if value else []


def _date_text(value: dict[str, str] | None) -> str:
    if value is None:
        return ""
    moments = [value[side].replace("T", " ") for side in ("start", "end") if side in value]
    return " → ".join(moments) + (f" ({value['timeZone']})" if "timeZone" in value else "")


def _place_text(value: dict[str, Any] | None) -> str:
    if value is None:
        return ""
    return str(value.get("name") or value.get("address") or f"{number_text(value['lat'])}, {number_text(value['lon'])}")


def _nothing() -> None:
    return None


_TEXT = _Codec(_string, _tokens, lambda value: value or "", _nothing)
_OPTION = _Codec(_option, _tokens, lambda value: value or "", _nothing)
_RICH = frozenset({"title", "text", "url", "email", "phone_number"})
_CODECS: dict[str, _Codec] = dict.fromkeys(sorted(_RICH), _TEXT) | {
    "select": _OPTION,
    "status": _OPTION,
    "multi_select": _Codec(_options, lambda value: _tokens(",".join(value)), ", ".join, list),
    "number": _Codec(_number, lambda value: _tokens(number_text(value)), number_text, _nothing),
    "checkbox": _Codec(
        _checkbox, lambda value: [["Yes" if value else "No"]], lambda value: "Yes" if value else "No", lambda: False
    ),
    "file": _Codec(
        _files,
        lambda value: [[item["name"], [["a", item["url"]]]] for item in value],
        lambda value: ", ".join(item["url"] for item in value),
        list,
    ),
    "date": _Codec(_dated, _encode_date, _date_text, _nothing),
    "people": _Codec(_people, lambda value: [{"email": item} for item in value], ", ".join, list),
    "place": _Codec(_place, lambda value: value if value is not None else [], _place_text, _nothing),
    "relation": _Codec(_relation, lambda value: [{"type": "primaryKey", "value": item} for item in value], ", ".join, list),
}
