"""Migrations keep what can be kept, say what is lost, and lead to exactly what is declared; both sides of a relation agree."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.workers import relations, schema, values
from hutch.workers.checks import PROPERTY_TYPES
from hutch.workers.manifest import Database, Property
from hutch.workers.schema import (
    Add,
    Create,
    Drop,
    Migration,
    Reconfigure,
    Rekey,
    Release,
    Rename,
    Retype,
    Step,
    Undeclare,
    migrate,
)
from hutch.workers.values import Cell
from tests.workers.declared import database, parsed, select
from tests.workers.test_manifest import two_way
from tests.workers.test_values import PLAIN as VALUES

PLAIN: dict[str, Any] = {"Name": {"type": "title"}, "ID": {"type": "text"}}


def one(properties: dict[str, Any], **config: Any) -> list[Database]:
    return list(parsed({"databases": [database("d", properties, **config)]}).databases)


def only(old: list[Database], new: list[Database], **extra: Any) -> Migration:
    (found,) = migrate(old, new, **extra)
    return found


def test_a_new_database_is_created_with_its_properties() -> None:
    found = only([], one(PLAIN))
    assert found.steps == (Create("D"), Add("Name", Property(type="title")), Add("ID", Property(type="text")))
    assert found.losses == ()


def test_nothing_changes_when_nothing_is_declared_anew() -> None:
    assert migrate(one(PLAIN), one(PLAIN)) == []
    assert migrate(one(PLAIN), one(PLAIN, initialTitle="Other")) == []


def test_properties_come_and_go() -> None:
    found = only(one(PLAIN | {"Old": {"type": "text"}}), one(PLAIN | {"New": {"type": "number"}}))
    assert found.steps == (Add("New", Property(type="number")), Drop("Old"))
    assert found.losses == ('The property "Old" and its values are deleted.',)


def test_an_attached_database_loses_no_property() -> None:
    found = only(one(PLAIN | {"Old": {"type": "text"}}, type="attached"), one(PLAIN, type="attached"))
    assert found.steps == (Release("Old"),)
    assert found.losses == ()


def test_the_title_is_renamed_and_with_it_the_primary_key() -> None:
    found = only(
        one({"Name": {"type": "title"}}, primaryKeyProperty="Name"), one({"Title": {"type": "title"}}, primaryKeyProperty="Title")
    )
    assert found.steps == (Rename("Name", "Title"),)
    assert found.losses == ()


def test_a_title_that_takes_the_name_of_another_property_replaces_it() -> None:
    old = one({"Name": {"type": "title"}, "ID": {"type": "text"}, "Other": {"type": "number"}})
    found = only(old, one({"Other": {"type": "title"}, "ID": {"type": "text"}}))
    assert found.steps == (Drop("Other"), Rename("Name", "Other"))
    assert len(found.losses) == 1


def test_options_and_formats_lose_nothing() -> None:
    found = only(
        one(PLAIN | {"S": select("a"), "N": {"type": "number"}}),
        one(PLAIN | {"S": select("b"), "N": {"type": "number", "format": "euro"}}),
    )
    assert [type(step) for step in found.steps] == [Reconfigure, Reconfigure]
    assert found.losses == ()


def test_another_type_says_what_is_lost() -> None:
    found = only(one(PLAIN | {"X": {"type": "text"}}), one(PLAIN | {"X": {"type": "number"}}))
    assert found.steps == (Retype("X", "text", Property(type="number")),)
    assert "can't be read" in found.losses[0]
    assert (
        "its values are deleted" in only(one(PLAIN | {"X": {"type": "text"}}), one(PLAIN | {"X": {"type": "people"}})).losses[0]
    )


def test_another_primary_key_gives_rows_other_keys() -> None:
    found = only(one(PLAIN), one(PLAIN, primaryKeyProperty="Name"))
    assert found.steps == (Rekey("ID", "Name"),)
    assert len(found.losses) == 1
    assert schema.rekey("text", {"1": "a", "2": None, "3": "a", "4": "b"}) == {"1": "a", "2": None, "3": None, "4": "b"}


def test_a_database_that_is_not_declared_any_more_stays() -> None:
    assert only(one(PLAIN), []) == Migration(key="d", steps=(Undeclare(),), losses=())


def test_a_property_of_users_becomes_the_declared_one() -> None:
    extra = {"d": {"Mine": Property(type="text")}}
    found = only(one(PLAIN), one(PLAIN | {"Mine": {"type": "text"}}), extra=extra)
    assert found.steps == (Reconfigure("Mine", Property(type="text")),)
    assert isinstance(only(one(PLAIN), one(PLAIN | {"Mine": {"type": "number"}}), extra=extra).steps[0], Retype)
    assert migrate(one(PLAIN), one(PLAIN), extra) == []


def test_the_other_side_of_a_relation_is_a_property_too() -> None:
    old = parsed({"databases": [database("a", PLAIN), database("b", PLAIN)]}).databases
    new = parsed({"databases": [database("a", PLAIN), database("b", PLAIN | {"A": two_way("a", "Bs")})]}).databases
    found = {item.key: item.steps for item in migrate(old, new)}
    (back,) = found["a"]
    assert isinstance(back, Add)
    assert (back.name, back.property.related_database_key) == ("Bs", "b")
    assert {item.key: item.steps for item in migrate(new, old)} == {"a": (Drop("Bs"),), "b": (Drop("A"),)}


def test_sub_items_are_a_relation_of_a_database_to_itself() -> None:
    value = database("d", PLAIN)
    value["config"]["schema"]["subItems"] = {"parentPropertyName": "Parent", "childPropertyName": "Children"}
    found = only(one(PLAIN), list(parsed({"databases": [value]}).databases))
    assert [step.name for step in found.steps if isinstance(step, Add)] == ["Parent", "Children"]


def test_a_relation_to_another_database_begins_empty() -> None:
    def declared(to: str) -> list[Database]:
        relation = {"type": "relation", "relatedDatabaseKey": to, "config": {"twoWay": False}}
        return list(
            parsed({"databases": [database("a", PLAIN), database("b", PLAIN), database("c", PLAIN | {"R": relation})]}).databases
        )

    found = only(declared("a"), declared("b"))
    assert isinstance(found.steps[0], Retype)
    assert "another database" in found.losses[0]
    assert schema.convert("relation", "relation", Cell(["x"])) == Cell([])


@pytest.mark.parametrize(
    ("was", "kind", "value", "expected"),
    [
        ("text", "number", "42", 42),
        ("text", "number", "x", None),
        ("number", "text", 42, "42"),
        ("number", "select", 1.5, "1.5"),
        ("checkbox", "text", True, "Yes"),
        ("text", "checkbox", "Yes", True),
        ("select", "multi_select", "a", ["a"]),
        ("multi_select", "select", ["a", "b"], "a"),
        ("multi_select", "text", ["a", "b"], "a, b"),
        ("text", "multi_select", "a, b", ["a", "b"]),
        ("date", "text", {"start": "2026-01-31T09:30"}, "2026-01-31T09:30"),
        ("text", "date", "2026-01-31", {"start": "2026-01-31"}),
        ("people", "text", ["a@x"], "a@x"),
        ("text", "people", "a@x", []),
        ("text", "place", "x", None),
    ],
)
def test_values_become_what_their_text_can_be_read_as(was: str, kind: str, value: Any, expected: Any) -> None:
    assert schema.convert(was, kind, Cell(value)) == Cell(expected)


def test_a_text_with_marks_keeps_them_in_another_kind_of_text() -> None:
    cell = Cell("a", [["a", [["b"]]]])
    assert schema.convert("text", "title", cell) == cell


@given(st.data())
def test_every_value_becomes_a_value_of_the_new_type(data: st.DataObject) -> None:
    was, kind = (data.draw(st.sampled_from(sorted(PROPERTY_TYPES))) for _ in range(2))
    found = schema.convert(was, kind, Cell(data.draw(VALUES[was])))
    assert values.decode(kind, values.encode(kind, found.value)).cell.value == found.value
    if not schema.converts(was, kind):
        assert found == Cell(values.empty(kind))


NAMES = st.sampled_from(["A", "B", "C", "D"])
TYPES = st.sampled_from(
    [{"type": "text"}, {"type": "number"}, {"type": "number", "format": "euro"}, select("a"), select("a", "b")]
)
SCHEMAS = st.tuples(NAMES, st.dictionaries(NAMES, TYPES, max_size=4)).map(
    lambda pair: {pair[0]: {"type": "title"}} | {name: item for name, item in pair[1].items() if name != pair[0]}
)


def applied(properties: dict[str, Property], steps: tuple[Step, ...]) -> dict[str, Property]:
    found = dict(properties)
    for step in steps:
        if isinstance(step, Rename):
            found[step.to] = found.pop(step.name)
        if isinstance(step, Drop | Release):
            del found[step.name]
        if isinstance(step, Add):
            assert step.name not in found
        if isinstance(step, Retype):
            assert found[step.name].type == step.was
        if isinstance(step, Add | Retype | Reconfigure):
            found[step.name] = step.property
    return found


@given(SCHEMAS, SCHEMAS)
def test_steps_lead_from_one_schema_to_the_other(first: dict[str, Any], second: dict[str, Any]) -> None:
    old, new = (one(item, primaryKeyProperty=next(iter(item))) for item in (first, second))
    steps = migrate(old, new)[0].steps if migrate(old, new) else ()
    assert applied(dict(old[0].schema.properties), steps) == new[0].schema.properties
    lost = {step.name for step in steps if isinstance(step, Drop | Retype)}
    assert bool(lost) <= bool(migrate(old, new) and migrate(old, new)[0].losses)


KEYS = st.sampled_from("abcd")


@given(
    st.lists(st.tuples(st.sampled_from(["write", "back", "make", "delete"]), KEYS, st.frozensets(KEYS, max_size=3)), max_size=20)
)
def test_both_sides_of_a_relation_agree_whatever_is_written(events: list[tuple[str, str, frozenset[str]]]) -> None:
    """Rows of one database point to those of another; keys of the two are apart in what exists."""
    pairs: frozenset[tuple[str, str]] = frozenset()
    origins: set[str] = set()
    targets: set[str] = set()
    for event, key, keys in events:
        if event == "write":
            origins.add(key)
            difference = relations.written(key, {to for origin, to in pairs if origin == key}, keys)
        elif event == "back":
            targets.add(key)
            difference = relations.written_back(key, {origin for origin, to in pairs if to == key}, keys)
        elif event == "make":
            targets.add(key)
            continue
        else:
            origins.discard(key)
            difference = relations.deleted(key, pairs)
        pairs = (pairs | difference.added) - difference.removed
        if event == "write":
            assert set(relations.seen(key, pairs, targets)) | set(relations.pending(key, pairs, targets)) == keys
        if event == "delete":
            assert relations.seen(key, pairs, targets) == []
        for origin in origins:
            for target in targets:
                assert (target in relations.seen(origin, pairs, targets)) == (
                    origin in relations.seen_back(target, pairs, origins)
                )


def test_a_pending_relation_is_seen_when_the_row_appears() -> None:
    pairs = relations.written("order", [], ["customer"]).added
    assert relations.seen("order", pairs, []) == []
    assert relations.pending("order", pairs, []) == ["customer"]
    assert relations.seen("order", pairs, ["customer"]) == ["customer"]
