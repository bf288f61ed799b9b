"""Rows of workers' databases, and the relations between them.

A batch of a sync is written with `write`, in the transaction that stores the state after it: so both count, or neither does.
What a declaration means is decided in `hutch.workers` (`rows`, `merge`, `relations`, `schema`); here it is kept.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import msgspec
from sqlalchemy import ColumnElement, and_, delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from hutch.control.records import Scope
from hutch.storage.models import WorkerDatabaseModel, WorkerPairModel, WorkerRowModel
from hutch.storage.scoping import within
from hutch.workers import relations, rows, schema, sync, values
from hutch.workers.manifest import Database, Property
from hutch.workers.merge import Write
from hutch.workers.rows import Refused
from hutch.workers.schema import Migration
from hutch.workers.values import Cell

CHUNK = 500
"""Rows in one statement."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Stored:
    """A database as it is stored. `title` is that of its creation; `options` are those that rows added, by property."""

    definition: Database
    title: str
    declared: bool
    options: dict[str, list[str]] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return self.definition.key


@dataclass(frozen=True, slots=True)
class Row:
    """A row with its properties as plain values (`hutch.workers.values`)."""

    number: int
    key: str
    properties: dict[str, Any]
    icon: dict[str, Any] | None
    cover: dict[str, Any] | None
    markdown: str | None
    created_at: int
    updated_at: int


@dataclass(frozen=True, slots=True)
class Side:
    """Where the pairs of a relation's property are kept: the property that declares it, seen from its other end if `back`."""

    database: str
    property: str
    related: str
    """The database at the other end of this property."""
    back: bool = False


Sides = Mapping[tuple[str, str], Side]


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def sides(databases: Sequence[Database]) -> dict[tuple[str, str], Side]:
    """The side of each relation's property. Where both ends declare it, it is kept at the one that sorts first."""
    known = {item.key: item for item in databases}
    found: dict[tuple[str, str], Side] = {}
    for key, properties in schema.effective(databases).items():
        for name, item in properties.items():
            if item.type != "relation" or item.related_database_key not in known:
                continue
            here, related = (key, name), item.related_database_key
            other = item.config.related_property_name if item.config and item.config.two_way else None
            if here in found:
                continue
            if other is None or (related, other) == here:
                found[here] = Side(key, name, related)
                continue
            there = (related, other)
            kept = _kept(known, here, there)
            found[here] = Side(*kept, related, back=kept != here)
            found[there] = Side(*kept, key, back=kept != there)
    return found


def _kept(known: Mapping[str, Database], here: tuple[str, str], there: tuple[str, str]) -> tuple[str, str]:
    def declares(end: tuple[str, str]) -> bool:
        database, name = end
        if name in known[database].schema.properties:
            return True
        items = known[database].schema.sub_items
        # A child names its parent, so that is where the relation is written as a rule.
        return items is not None and items.parent_property_name == name

    first, second = sorted((here, there))
    return second if declares(second) and not declares(first) else first


# -- databases ---------------------------------------------------------------------------------------


async def databases(connection: AsyncConnection, scope: Scope, worker_id: str) -> dict[str, Stored]:
    """All that a worker has, also those that it does not declare any more, by key."""
    query = select(
        WorkerDatabaseModel.definition, WorkerDatabaseModel.title, WorkerDatabaseModel.declared, WorkerDatabaseModel.options
    ).where(*within(scope, WorkerDatabaseModel), WorkerDatabaseModel.worker_id == worker_id)
    found = [
        Stored(msgspec.convert(definition, Database), title, declared, options)
        for definition, title, declared, options in await connection.execute(query.order_by(WorkerDatabaseModel.key))
    ]
    return {item.key: item for item in found}


