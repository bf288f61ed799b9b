"""What an upsert makes of a row: its values checked against the declared properties.

Gaps of the contract and what fills them: a property that the upsert leaves out keeps its value, and so do icon, cover and body; a
property that is not declared is not written, with a warning; a value that can't be read empties its cell, with a warning; an
option that a select does not have is added. An upsert without its primary key property is refused, alone, with a warning: the
vendor drops it in silence.
"""

from __future__ import annotations

from typing import Any

import msgspec

from hutch.workers import values
from hutch.workers.changes import TableDelete, TableUpsert, Upsert, timestamp_ms
from hutch.workers.manifest import Column, Database, Xldb
from hutch.workers.reading import shown
from hutch.workers.values import Cell

MAX_WARNINGS = 100
"""Warnings that a run keeps; the rest is counted."""
ICON_COLORS = frozenset("gray lightgray brown yellow orange green blue purple pink red".split())
DEFAULT_POSITION = 0.5
MAX_ADDRESS = 2048
MAX_EMOJI = 32


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What to write. `cells` has the properties that the upsert named, `new_options` names to add by property. `icon` and
    `cover` are None, as `markdown` is, where the upsert says nothing about them."""

    key: str
    cells: dict[str, Cell]
    new_options: dict[str, list[str]]
    icon: dict[str, Any] | None
    cover: dict[str, Any] | None
    markdown: str | None
    warnings: tuple[str, ...]


class Refused(msgspec.Struct, frozen=True):
    """A change that is not applied, and why."""

    key: str
    warning: str


def row(database: Database, upsert: Upsert) -> Row | Refused:
    """An upsert for a database. Never raises."""
    primary = database.primary_key_property
    if primary not in upsert.properties:
        return Refused(upsert.key, f"Row {shown(upsert.key)} has no {shown(primary)}, its primary key, and was not written.")
    warnings = []
    cells: dict[str, Cell] = {}
    options: dict[str, list[str]] = {}
    for name, sent in upsert.properties.items():
        item = database.schema.properties.get(name)
        if item is None:
            warnings.append(f"Row {shown(upsert.key)}: the property {shown(name)} is not declared, and was not written.")
            continue
        decoded = values.decode(item.type, sent)
        cells[name] = decoded.cell
        if decoded.problem:
            warnings.append(f"Row {shown(upsert.key)}: the property {shown(name)} {decoded.problem}.")
        if added := values.new_options(item, decoded.cell.value):
            options[name] = added
    held = values.text(database.schema.properties[primary].type, cells[primary].value) if primary in cells else ""
    if held != upsert.key:
        warnings.append(f"Row {shown(upsert.key)}: its {shown(primary)} is {shown(held)}; it is found by its key.")
    icon, cover = _icon(upsert.icon, warnings, upsert.key), _cover(upsert.cover, warnings, upsert.key)
    return Row(
        key=upsert.key,
        cells=cells,
        new_options=options,
        icon=icon,
        cover=cover,
        markdown=None if upsert.markdown is None else upsert.markdown.replace("\x00", ""),
        warnings=tuple(warnings),
    )


def _icon(sent: dict[str, Any] | None, warnings: list[str], key: str) -> dict[str, Any] | None:
    if sent is None:
        return None
    kind = sent.get("type")
    if kind == "emoji" and _is_text(sent.get("value"), MAX_EMOJI):
        return {"type": "emoji", "value": sent["value"]}
    if kind == "notion" and _is_text(sent.get("icon"), values.MAX_OPTION):
        color = sent.get("color")
        return {
            "type": "notion",
            "icon": sent["icon"],
            "color": color if isinstance(color, str) and color in ICON_COLORS else "gray",
        }
    if kind == "image" and _is_address(sent.get("url")):
        return {"type": "image", "url": sent["url"]}
    warnings.append(f"Row {shown(key)}: its icon is none of those that there are, and was not written.")
    return None


def _cover(sent: dict[str, Any] | None, warnings: list[str], key: str) -> dict[str, Any] | None:
    if sent is None:
        return None
    position = sent.get("position", DEFAULT_POSITION)
    placed = isinstance(position, int | float) and not isinstance(position, bool) and 0 <= position <= 1
    if sent.get("type") == "image" and _is_address(sent.get("url")) and placed:
        return {"type": "image", "url": sent["url"], "position": position}
    warnings.append(f"Row {shown(key)}: its cover is no image with a position from 0 to 1, and was not written.")
    return None


def _is_text(value: Any, most: int) -> bool:
    return isinstance(value, str) and 0 < len(value) <= most and value.isprintable()


def _is_address(value: Any) -> bool:
    """Images are shown to people: nothing that a browser would run."""
    return (
        isinstance(value, str) and len(value) <= MAX_ADDRESS and value.isprintable() and value.startswith(("https://", "http://"))
    )


def table_row(table: Xldb, change: TableUpsert) -> tuple[dict[str, Any], list[str]]:
    """A complete row of an XLDB and its warnings: a column that is missing is null. Raises `ValueError` without its key."""
    warnings = [
        f"The column {shown(name)} is not declared, and was not written." for name in change.values if name not in _names(table)
    ]
    found = {}
    for column in table.schema.columns:
        value = change.values.get(column.name)
        try:
            found[column.name] = None if value is None else _column_value(column, value)
        except ValueError as error:
            if column.name in table.upsert_key:
                raise
            warnings.append(str(error))
            found[column.name] = None
    for name in table.upsert_key:
        if found.get(name) is None:
            raise ValueError(f"the column {shown(name)} is part of the key, and has no value")
    return found, warnings


def table_key(table: Xldb, change: TableUpsert | TableDelete) -> str:
    """The identity of a row of an XLDB, as text: its key columns in JSON. Raises `ValueError`."""
    sent = change.values if isinstance(change, TableUpsert) else change.key
    columns = {column.name: column for column in table.schema.columns}
    parts = []
    for name in table.upsert_key:
        if sent.get(name) is None:
            raise ValueError(f"the column {shown(name)} is part of the key, and has no value")
        parts.append(_column_value(columns[name], sent[name]))
    return msgspec.json.encode(parts).decode()


def _names(table: Xldb) -> set[str]:
    return {column.name for column in table.schema.columns}


def _column_value(column: Column, value: Any) -> Any:
    """Raises `ValueError` with a sentence."""
    inner = column.type.removeprefix("array_")
    if column.type.startswith("array_") or column.type == "multi_select":
        if not isinstance(value, list) or len(value) > values.MAX_ITEMS:
            raise ValueError(f"The column {shown(column.name)} should be a list.")
        return [_scalar(column.name, "text" if inner == "multi_select" else inner, item) for item in value]
    return _scalar(column.name, "text" if inner == "select" else inner, value)


def _scalar(name: str, kind: str, value: Any) -> Any:
    if kind == "json":
        return values.without_nul(value)
    good = False
    if kind in {"text", "date", "timestamp"}:
        good = isinstance(value, str) and len(value) <= values.MAX_TEXT
        if good and kind != "text":
            good = _is_moment(kind, value)
        value = value.replace("\x00", "") if good else value
    if kind == "number":
        good = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "checkbox":
        good = isinstance(value, bool)
    if not good:
        raise ValueError(f"The column {shown(name)} should be a {kind}.")
    return value


def _is_moment(kind: str, value: str) -> bool:
    try:
        timestamp_ms(value)
    except ValueError:
        return False
    return kind == "timestamp" or len(value) == 10
