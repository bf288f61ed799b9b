"""XLDBs and AI connectors as databases: their rows and records are kept, migrated, queried and exported like any other's.

    XLDB        a database of the same key; `_key` has the key columns in JSON, and is its title
                text, number, checkbox, date, select, multi_select are what they are called; json and arrays are text, in JSON,
                and timestamps text as they came
    connector   a database with the key of the capability; `_key` is the record's key, `Record` all of it in JSON

A row of an XLDB is complete: a column that it leaves out is emptied. A record of a connector replaces the one of its key, unless
that is newer (`updatedAt`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from hutch.workers import checks, rows
from hutch.workers.changes import Batch, Change, Delete, RecordUpsert, TableDelete, TableUpsert, Upsert, timestamp_ms
from hutch.workers.manifest import (
    AiConnector,
    Capability,
    Database,
    DatabaseSchema,
    Declared,
    Manifest,
    Property,
    Sync,
    Xldb,
)
from hutch.workers.outcome import Failure, Outcome, Success
from hutch.workers.reading import convert, shown

KEY = checks.ROW_KEY
RECORD = "Record"
_TYPES = {
    "text": "text",
    "number": "number",
    "checkbox": "checkbox",
    "date": "date",
    "select": "select",
    "multi_select": "multi_select",
}


class Channel(Declared, frozen=True, kw_only=True):
    id: str
    name: str


class Author(Declared, frozen=True, kw_only=True):
    id: str
    username: str


class Message(Declared, frozen=True, kw_only=True):
    id: str
    content: str
    timestamp: str
    author: Author
    edited_timestamp: str | None = None


class Chat(Declared, frozen=True, kw_only=True):
    """A conversation, or a thread of one."""

    created_at: str
    updated_at: str
    channel: Channel
    messages: list[Message]
    external_url: str | None = None
    thread_id: str | None = None
    chat_type: str | None = None


class Person(Declared, frozen=True, kw_only=True):
    id: str


class Block(Declared, frozen=True, kw_only=True):
    id: str
    type: str
    content: Any


class Project(Declared, frozen=True, kw_only=True):
    name: str
    created_at: str
    updated_at: str
    blocks: list[Block]
    external_url: str | None = None
    priority: Any = None
    teams: list[str] | None = None
    target_end: str | None = None
    created_by: Person | None = None


ARCHETYPES: dict[str, type[Chat | Project]] = {"chat": Chat, "project": Project}
_CONNECTED: dict[str, str] = {
    KEY: "title",
    "Name": "text",
    "Created": "text",
    "Updated": "text",
    "URL": "url",
    RECORD: "text",
}


# -- what is declared --------------------------------------------------------------------------------


def databases(manifest: Manifest) -> tuple[Database, ...]:
    """The databases of a manifest, with those that its XLDBs and connectors are."""
    found = {item.key: item for item in manifest.databases}
    for table in manifest.xldbs:
        found.setdefault(table.key, _of_table(table))
    for item in manifest.capabilities:
        if isinstance(item.config, AiConnector):
            found.setdefault(item.key, _of_connector(item.key, item.config))
    return tuple(found.values())


def written(manifest: Manifest, item: Capability) -> str | None:
    """The key of the database that a sync or a connector writes to; None for what writes to none."""
    config = item.config
    taken = {table.key for table in manifest.databases}
    if isinstance(config, Sync):
        if config.database_key is not None:
            return config.database_key
        target = config.target
        if target is None:
            return None
        return target.key if target.type != "xldb" or target.key not in taken else None
    if isinstance(config, AiConnector):
        return item.key if item.key not in taken | {table.key for table in manifest.xldbs} else None
    return None


def _of_table(table: Xldb) -> Database:
    properties = {KEY: Property(type="title")}
    for column in table.schema.columns:
        kind = _TYPES.get(column.type, "text")
        options = (column.select_options or []) if kind in ("select", "multi_select") else None
        properties.setdefault(column.name, Property(type=kind, options=options))
    schema = DatabaseSchema(properties=properties)
    return Database(key=table.key, initial_title=table.initial_title, primary_key_property=KEY, schema=schema)


def _of_connector(key: str, config: AiConnector) -> Database:
    schema = DatabaseSchema(properties={name: Property(type=kind) for name, kind in _CONNECTED.items()})
    return Database(key=key, initial_title=config.ai_connector_id, primary_key_property=KEY, schema=schema)


# -- what is returned --------------------------------------------------------------------------------


def converted(manifest: Manifest, item: Capability, outcome: Outcome) -> Outcome:
    """A run's outcome with changes of tables and records as changes of rows. What has the wrong form fails the run."""
    if not isinstance(outcome, Success) or not isinstance(outcome.value, Batch):
        return outcome
    table, archetype = _table(manifest, item), item.config.archetype if isinstance(item.config, AiConnector) else None
    if table is None and archetype is None:
        return outcome
    batch: Batch = outcome.value
    try:
        changes = tuple(_changes(batch.changes, table, archetype))
    except ValueError as error:
        return Failure(name="ResultInvalidError", message=f"The {item.tag} returned what can't be used: {error}.", made_here=True)
    return Success(msgspec.structs.replace(batch, changes=changes))