async def migrate(
    connection: AsyncConnection, scope: Scope, worker_id: str, declared: Sequence[Database], now: int
) -> list[Migration]:
    """Have the databases be as a deployment declares them. The answer says what that did, and lost."""
    before = await databases(connection, scope, worker_id)
    was = [item.definition for item in before.values()]
    after = {item.key: item for item in declared}
    # What is not declared any more is kept as it was, and may be declared again.
    kept = [after.get(item.key, item) for item in was] + [item for item in declared if item.key not in before]
    old_sides, new_sides = sides(was), sides(kept)
    found = schema.migrate(was, declared)
    for migration in found:
        if migration.key in after:
            await _move_rows(connection, scope, worker_id, before.get(migration.key), migration, old_sides, now)
    await _move_pairs(connection, scope, worker_id, old_sides, new_sides, found)
    for key, item in after.items():
        stored = before.get(key)
        if stored is None:
            values = {"title": item.initial_title, "options": {}, "created_at": now, "key": key, "worker_id": worker_id}
            owner = {"team_id": scope.team_id, "project_id": scope.project_id}
            made = {"definition": msgspec.to_builtins(item), "declared": True, "updated_at": now}
            await connection.execute(insert(WorkerDatabaseModel).values(**values, **owner, **made))
            continue
        selects = {
            name: names
            for name, names in stored.options.items()
            if name in item.schema.properties and item.schema.properties[name].type in {"select", "multi_select", "status"}
        }
        statement = update(WorkerDatabaseModel).where(
            *within(scope, WorkerDatabaseModel), WorkerDatabaseModel.worker_id == worker_id, WorkerDatabaseModel.key == key
        )
        changed = {"definition": msgspec.to_builtins(item), "declared": True, "options": selects, "updated_at": now}
        await connection.execute(statement.values(**changed))
    gone = update(WorkerDatabaseModel).where(
        *within(scope, WorkerDatabaseModel),
        WorkerDatabaseModel.worker_id == worker_id,
        WorkerDatabaseModel.key.not_in(list(after)),
    )
    await connection.execute(gone.values(declared=False))
    return [item for item in found if item.key in after or before[item.key].declared]


async def _move_rows(
    connection: AsyncConnection,
    scope: Scope,
    worker_id: str,
    before: Stored | None,
    migration: Migration,
    where: Sides,
    now: int,
) -> None:
    """What a migration does to the rows that there are."""
    if before is None:
        return
    moving = [item for item in migration.steps if isinstance(item, schema.Drop | schema.Rename | schema.Retype)]
    rekeys = next((item for item in migration.steps if isinstance(item, schema.Rekey)), None)
    held: dict[str, Any] = {}
    numbers: dict[str, int] = {}
    async for number, key, cells in _all_rows(connection, scope, worker_id, migration.key):
        moved = dict(cells)
        for step in moving:
            if isinstance(step, schema.Drop):
                moved.pop(step.name, None)
            elif isinstance(step, schema.Rename) and step.name in moved:
                moved[step.to] = moved.pop(step.name)
            elif isinstance(step, schema.Retype) and step.name in moved:
                cell = msgspec.convert(moved[step.name], Cell)
                moved[step.name] = _raw(schema.convert(step.was, step.property.type, cell))
        if moved != cells:
            changed = update(WorkerRowModel).where(*within(scope, WorkerRowModel), WorkerRowModel.number == number)
            await connection.execute(changed.values(cells=moved, updated_at=now))
        if rekeys is not None:
            held[key], numbers[key] = moved.get(rekeys.name, {}).get("value"), number
    if rekeys is not None:
        kinds = {item.name: item.property.type for item in migration.steps if isinstance(item, schema.Retype | schema.Add)}
        known = before.definition.schema.properties.get(rekeys.name)
        kind = kinds.get(rekeys.name) or (known.type if known else "title")
        await _rekey(connection, scope, worker_id, migration.key, schema.rekey(kind, held), numbers, where)


async def _all_rows(
    connection: AsyncConnection, scope: Scope, worker_id: str, database: str
) -> AsyncIterator[tuple[int, str, dict[str, Any]]]:
    last = 0
    while True:
        query = select(WorkerRowModel.number, WorkerRowModel.key, WorkerRowModel.cells).where(
            *_rows_of(scope, worker_id, database), WorkerRowModel.number > last
        )
        found = (await connection.execute(query.order_by(WorkerRowModel.number).limit(CHUNK))).all()
        for row in found:
            yield row[0], row[1], row[2]
        if len(found) < CHUNK:
            return
        last = found[-1][0]


