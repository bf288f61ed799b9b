"""Properties of databases, and how their values travel.

    people = worker.database("people", title="People", primary_key="Id",
                             properties={"Id": title(), "Born": date(), "Works for": relation("companies")})

A row has plain values of Python (`{"Id": "1", "Born": date(1815, 12, 10), "Works for": ["acme"]}`); the type of each property
says how it is written in the vendor's encoding, so that a number is not confused with a text.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hutch.worker.errors import WorkerError

_MARK = "\u2023"
"""Stands for what is no text in the vendor's texts."""
_TEXTS = frozenset({"title", "text", "url", "email", "phone_number", "select", "status"})
GROUPS = ("To-do", "In progress", "Complete")


@dataclass(frozen=True, slots=True)
class Property:
    """A column, as the manifest has it."""

    declared: dict[str, Any]

    @property
    def type(self) -> str:
        return str(self.declared["type"])


@dataclass(frozen=True, slots=True)
class Database:
    """A database that syncs write to."""

    key: str
    primary_key: str
    properties: Mapping[str, Property]
    config: dict[str, Any]


def title() -> Property:
    """The name of a row. A database has one such property."""
    return Property({"type": "title"})


def text() -> Property:
    return Property({"type": "text"})


def url() -> Property:
    return Property({"type": "url"})


def email() -> Property:
    return Property({"type": "email"})


def phone_number() -> Property:
    return Property({"type": "phone_number"})


def checkbox() -> Property:
    return Property({"type": "checkbox"})


def file() -> Property:
    """An address, or an address and a name as a pair."""
    return Property({"type": "file"})


def people() -> Property:
    """Addresses for mail."""
    return Property({"type": "people"})


def place() -> Property:
    """`{"lat", "lon", "name"?, "address"?}`."""
    return Property({"type": "place"})


def number(format: str | None = None) -> Property:
    """`format`: number, number_with_commas, percent, dollar, euro, pound, yen, rupee, won or yuan."""
    return Property(present({"type": "number", "format": format}))


def date(format: str | None = None) -> Property:
    """A day, a moment, or a pair of either; a moment with a time zone keeps it. `format`: relative, MM/DD/YYYY, DD/MM/YYYY,
    YYYY/MM/DD, ll or `MMM d`."""
    return Property(present({"type": "date", "date_format": format}))


def select(*options: str | tuple[str, str]) -> Property:
    """Names, or names with colours."""
    return Property({"type": "select", "options": _options(options)})


def multi_select(*options: str | tuple[str, str]) -> Property:
    """Names, or names with colours; none may have a comma in it."""
    return Property({"type": "multi_select", "options": _options(options)})


def status(*, to_do: Iterable[str] = (), in_progress: Iterable[str] = (), complete: Iterable[str] = ()) -> Property:
    groups = zip(GROUPS, (to_do, in_progress, complete), strict=True)
    return Property({"type": "status", "groups": [{"name": name, "options": _options(options)} for name, options in groups]})


def relation(database: str | Database, *, two_way: str | None = None) -> Property:
    """Rows of a database, by their primary keys. `two_way` names the property of the other side that shows the way back."""
    key = database.key if isinstance(database, Database) else database
    config = {"twoWay": False} if two_way is None else {"twoWay": True, "relatedPropertyName": two_way}
    return Property({"type": "relation", "relatedDatabaseKey": key, "config": config})


def _options(options: Iterable[str | tuple[str, str]]) -> list[dict[str, str]]:
    found = [{"name": one} if isinstance(one, str) else {"name": one[0], "color": one[1]} for one in options]
    if any(not one["name"] for one in found):
        raise WorkerError("An option should have a name.")
    return found


def present(fields: dict[str, Any]) -> dict[str, Any]:
    """Without those that are None: what there is not is absent in a manifest."""
    return {name: value for name, value in fields.items() if value is not None}


# -- values ------------------------------------------------------------------------------------------


def encoded(item: Property, value: Any, name: str = "") -> Any:
    """A value in the vendor's encoding; None and nothing are empty. Raises `TypeError`."""
    if value is None or value in ("", [], ()):
        return []
    kind = item.type
    if kind in _TEXTS:
        return [[str(value)]]
    if kind == "checkbox":
        return [["Yes" if _is(value, bool, name, "true or false") else "No"]]
    if kind == "number":
        return _number(value, name)
    if kind == "date":
        return _date(value, name)
    if kind == "multi_select":
        return [[",".join(str(one) for one in _many(value))]]
    if kind == "file":
        address, shown = value if isinstance(value, tuple) else (value, None)
        return [[shown or address, [["a", address]]]]
    if kind == "people":
        return [{"email": str(one)} for one in _many(value)]
    if kind == "relation":
        return [{"type": "primaryKey", "value": str(one)} for one in _many(value)]
    return value


def _many(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple | set | frozenset) else [value]


def _is(value: Any, kind: type, name: str, wanted: str) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"the property {name!r} should be {wanted}, not {type(value).__name__}")
    return value


def _number(value: Any, name: str) -> list[list[str]]:
    if isinstance(value, bool):
        raise TypeError(f"the property {name!r} should be a number, not bool")
    number = float(_is(value, int | float, name, "a number"))  # type: ignore[arg-type]
    if not math.isfinite(number):
        return []
    return [[str(int(value)) if number == value == int(number) else repr(value)]]


def _date(value: Any, name: str) -> list[Any]:
    start, end = value if isinstance(value, tuple) else (value, None)
    parts = _moment(start, "start", name)
    if end is not None:
        parts |= _moment(end, "end", name)
    kind = ("datetime" if "start_time" in parts else "date") + ("range" if end is not None else "")
    return [[_MARK, [["d", {"type": kind} | parts]]]]


def _moment(value: Any, which: str, name: str) -> dict[str, str]:
    if isinstance(value, str):
        value = dt.datetime.fromisoformat(value) if "T" in value else dt.date.fromisoformat(value)
    if isinstance(value, dt.datetime):
        zone = getattr(value.tzinfo, "key", None)
        if value.tzinfo is not None and zone is None:
            # An offset is no zone: the moment stays the same.
            value, zone = value.astimezone(dt.UTC), "UTC"
        found = {f"{which}_date": value.date().isoformat(), f"{which}_time": value.strftime("%H:%M")}
        return found | ({"time_zone": zone} if zone else {})
    return {f"{which}_date": _is(value, dt.date, name, "a date").isoformat()}
