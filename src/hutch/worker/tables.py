"""Tables of plain columns (the vendor's XLDBs, alpha): what a database is without pages and properties.

    from hutch.worker import columns as c, row

    events = worker.table("events", title="Events", upsert_key=["id"],
                          columns={"id": c.text(), "at": c.timestamp(), "tags": c.multi_select()})

    @worker.sync(events)
    def all_events(state):
        return page([row(id="1", at=datetime.now(UTC), tags=["new"])])

A row is complete: a column that it leaves out is emptied. Values are plain ones of Python; the type of the column says how they
are written.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hutch.worker.columns import Column
from hutch.worker.errors import WorkerError
from hutch.worker.schemas import plain

_NO_KEYS = frozenset({"json", "multi_select"})


@dataclass(frozen=True, slots=True)
class Table:
    """A table that syncs write to; `key` names it, `key_columns` tell its rows apart."""

    key: str
    key_columns: tuple[str, ...]
    columns: Mapping[str, Column]
    config: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """A whole row."""

    values: Mapping[str, Any]

    def sent(self, table: Table) -> dict[str, Any]:
        """In the vendor's form. Raises `WorkerError` and `TypeError`."""
        written = _written(table, self.values)
        for name in table.key_columns:
            if written.get(name) is None:
                raise WorkerError(f"A row of the table {table.key!r} needs a value of {name!r}, which is part of its key.")
        return {"type": "upsert", "values": written}


@dataclass(frozen=True, slots=True)
class RowDelete:
    """A row to delete, by its key columns, which only syncs in incremental mode need."""

    key: Mapping[str, Any]

    def sent(self, table: Table) -> dict[str, Any]:
        """In the vendor's form. Raises `WorkerError` and `TypeError`."""
        if set(self.key) != set(table.key_columns):
            raise WorkerError(f"A row of the table {table.key!r} is deleted by {', '.join(table.key_columns)}, and nothing else.")
        return {"type": "delete", "key": _written(table, self.key)}


def declared(key: str, title: str, key_columns: Iterable[str], columns: Mapping[str, Column]) -> Table:
    """A table as the manifest has it. Raises `WorkerError`."""
    if not isinstance(key_columns, list | tuple):
        raise WorkerError(f"Table {key!r}: its `upsert_key` should be a list of columns.")
    names = tuple(key_columns)
    if not names or len(set(names)) != len(names):
        raise WorkerError(f"Table {key!r}: its `upsert_key` should be one or more columns, each once.")
    for name in names:
        if name not in columns:
            raise WorkerError(f"Table {key!r}: its key {name!r} is none of its columns.")
        kind = columns[name].type
        if kind in _NO_KEYS or kind.startswith("array_"):
            raise WorkerError(f"Table {key!r}: {name!r} has more than one value ({kind}), and can't be part of the key.")
    listed = [{"name": name, "title": column.title or name, **column.declared} for name, column in columns.items()]
    config = {"type": "managed", "initialTitle": title, "upsertKey": list(names), "schema": {"columns": listed}}
    return Table(key, names, dict(columns), config)


def row(values: Mapping[str, Any] | None = None, /, **named: Any) -> Row:
    """A whole row of a table; columns whose names are no names of Python go into `values`."""
    return Row({**(values or {}), **named})


def delete_row(key: Mapping[str, Any] | None = None, /, **named: Any) -> RowDelete:
    """A row of a table to delete."""
    return RowDelete({**(key or {}), **named})


def _written(table: Table, values: Mapping[str, Any]) -> dict[str, Any]:
    written = {}
    for name, value in values.items():
        if name not in table.columns:
            raise WorkerError(f"The table {table.key!r} has no column {name!r}; it has {', '.join(table.columns)}.")
        written[name] = None if value is None else _value(table.columns[name].type, value, name)
    return written


def _value(kind: str, value: Any, name: str) -> Any:
    inner = "text" if kind == "multi_select" else kind.removeprefix("array_")
    if inner != kind:
        if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
            raise TypeError(f"the column {name!r} should be a list, not {type(value).__name__}")
        return [_KINDS[inner](item, name) for item in value]
    return _KINDS[inner](value, name)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"the column {name!r} should be a text, not {type(value).__name__}")
    return value


def _number(value: Any, name: str) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"the column {name!r} should be a number, not {value!r}")
    return value


def _checkbox(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"the column {name!r} should be True or False, not {value!r}")
    return value


def _date(value: Any, name: str) -> str:
    if isinstance(value, dt.datetime) or not isinstance(value, dt.date | str):
        raise TypeError(f"the column {name!r} should be a date, not {type(value).__name__}")
    return value if isinstance(value, str) else value.isoformat()


def _timestamp(value: Any, name: str) -> str:
    if isinstance(value, dt.datetime):
        if value.tzinfo is None:
            raise TypeError(f"the column {name!r} should be a time with a time zone")
        return value.isoformat()
    return _text(value, name)


def _json(value: Any, name: str) -> Any:
    return plain(value)


_KINDS: dict[str, Callable[[Any, str], Any]] = {
    "text": _text,
    "select": _text,
    "number": _number,
    "checkbox": _checkbox,
    "date": _date,
    "timestamp": _timestamp,
    "json": _json,
}
