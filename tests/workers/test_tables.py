"""XLDBs and AI connectors are databases, and what they return becomes rows of those or fails the run with what to fix."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hutch.workers import reconcile, rows, tables
from hutch.workers.changes import Delete, Upsert, batch
from hutch.workers.manifest import Manifest
from hutch.workers.outcome import Failure, Outcome, Success
from hutch.workers.rows import Refused
from tests.workers.declared import database, parsed, whole

COLUMNS = [
    ("id", "text"),
    ("day", "date"),
    ("n", "number"),
    ("ok", "checkbox"),
    ("state", "select"),
    ("tags", "multi_select"),
    ("at", "timestamp"),
    ("raw", "json"),
    ("list", "array_number"),
]
VALUES: dict[str, Any] = {
    "id": "a",
    "day": "2026-01-31",
    "n": 7,
    "ok": True,
    "state": "open",
    "tags": ["x", "y"],
    "at": "2026-01-31T12:00:05Z",
    "raw": {"deep": [1, None]},
    "list": [1, 2],
}
CHAT = {
    "createdAt": "2026-01-01T00:00:00Z",
    "updatedAt": "2026-01-02T00:00:00Z",
    "channel": {"id": "c", "name": "general"},
    "messages": [{"id": "1", "content": "hi", "timestamp": "2026-01-01T00:00:00Z", "author": {"id": "u", "username": "ada"}}],
}
PROJECT = {
    "name": "Moon",
    "createdAt": "2026-01-01",
    "updatedAt": "2026-01-02",
    "blocks": [{"id": "b", "type": "text", "content": "x"}],
}


def declared(**connector: Any) -> Manifest:
    columns = [{"name": name, "title": name, "type": kind} for name, kind in COLUMNS]
    config = {"type": "managed", "initialTitle": "Events", "upsertKey": ["id", "day"], "schema": {"columns": columns}}
    sync = {"_tag": "sync", "key": "fill", "config": {"target": {"type": "xldb", "key": "events"}}}
    talk = {"_tag": "ai_connector", "key": "talk", "config": {"aiConnectorId": "c1", "archetype": "chat", **connector}}
    return parsed({"xldbs": [{"key": "events", "config": config}], "capabilities": [sync, talk]})


def returned(manifest: Manifest, key: str, *changes: Any) -> Outcome:
    item = manifest.capability(key)
    assert item is not None
    return tables.converted(manifest, item, Success(batch({"changes": list(changes)}, item.tag)))


def changes(outcome: Outcome) -> tuple[Any, ...]:
    assert isinstance(outcome, Success), outcome
    found: tuple[Any, ...] = outcome.value.changes
    return found


def test_every_manifest_has_its_tables_and_connectors_scheduled() -> None:
    manifest = declared()
    assert [item.key for item in tables.databases(manifest)] == ["events", "talk"]
    configs = dict(reconcile.configs(manifest))
    assert (configs["fill"].database, configs["fill"].replaces) == ("events", True)
    assert (configs["talk"].database, configs["talk"].replaces) == ("talk", False)
    assert {"eventsSync", "chats"} <= dict(reconcile.configs(parsed(whole()))).keys()


def test_a_row_of_a_table_is_complete_typed_and_found_by_its_key() -> None:
    manifest = declared()
    change, *_ = changes(returned(manifest, "fill", {"type": "upsert", "values": VALUES}))
    assert isinstance(change, Upsert)
    table = tables.databases(manifest)[0]
    row = rows.row(table, change)
    assert not isinstance(row, Refused)
    assert row.warnings == ()
    plain = {name: cell.value for name, cell in row.cells.items()}
    assert plain == {
        **{name: VALUES[name] for name in ("id", "n", "ok", "state", "tags", "at")},
        "day": {"start": "2026-01-31"},
        "raw": '{"deep":[1,null]}',
        "list": "[1,2]",
        "_key": '["a","2026-01-31"]',
    }
    fewer, *_ = changes(returned(manifest, "fill", {"type": "upsert", "values": {"id": "a", "day": "2026-01-31"}}))
    emptied = rows.row(table, fewer)
    assert not isinstance(emptied, Refused)
    assert emptied.cells.keys() == row.cells.keys(), "what is left out is emptied"
    gone, *_ = changes(returned(manifest, "fill", {"type": "delete", "key": {"day": "2026-01-31", "id": "a"}}))
    assert gone == Delete(key=change.key)


def test_values_of_another_type_are_warned_of() -> None:
    manifest = declared()
    sent = VALUES | {"n": "seven", "extra": 1, "_key": "forged"}
    change, *_ = changes(returned(manifest, "fill", {"type": "upsert", "values": sent}))
    row = rows.row(tables.databases(manifest)[0], change)
    assert not isinstance(row, Refused)
    assert len(row.warnings) == 2
    assert row.cells["n"].value is None
    assert row.cells["_key"].value == change.key == '["a","2026-01-31"]'


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("fill", {"type": "upsert", "values": {"id": "a"}}),
        ("fill", {"type": "upsert", "values": {"id": 7, "day": "2026-01-31"}}),
        ("fill", {"type": "delete", "key": {"id": "a"}}),
        ("fill", {"type": "upsert", "key": "a", "properties": {}}),
        ("talk", {"type": "upsert", "key": "a", "record": {}}),
        ("talk", {"type": "upsert", "key": "a", "record": {**CHAT, "messages": [{"id": "1"}]}}),
        ("talk", {"type": "upsert", "key": "a", "record": {**CHAT, "updatedAt": "yesterday"}}),
        ("talk", {"type": "upsert", "key": "a", "record": PROJECT}),
    ],
)
def test_what_has_the_wrong_form_fails_the_run_and_says_where(key: str, change: Any) -> None:
    found = returned(declared(), key, change)
    assert isinstance(found, Failure)
    assert found.name == "ResultInvalidError"
    assert "`changes[0]`" in found.message


def test_records_of_connectors_are_rows_and_older_ones_do_not_count() -> None:
    chat, *_ = changes(returned(declared(), "talk", {"type": "upsert", "key": "t1", "record": CHAT}))
    assert (chat.key, chat.properties["Name"], chat.upstream_updated_at_ms) == ("t1", "general", 1_767_312_000_000)
    assert json.loads(chat.properties["Record"]) == CHAT
    project, *_ = changes(returned(declared(archetype="project"), "talk", {"type": "upsert", "key": "p", "record": PROJECT}))
    assert project.properties["Name"] == "Moon"
    row = rows.row(tables.databases(declared())[1], chat)
    assert not isinstance(row, Refused)
    assert row.warnings == ()


def test_syncs_of_databases_are_left_alone_and_no_key_is_taken_twice() -> None:
    same = parsed(
        {
            "databases": [database("talk", {"Name": {"type": "title"}, "ID": {"type": "text"}})],
            "capabilities": [
                {"type": "ai_connector", "key": "talk", "config": {"aiConnectorId": "c", "archetype": "chat"}},
            ],
        }
    )
    assert dict(reconcile.configs(same)) == {}
    assert [item.key for item in tables.databases(same)] == ["talk"]