async def _rekey(
    connection: AsyncConnection,
    scope: Scope,
    worker_id: str,
    database: str,
    keys: Mapping[str, str | None],
    numbers: Mapping[str, int],
    where: Sides,
) -> None:
    """Give rows their new keys, in two steps, as one row's new key may be another's old one."""
    every = _rows_of(scope, worker_id, database)
    for gone in _chunks([numbers[key] for key, new in keys.items() if new is None]):
        await connection.execute(delete(WorkerRowModel).where(*every, WorkerRowModel.number.in_(gone)))
    staying = {key: new for key, new in keys.items() if new is not None and new != key}
    for step in ("moving", "moved"):
        for key, new in staying.items():
            own = (*every, WorkerRowModel.number == numbers[key])
            placed = {"key": new, "key_digest": digest(new) if step == "moved" else f"moving {numbers[key]}"}
            await connection.execute(update(WorkerRowModel).where(*own).values(**placed))
    for end, side in where.items():
        # Relations of others name its rows by what their authors write, which is the new key.
        if end[0] == database and not side.back:
            pairs = await _pairs(connection, scope, worker_id, *end)
            own_rows = side.related == database
            moved = {(keys.get(a, a), keys.get(b, b) if own_rows else b) for a, b in pairs}
            kept = {(a, b) for a, b in moved if a is not None and b is not None}
            await _replace_pairs(connection, scope, worker_id, side, kept)


async def _move_pairs(
    connection: AsyncConnection, scope: Scope, worker_id: str, old: Sides, new: Sides, migrations: Sequence[Migration]
) -> None:
    """Pairs of relations that are gone go; those whose other end is where they are kept now change their place."""
    steps = [(item.key, step) for item in migrations for step in item.steps]
    renamed = {(key, step.to): (key, step.name) for key, step in steps if isinstance(step, schema.Rename)}
    dropped = {(key, step.name) for key, step in steps if isinstance(step, schema.Drop | schema.Retype)}
    staying: set[tuple[str, str]] = set()
    moving: list[tuple[Side, set[tuple[str, str]]]] = []
    for end, side in new.items():
        was = old.get(renamed.get(end, end))
        if side.back or was is None or end in dropped:
            continue
        former = (was.database, was.property)
        if former == end and not was.back:
            staying.add(former)
            continue
        pairs = await _pairs(connection, scope, worker_id, *former)
        moving.append((side, {(b, a) for a, b in pairs} if was.back else pairs))
    for place in {(side.database, side.property) for side in old.values()} - staying:
        await connection.execute(delete(WorkerPairModel).where(*_pairs_of(scope, worker_id, *place)))
    for side, pairs in moving:
        await _replace_pairs(connection, scope, worker_id, side, pairs)


# -- writing -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Written:
    """What came of a batch."""

    warnings: list[str] = field(default_factory=list)
    swept: int = 0


async def write(
    connection: AsyncConnection,
    scope: Scope,
    worker_id: str,
    known: Mapping[str, Stored],
    writes: Sequence[Write],
    *,
    mark: int,
    now: int,
) -> Written:
    """Write a batch: each row once, with this mark. `known` are the worker's databases."""
    result = Written()
    by_database: dict[str, list[Write]] = defaultdict(list)
    for item in writes:
        by_database[item.database].append(item)
    where = sides([item.definition for item in known.values()])
    for key, items in by_database.items():
        added: dict[str, list[str]] = {}
        for chunk in _chunks(items):
            await _write(connection, scope, worker_id, known[key].definition, chunk, where, added, result, mark=mark, now=now)
        await _add_options(connection, scope, worker_id, known[key], added)
    return result


