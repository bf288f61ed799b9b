"""What a run of a sync returns: rows to write and to delete, and whether there is more."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from hutch.worker.errors import WorkerError
from hutch.worker.properties import Database, encoded
from hutch.worker.tables import Row, RowDelete


@dataclass(frozen=True, slots=True)
class Upsert:
    """A row to write. What it leaves out stays as it is; its primary key need not be said twice. `database`: another one than the
    sync's own."""

    key: str
    properties: Mapping[str, Any]
    database: Database | None = None
    upstream_updated_at: dt.datetime | str | None = None
    icon: Mapping[str, Any] | str | None = None
    """An emoji, or the vendor's form of an icon."""
    cover: Mapping[str, Any] | None = None
    markdown: str | None = None
    """The body of its page."""

    def sent(self, own: Database) -> dict[str, Any]:
        """In the vendor's form. Raises `WorkerError` and `TypeError`."""
        target = self.database or own
        properties: dict[str, Any] = {}
        for name, value in ({target.primary_key: self.key} | dict(self.properties)).items():
            if name not in target.properties:
                raise WorkerError(f"The database {target.key!r} has no property {name!r}; it has {', '.join(target.properties)}.")
            properties[name] = encoded(target.properties[name], value, name)
        moment = self.upstream_updated_at
        optional = {
            "upstreamUpdatedAt": moment.isoformat() if isinstance(moment, dt.datetime) else moment,
            "icon": {"type": "emoji", "value": self.icon} if isinstance(self.icon, str) else self.icon,
            "cover": self.cover,
            "pageContentMarkdown": self.markdown,
        }
        present = {name: value for name, value in optional.items() if value is not None}
        return {"type": "upsert", "key": self.key, "properties": properties, **present, "targetDatabaseKey": target.key}


@dataclass(frozen=True, slots=True)
class Delete:
    """A row to delete, which only syncs in incremental mode need."""

    key: str
    database: Database | None = None

    def sent(self, own: Database) -> dict[str, Any]:
        return {"type": "delete", "key": self.key, "targetDatabaseKey": (self.database or own).key}


@dataclass(frozen=True, slots=True)
class Record:
    """What an AI connector writes, in the form of its archetype."""

    key: str
    content: Mapping[str, Any]

    def sent(self) -> dict[str, Any]:
        return {"type": "upsert", "key": self.key, "record": dict(self.content)}


Change: TypeAlias = Upsert | Delete | Record | Row | RowDelete


@dataclass(frozen=True, slots=True)
class Page:
    """What one run has. With `more` it is run again at once, with `state`; `state` is kept for the next cycle too."""

    changes: list[Change] = field(default_factory=list)
    more: bool = False
    state: Any = None


def upsert(key: str, properties: Mapping[str, Any] | None = None, /, **named: Any) -> Upsert:
    """A row to write, its values by property; those whose names are no names of Python go into `properties`."""
    return Upsert(key, {**(properties or {}), **named})


def delete(key: str) -> Delete:
    """A row to delete."""
    return Delete(key)


def record(key: str, content: Mapping[str, Any]) -> Record:
    """A chat or a project, for an AI connector."""
    return Record(key, content)


def page(changes: Iterable[Change] = (), *, more: bool = False, state: Any = None) -> Page:
    """What one run has."""
    return Page(list(changes), more, state)
