"""Rows of workers' databases: what batches, sweeps and migrations leave, and what relations show, on both databases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from hutch import ids
from hutch.control.records import Scope
from hutch.storage import worker_rows, workers
from hutch.storage.database import Database
from hutch.storage.worker_rows import Order, Row
from hutch.storage.workers import Worker
from hutch.workers import merge
from hutch.workers.changes import Change, Delete, Upsert
from hutch.workers.manifest import Database as Declared
from hutch.workers.manifest import DatabaseSchema, Option, Property, RelationConfig

TITLE = Property(type="title")


def declared(key: str = "d", primary: str = "Id", **properties: Property) -> Declared:
    return Declared(
        key=key,
        initial_title=key.title(),
        primary_key_property=primary,
        schema=DatabaseSchema(properties={"Id": TITLE, **properties}),
    )


def upsert(key: str, *, database: str | None = None, at: int | None = None, icon: Any = None, **properties: Any) -> Upsert:
    return Upsert(key=key, properties={"Id": key, **properties}, database=database, upstream_updated_at_ms=at, icon=icon)


class Kept:
    """The databases of one worker."""

    def __init__(self, database: Database, scope: Scope, worker_id: str) -> None:
        self.database, self.scope, self.worker_id = database, scope, worker_id
        self.mark = 0

    async def declare(self, *databases: Declared) -> list[str]:
        async with self.database.write() as connection:
            found = await worker_rows.migrate(connection, self.scope, self.worker_id, databases, 1)
        return [sentence for item in found for sentence in item.losses]

    async def write(self, *changes: Change, own: str = "d") -> list[str]:
        self.mark += 1
        async with self.database.write() as connection:
            known = await worker_rows.databases(connection, self.scope, self.worker_id)
            writes, warnings = merge.merged(changes, own, {key for key, item in known.items() if item.declared})
            written = await worker_rows.write(
                connection, self.scope, self.worker_id, known, writes, mark=self.mark, now=1000 + self.mark
            )
        return warnings + written.warnings

    async def sweep(self, before: int, own: str = "d") -> int:
        async with self.database.write() as connection:
            known = await worker_rows.databases(connection, self.scope, self.worker_id)
            return await worker_rows.sweep(connection, self.scope, self.worker_id, known, own, before)

    async def rows(self, own: str = "d", **options: Any) -> list[Row]:
        async with self.database.read() as connection:
            known = await worker_rows.databases(connection, self.scope, self.worker_id)
            return (await worker_rows.page(connection, self.scope, self.worker_id, known, own, **{"limit": 2000, **options}))[0]

    async def values(self, own: str = "d") -> dict[str, Mapping[str, Any]]:
        return {row.key: {name: value for name, value in row.properties.items() if name != "Id"} for row in await self.rows(own)}


@pytest.fixture
async def kept(database: Database, scope: Scope) -> Kept:
    return Kept(database, scope, await new_worker(database, scope))


async def new_worker(database: Database, scope: Scope) -> str:
    assert scope.project_id is not None
    worker = Worker(ids.worker_id(), scope.team_id, scope.project_id, "w", None, 1, 1)
    async with database.write() as connection:
        await workers.add(connection, worker)
    return worker.id


async def test_an_upsert_changes_what_it_names_and_an_older_one_nothing(kept: Kept) -> None:
    await kept.declare(declared(n=Property(type="number"), t=Property(type="text")))
    assert await kept.write(upsert("a", at=5, n=1, t="x"), upsert("b", n=[["2"]])) == []
    await kept.write(upsert("a", at=6, n=3))
    await kept.write(upsert("a", at=4, n=9, t="older"))
    assert await kept.values() == {"a": {"n": 3, "t": "x"}, "b": {"n": 2, "t": None}}
    first = (await kept.rows())[0]
    await kept.write(upsert("a", at=6, n=3))
    assert (await kept.rows())[0] == first, "what changes nothing is no change"
    await kept.write(Delete(key="a"), upsert("a", n=7), Delete(key="none"))
    assert await kept.values() == {"a": {"n": 7, "t": None}, "b": {"n": 2, "t": None}}
    warned = await kept.write(Upsert(key="c", properties={"n": 1}), upsert("d", database="other"), upsert("e", n="much"))
    assert sorted(text[:7] for text in warned) == ['Row "c"', 'Row "d"', 'Row "e"']
    assert set(await kept.values()) == {"a", "b", "e"}


async def test_a_sweep_takes_what_no_sync_saw_since(kept: Kept) -> None:
    await kept.declare(declared(), declared("other"))
    await kept.write(*(upsert(f"k{number}") for number in range(1200)), upsert("x", database="other"))
    await kept.write(upsert("k3"), Upsert(key="k4", properties={}), upsert("k1199"))
    assert await kept.sweep(2) == 1197
    assert set(await kept.values()) == {"k3", "k4", "k1199"}
    assert set(await kept.values("other")) == {"x"}


async def test_keys_of_any_length_and_kind_are_told_apart(kept: Kept) -> None:
    await kept.declare(declared())
    keys = ["x" * 1024, "x" * 1023 + "y", "é" * 1024, "É", "é", "e\u0301", " ", "'; DROP TABLE workers; --", "\U0001f407" * 512]
    await kept.write(*(upsert(key) for key in keys))
    assert [row.key for row in await kept.rows()] == keys
    await kept.write(Delete(key="x" * 1024))
    assert [row.key for row in await kept.rows()] == keys[1:]


async def test_relations_wait_for_their_rows_and_show_on_both_sides(kept: Kept) -> None:
    both = RelationConfig(two_way=True, related_property_name="tasks")
    project = Property(type="relation", related_database_key="projects", config=both)
    await kept.declare(declared("tasks", project=project), declared("projects"))
    await kept.write(upsert("t1", project=["p1", "p2"]), upsert("t2", project=["p1"]), own="tasks")
    assert await kept.values("tasks") == {"t1": {"project": []}, "t2": {"project": []}}
    await kept.write(upsert("p1"), own="projects")
    assert await kept.values("tasks") == {"t1": {"project": ["p1"]}, "t2": {"project": ["p1"]}}
    assert await kept.values("projects") == {"p1": {"tasks": ["t1", "t2"]}}
    await kept.write(upsert("p1", tasks=["t2"]), upsert("p2"), own="projects")
    assert await kept.values("tasks") == {"t1": {"project": ["p2"]}, "t2": {"project": ["p1"]}}
    await kept.write(Delete(key="p1"), own="projects")
    assert await kept.values("tasks") == {"t1": {"project": ["p2"]}, "t2": {"project": []}}
    await kept.write(upsert("p1"), own="projects")
    assert (await kept.values("tasks"))["t2"] == {"project": ["p1"]}, "it was only pending"
    await kept.write(Delete(key="t2"), upsert("t3", project=["p1"]), own="tasks")
    await kept.write(upsert("t2"), own="tasks")
    assert (await kept.values("projects"))["p1"] == {"tasks": ["t3"]}, "pairs go with the row that they are from"
    one_way = Property(type="relation", related_database_key="projects", config=RelationConfig())
    await kept.declare(declared("tasks", project=one_way), declared("projects"))
    assert (await kept.values("tasks"))["t3"] == {"project": ["p1"]}
    assert await kept.values("projects") == {"p1": {}, "p2": {}}
    assert any(
        "leads to another" in text
        for text in await kept.declare(
            declared("tasks", project=Property(type="relation", related_database_key="tasks", config=RelationConfig())),
            declared("projects"),
        )
    )
    assert (await kept.values("tasks"))["t3"] == {"project": []}


async def test_migrations_convert_what_they_can_and_say_what_they_lose(kept: Kept) -> None:
    options = Property(type="select", options=[Option(name="new")])
    await kept.declare(declared(n=Property(type="text"), s=options, gone=Property(type="text")))
    await kept.write(upsert("a", n="12", s="old", gone="x"), upsert("b", n="no number", s="new"), upsert("c"))
    lost = await kept.declare(declared(n=Property(type="number"), s=Property(type="text"), more=Property(type="checkbox")))
    assert len(lost) == 3
    assert await kept.values() == {
        "a": {"n": 12, "s": "old", "more": False},
        "b": {"n": None, "s": "new", "more": False},
        "c": {"n": None, "s": None, "more": False},
    }
    assert await kept.declare() == []
    assert len(await kept.write(upsert("a", n=5))) == 1, "no sync writes to what is not declared"
    assert await kept.declare(declared(n=Property(type="number"), s=Property(type="text"), more=Property(type="checkbox"))) == []
    assert (await kept.values())["a"]["n"] == 12, "it was kept meanwhile"
    await kept.write(upsert("d", n=12))
    assert len(await kept.declare(declared(primary="n", n=Property(type="number")))) == 3
    assert await kept.values() == {"12": {"n": 12}}


async def test_rows_are_filtered_ordered_and_read_in_pages(kept: Kept, database: Database) -> None:
    await kept.declare(
        declared(n=Property(type="number"), t=Property(type="text"), c=Property(type="checkbox"), d=Property(type="date"))
    )
    await kept.write(
        upsert("a", n=10, t="x", c=True, d="2026-01-02"), upsert("b", n=9, t='"', d="2025-01-02"), upsert("c", t="x", c=True)
    )

    async def keys(**options: Any) -> list[str]:
        return [row.key for row in await kept.rows(**options)]

    assert await keys(order=Order("n", "number")) == ["b", "a", "c"]
    assert await keys(order=Order("n", "number", descending=True)) == ["a", "b", "c"]
    assert await keys(order=Order("d", "date")) == ["b", "a", "c"]
    assert await keys(order=Order("n", "number"), offset=1, limit=1) == ["a"]
    assert await keys(filters={"t": "x", "c": "true"}) == ["a", "c"]
    assert await keys(filters={"n": "9.0"}) == ["b"]
    assert await keys(filters={"t": '"'}) == ["b"]
    rows = await kept.rows(limit=2)
    assert [row.key for row in await kept.rows(after=rows[-1].number)] == ["c"]
    async with database.read() as connection:
        assert await worker_rows.count(connection, kept.scope, kept.worker_id) == {"d": 3}