async def _write(
    connection: AsyncConnection,
    scope: Scope,
    worker_id: str,
    database: Database,
    writes: Sequence[Write],
    where: Sides,
    options: dict[str, list[str]],
    result: Written,
    *,
    mark: int,
    now: int,
) -> None:
    # Properties that the other side of a relation gives are written like those that are declared.
    complete = whole(database, where)
    columns = (WorkerRowModel.key, WorkerRowModel.number, *(getattr(WorkerRowModel, name) for name in _CONTENT))
    query = select(*columns).where(
        *_rows_of(scope, worker_id, database.key), WorkerRowModel.key_digest.in_([digest(item.key) for item in writes])
    )
    stored = {row[0]: (row[1], dict(zip(_CONTENT, row[2:], strict=True))) for row in await connection.execute(query)}
    new: list[dict[str, Any]] = []
    gone: list[str] = []
    seen: list[int] = []
    for item in writes:
        number, before = stored.get(item.key, (None, None))
        if item.upsert is None:
            gone.append(item.key)
            continue
        read = rows.row(complete, item.upsert)
        if isinstance(read, Refused):
            result.warnings.append(read.warning)
            if number is not None:
                seen.append(number)
            continue
        result.warnings += read.warnings
        if before is not None and not item.fresh and not sync.writes(before["upstream_ms"], item.upsert.upstream_updated_at_ms):
            assert number is not None
            seen.append(number)
            continue
        for name, names in read.new_options.items():
            options.setdefault(name, []).extend(names)
        if item.fresh:
            await _delete_pairs(connection, scope, worker_id, database.key, [item.key], where)
        cells = {name: _raw(cell) for name, cell in read.cells.items() if (database.key, name) not in where}
        empty: dict[str, Any] = {**dict.fromkeys(_CONTENT), "cells": {}}
        base = before if before is not None and not item.fresh else empty
        content = {
            "cells": base["cells"] | cells,
            "icon": read.icon if read.icon is not None else base["icon"],
            "cover": read.cover if read.cover is not None else base["cover"],
            "markdown": read.markdown if read.markdown is not None else base["markdown"],
            "upstream_ms": item.upsert.upstream_updated_at_ms
            if item.upsert.upstream_updated_at_ms is not None
            else base["upstream_ms"],
        }
        related = await _relate(connection, scope, worker_id, database.key, read, where)
        if before is None:
            owner = {"team_id": scope.team_id, "project_id": scope.project_id, "worker_id": worker_id}
            times = {"seen": mark, "created_at": now, "updated_at": now}
            new.append({"database": database.key, "key": item.key, "key_digest": digest(item.key), **owner, **times, **content})
        elif content == before and not related:
            assert number is not None
            seen.append(number)
        else:
            changed = update(WorkerRowModel).where(*within(scope, WorkerRowModel), WorkerRowModel.number == number)
            await connection.execute(changed.values(**content, seen=mark, updated_at=now))
    if new:
        await connection.execute(insert(WorkerRowModel), new)
    for chunk in _chunks(seen):
        confirmed = update(WorkerRowModel).where(*_rows_of(scope, worker_id, database.key), WorkerRowModel.number.in_(chunk))
        await connection.execute(confirmed.values(seen=mark))
    await _delete(connection, scope, worker_id, database.key, gone, where)


_CONTENT = ("cells", "icon", "cover", "markdown", "upstream_ms")


def whole(database: Database, where: Sides) -> Database:
    """A database with the properties that relations of others give it."""
    given = {
        name: Property(type="relation", related_database_key=side.related)
        for (key, name), side in where.items()
        if key == database.key and name not in database.schema.properties
    }
    if not given:
        return database
    complete = msgspec.structs.replace(database.schema, properties={**database.schema.properties, **given})
    return msgspec.structs.replace(database, schema=complete)


def _raw(cell: Cell) -> dict[str, Any]:
    return {"value": cell.value} if cell.tokens is None else {"value": cell.value, "tokens": cell.tokens}


async def _add_options(
    connection: AsyncConnection, scope: Scope, worker_id: str, stored: Stored, added: Mapping[str, list[str]]
) -> None:
    options = {name: list(names) for name, names in stored.options.items()}
    for name, names in added.items():
        options[name] = list(dict.fromkeys([*options.get(name, []), *names]))
    if options != stored.options:
        statement = update(WorkerDatabaseModel).where(
            *within(scope, WorkerDatabaseModel), WorkerDatabaseModel.worker_id == worker_id, WorkerDatabaseModel.key == stored.key
        )
        await connection.execute(statement.values(options=options))
        stored.options.update(options)


async def sweep(
    connection: AsyncConnection, scope: Scope, worker_id: str, known: Mapping[str, Stored], database: str, before: int
) -> int:
    """Delete the rows that no sync wrote or confirmed since this mark; how many."""
    where = sides([item.definition for item in known.values()])
    count = 0
    while True:
        query = select(WorkerRowModel.key).where(*_rows_of(scope, worker_id, database), WorkerRowModel.seen < before).limit(CHUNK)
        keys = list((await connection.execute(query)).scalars())
        if not keys:
            return count
        count += len(keys)
        await _delete(connection, scope, worker_id, database, keys, where)