def _table(manifest: Manifest, item: Capability) -> Xldb | None:
    target = item.config.target if isinstance(item.config, Sync) else None
    if target is None or target.type != "xldb":
        return None
    return next((table for table in manifest.xldbs if table.key == target.key), None)


def _changes(changes: tuple[Change, ...], table: Xldb | None, archetype: str | None) -> Iterator[Change]:
    for index, change in enumerate(changes):
        try:
            if table is not None:
                yield _of_row(table, change)
            else:
                yield _of_record(archetype or "", change)
        except ValueError as error:
            raise ValueError(f"`changes[{index}]`: {str(error).rstrip('.')}") from None


def _of_row(table: Xldb, change: Change) -> Change:
    if isinstance(change, TableDelete):
        return Delete(key=rows.table_key(table, change))
    if not isinstance(change, TableUpsert):
        raise ValueError("a row of an XLDB has `values`, or to be deleted an object as `key`")
    key = rows.table_key(table, change)
    values, _ = rows.table_row(table, change)
    kinds = {column.name: column.type for column in table.schema.columns}
    # What can't be read comes as it was sent, so that a warning says so; columns that nobody declared, too.
    sent = {name: change.values[name] for name in change.values if name not in values or values[name] is None}
    plain = {name: _plain(kinds[name], value) for name, value in values.items()}
    return Upsert(key=key, properties={**plain, **{k: v for k, v in sent.items() if v is not None and k != KEY}, KEY: key})


def _plain(kind: str, value: Any) -> Any:
    if value is None:
        return []
    if kind in ("text", "number", "checkbox", "date", "select", "multi_select"):
        return value
    return value if kind == "timestamp" else msgspec.json.encode(value).decode()


def _of_record(archetype: str, change: Change) -> Change:
    if not isinstance(change, RecordUpsert):
        raise ValueError("a connector returns records")
    try:
        record = convert(change.record, ARCHETYPES[archetype])
    except (ValueError, KeyError) as error:
        raise ValueError(f"its record can't be used: {error}") from None
    try:
        updated = timestamp_ms(record.updated_at)
        timestamp_ms(record.created_at)
    except ValueError:
        raise ValueError(f"its record has {shown(record.updated_at)} as a time") from None
    text = msgspec.json.encode(change.record).decode()
    properties: dict[str, Any] = {
        KEY: change.key,
        "Name": record.name if isinstance(record, Project) else record.channel.name,
        "Created": record.created_at,
        "Updated": record.updated_at,
        "URL": record.external_url or [],
        RECORD: text,
    }
    return Upsert(key=change.key, properties=properties, upstream_updated_at_ms=updated)