async def _delete(
    connection: AsyncConnection, scope: Scope, worker_id: str, database: str, keys: Sequence[str], where: Sides
) -> None:
    for chunk in _chunks(keys):
        own = (*_rows_of(scope, worker_id, database), WorkerRowModel.key_digest.in_([digest(key) for key in chunk]))
        await connection.execute(delete(WorkerRowModel).where(*own))
        await _delete_pairs(connection, scope, worker_id, database, chunk, where)


# -- relations ---------------------------------------------------------------------------------------


def _pairs_of(scope: Scope, worker_id: str, database: str, name: str) -> tuple[ColumnElement[bool], ...]:
    return (
        *within(scope, WorkerPairModel),
        WorkerPairModel.worker_id == worker_id,
        WorkerPairModel.database == database,
        WorkerPairModel.property == name,
    )


async def _pairs(
    connection: AsyncConnection, scope: Scope, worker_id: str, database: str, name: str, *only: ColumnElement[bool]
) -> set[tuple[str, str]]:
    query = select(WorkerPairModel.from_key, WorkerPairModel.to_key).where(*_pairs_of(scope, worker_id, database, name), *only)
    return {(row[0], row[1]) for row in await connection.execute(query)}


async def _relate(connection: AsyncConnection, scope: Scope, worker_id: str, database: str, row: rows.Row, where: Sides) -> bool:
    """Write a row's relations; whether that changed any."""
    changed = False
    for name, cell in row.cells.items():
        side = where.get((database, name))
        if side is None:
            continue
        column = WorkerPairModel.to_digest if side.back else WorkerPairModel.from_digest
        pairs = await _pairs(connection, scope, worker_id, side.database, side.property, column == digest(row.key))
        if side.back:
            difference = relations.written_back(row.key, {origin for origin, _ in pairs}, cell.value)
        else:
            difference = relations.written(row.key, {to for _, to in pairs}, cell.value)
        await _remove_pairs(connection, scope, worker_id, side, difference.removed)
        await _add_pairs(connection, scope, worker_id, side, difference.added)
        changed = changed or bool(difference.added or difference.removed)
    return changed


async def _add_pairs(
    connection: AsyncConnection, scope: Scope, worker_id: str, side: Side, pairs: Iterable[tuple[str, str]]
) -> None:
    owner = {"team_id": scope.team_id, "project_id": scope.project_id, "worker_id": worker_id}
    place = {"database": side.database, "property": side.property}
    added = [
        {"from_key": a, "to_key": b, "from_digest": digest(a), "to_digest": digest(b), **place, **owner} for a, b in sorted(pairs)
    ]
    if added:
        await connection.execute(insert(WorkerPairModel), added)


async def _remove_pairs(
    connection: AsyncConnection, scope: Scope, worker_id: str, side: Side, pairs: Iterable[tuple[str, str]]
) -> None:
    for chunk in _chunks(sorted(pairs)):
        ends = or_(*(and_(WorkerPairModel.from_digest == digest(a), WorkerPairModel.to_digest == digest(b)) for a, b in chunk))
        await connection.execute(delete(WorkerPairModel).where(*_pairs_of(scope, worker_id, side.database, side.property), ends))


async def _replace_pairs(
    connection: AsyncConnection, scope: Scope, worker_id: str, side: Side, pairs: Iterable[tuple[str, str]]
) -> None:
    await connection.execute(delete(WorkerPairModel).where(*_pairs_of(scope, worker_id, side.database, side.property)))
    await _add_pairs(connection, scope, worker_id, side, pairs)


async def _delete_pairs(
    connection: AsyncConnection, scope: Scope, worker_id: str, database: str, keys: Sequence[str], where: Sides
) -> None:
    """What goes with rows: the pairs from them. Those that lead to them are pending again."""
    for (key, _), side in where.items():
        if key == database and not side.back:
            origins = WorkerPairModel.from_digest.in_([digest(item) for item in keys])
            await connection.execute(
                delete(WorkerPairModel).where(*_pairs_of(scope, worker_id, side.database, side.property), origins)
            )


# -- reading -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Order:
    """By the value of a property; by the order in which rows were made where there is none."""

    property: str | None = None
    kind: str = "text"
    descending: bool = False


async def page(
    connection: AsyncConnection,
    scope: Scope,
    worker_id: str,
    known: Mapping[str, Stored],
    database: str,
    *,
    limit: int,
    after: int = 0,
    offset: int = 0,
    filters: Mapping[str, str] | None = None,
    order: Order | None = None,
) -> tuple[list[Row], bool]:
    """Rows of a database from `after` (a number) on, or, where they are ordered, without the first `offset`; and whether there
    are more. `filters` are plain values as texts, by property."""
    where = sides([item.definition for item in known.values()])
    complete = whole(known[database].definition, where)
    query = select(*_LISTED).where(*_rows_of(scope, worker_id, database))
    for name, wanted in (filters or {}).items():
        query = query.where(_equals(complete.schema.properties[name].type, name, wanted))
    if order is not None and order.property is not None:
        column = _sortable(order.kind, order.property)
        ordered = column.desc() if order.descending else column.asc()
        query = query.order_by(ordered.nulls_last(), WorkerRowModel.number).offset(offset)
    else:
        query = query.where(WorkerRowModel.number > after).order_by(WorkerRowModel.number)
    found = (await connection.execute(query.limit(limit + 1))).all()
    listed = [_row(complete, *row) for row in found[:limit]]
    return await _related(connection, scope, worker_id, database, listed, where), len(found) > limit


_LISTED = tuple(
    getattr(WorkerRowModel, name) for name in ("number", "key", "cells", "icon", "cover", "markdown", "created_at", "updated_at")
)


def _row(database: Database, number: int, key: str, cells: dict[str, Any], *rest: Any) -> Row:
    properties = {
        name: cells[name]["value"] if name in cells else values.empty(item.type)
        for name, item in database.schema.properties.items()
    }
    return Row(number, key, properties, *rest)


async def _related(
    connection: AsyncConnection, scope: Scope, worker_id: str, database: str, listed: list[Row], where: Sides
) -> list[Row]:
    """The rows with what they see of their relations."""
    names = [name for key, name in where if key == database]
    found: dict[str, dict[str, list[str]]] = {row.key: {name: [] for name in names} for row in listed}
    for name in names:
        side = where[database, name]
        here, there = WorkerPairModel.from_key, WorkerPairModel.to_key
        near, far = WorkerPairModel.from_digest, WorkerPairModel.to_digest
        if side.back:
            here, there, near, far = there, here, far, near
        for chunk in _chunks(listed):
            query = (
                select(here, there)
                .join(WorkerRowModel, and_(*_rows_of(scope, worker_id, side.related), WorkerRowModel.key_digest == far))
                .where(*_pairs_of(scope, worker_id, side.database, side.property), near.in_([digest(row.key) for row in chunk]))
            )
            for key, other in await connection.execute(query):
                found[key][name].append(other)
    return [
        replace(row, properties=row.properties | {name: sorted(keys) for name, keys in found[row.key].items()}) for row in listed
    ]


def _equals(kind: str, name: str, wanted: str) -> ColumnElement[bool]:
    column: Any = WorkerRowModel.cells[(name, "value")]
    found: ColumnElement[bool]
    if kind == "number":
        found = column.as_float() == float(wanted)
    elif kind == "checkbox":
        found = column.as_boolean() == (wanted == "true")
    else:
        found = column.as_string() == wanted
    return found


def _sortable(kind: str, name: str) -> ColumnElement[Any]:
    path = (name, "value", "start") if kind == "date" else (name, "value")
    column: Any = WorkerRowModel.cells[path]
    found: ColumnElement[Any] = column.as_float() if kind == "number" else column.as_string()
    return found


def properties(known: Mapping[str, Stored], database: str) -> dict[str, Property]:
    """What a row of a database has: what is declared, and the other ends of relations."""
    where = sides([item.definition for item in known.values()])
    return whole(known[database].definition, where).schema.properties


async def count(connection: AsyncConnection, scope: Scope, worker_id: str) -> dict[str, int]:
    """How many rows each database has that has any."""
    query = select(WorkerRowModel.database, func.count()).where(
        *within(scope, WorkerRowModel), WorkerRowModel.worker_id == worker_id
    )
    return {row[0]: row[1] for row in await connection.execute(query.group_by(WorkerRowModel.database))}


def _rows_of(scope: Scope, worker_id: str, database: str) -> tuple[ColumnElement[bool], ...]:
    return (*within(scope, WorkerRowModel), WorkerRowModel.worker_id == worker_id, WorkerRowModel.database == database)


def _chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), CHUNK):
        yield items[start : start + CHUNK]
