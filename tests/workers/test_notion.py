"""Rows as Notion's API takes them: whatever a row has, nothing is longer or of another shape than the API allows."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.workers import notion, values
from hutch.workers.manifest import Group, Option, Property
from hutch.workers.notion import Slot, fit, page, pieces, units

KINDS = "title text url email phone_number select status number checkbox multi_select people relation file date place".split()
PROPERTIES = {kind: Property(type=kind, related_database_key="other") for kind in KINDS}
SLOTS = fit(PROPERTIES, {}, {"other": "source"}).slots


def value_of(kind: str, sent: Any, **more: Any) -> Any:
    row = {kind: values.decode(kind, sent).cell.value}
    return page(PROPERTIES, {kind: SLOTS[kind]}, row, **more).properties[kind][SLOTS[kind].type]


@pytest.mark.parametrize(
    ("kind", "sent", "expected"),
    [
        ("title", [["a"], ["b", [["b"]]]], [{"type": "text", "text": {"content": "ab"}}]),
        ("text", None, []),
        ("url", "https://a.example", "https://a.example"),
        ("url", "", None),
        ("url", "https://a.example/" + "x" * 2000, None),
        ("email", "a@b.example", "a@b.example"),
        ("phone_number", "+1 " + "2" * 200, None),
        ("number", [["4.5"]], 4.5),
        ("number", [], None),
        ("checkbox", [["Yes"]], True),
        ("checkbox", [], False),
        ("select", "a, b", {"name": "a  b"}),
        ("select", None, None),
        ("status", "x" * 150, {"name": "x" * 100}),
        ("multi_select", [["a,b,a"]], [{"name": "a"}, {"name": "b"}]),
        ("date", "2026-01-31", {"start": "2026-01-31", "end": None, "time_zone": None}),
        (
            "date",
            {"start": "2026-01-31T09:30", "timeZone": "Europe/Berlin"},
            {"start": "2026-01-31T09:30:00", "end": None, "time_zone": "Europe/Berlin"},
        ),
        (
            "date",
            {"start": "2026-01-31", "end": "2026-02-01T10:00"},
            {"start": "2026-01-31T00:00:00", "end": "2026-02-01T10:00:00", "time_zone": None},
        ),
        ("date", {"start": "2026-01-31", "timeZone": "UTC"}, {"start": "2026-01-31", "end": None, "time_zone": None}),
        ("date", None, None),
        (
            "file",
            [{"name": "a", "url": "https://a.example/a"}, {"name": "b", "url": "javascript:alert(1)"}],
            [{"name": "a", "type": "external", "external": {"url": "https://a.example/a"}}],
        ),
        ("place", {"lat": 1, "lon": 2}, [{"type": "text", "text": {"content": "1, 2"}}]),
    ],
)
def test_values(kind: str, sent: Any, expected: Any) -> None:
    assert value_of(kind, sent) == expected


def test_a_relation_leads_to_the_rows_that_have_a_page() -> None:
    assert value_of("relation", ["a", "b", "c"], pages={("other", "b"): "page-b", ("none", "a"): "x"}) == [{"id": "page-b"}]


def test_icon_cover_and_body() -> None:
    made = page(
        {}, {}, {}, icon={"type": "emoji", "value": "🐇"}, cover={"type": "image", "url": "https://a.example", "position": 1}
    )
    assert made.content == {
        "properties": {},
        "icon": {"type": "emoji", "emoji": "🐇"},
        "cover": {"type": "external", "external": {"url": "https://a.example"}},
    }
    assert page({}, {}, {}, icon={"type": "notion", "icon": "x", "color": "gray"}).content == {"properties": {}}
    body = page({}, {}, {}, markdown="# A\n\n\nb\nc\n\n").children
    assert [block["paragraph"]["rich_text"][0]["text"]["content"] for block in body] == ["# A", "b\nc"]
    assert len(page({}, {}, {}, markdown="x\n\n" * 500).children) == 100


def test_the_body_is_no_reason_for_a_change() -> None:
    assert page({}, {}, {}, markdown="a").digest == page({}, {}, {}, markdown="b").digest


def test_a_database_that_is_not_there_yet() -> None:
    found = fit(PROPERTIES, {}, {})
    assert found.missing["status"] == {"select": {"options": []}}
    assert found.missing["number"] == {"number": {"format": "number"}}
    assert set(KINDS) - set(found.missing) == {"people", "relation"}
    assert len(found.warnings) == 2
    assert fit(PROPERTIES, {}, {"other": "s"}).missing["relation"] == {"relation": {"data_source_id": "s", "single_property": {}}}


def test_options_of_declarations() -> None:
    options = [
        Option(name="a", color="red"),
        Option(name="a", color="blue"),
        Option(name="b,c", color="no color"),
        Option(name=" "),
    ]
    made = notion.declaration(Property(type="select", options=options), {})
    assert made == {"select": {"options": [{"name": "a", "color": "red"}, {"name": "b c"}]}}
    grouped = Property(type="status", groups=[Group(name="To-do", options=[Option(name="x")])])
    assert notion.declaration(grouped, {}) == {"select": {"options": [{"name": "x"}]}}
    many = Property(type="multi_select", options=[Option(name=f"o{n}") for n in range(200)])
    made = notion.declaration(many, {})
    assert made is not None
    assert len(made["multi_select"]["options"]) == 100


def test_a_data_source_that_is_there() -> None:
    there = {"Name": "title", "text": "rich_text", "status": "status", "number": "formula"}
    wanted = {kind: PROPERTIES[kind] for kind in ("title", "text", "status", "number", "url")}
    found = fit(wanted, there, {})
    assert found.slots == {
        "title": Slot("Name", "title"),
        "text": Slot("text", "rich_text"),
        "status": Slot("status", "status"),
        "url": Slot("url", "url"),
    }
    assert found.missing == {"url": {"url": {}}}
    assert found.warnings == ('The property "number" is not mirrored: it is a "formula" in Notion.',)


def test_how_a_page_is_sought() -> None:
    declared = {"Name": Property(type="title"), "Key": Property(type="text"), "on": Property(type="date")}
    slots = fit(declared, {}, {}).slots

    def sought(primary: str, **row: Any) -> Any:
        return notion.sought(slots, declared, primary, page(declared, slots, row))

    assert sought("Key", Key="k", Name="n") == {"property": "Key", "rich_text": {"equals": "k"}}
    assert sought("on", on={"start": "2026-01-31"}, Name="n") == {"property": "Name", "title": {"equals": "n"}}
    assert sought("Name", Name="n" * 2001) == {"property": "Name", "title": {"starts_with": "n" * 2000}}
    assert sought("Name") is None
    wanted = page(declared, slots, {"Name": "Ada"})
    filter_ = {"property": "Name", "title": {"equals": "Ada"}}
    assert notion.same(wanted, {"properties": {"Name": {"title": [{"plain_text": "A"}, {"plain_text": "da"}]}}}, filter_)
    assert not notion.same(wanted, {"properties": {"Name": {"title": [{"plain_text": "ada"}]}}}, filter_)
    assert not notion.same(wanted, {}, filter_)


@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(1, 50))
def test_a_text_is_cut_between_letters(text: str, most: int) -> None:
    head = notion.cut(text, most)
    assert text.startswith(head)
    assert units(head) == len(head.encode("utf-16-le")) // 2 <= most
    assert head == text or units(text[: len(head) + 1]) > most or len(head) <= most


@given(st.sampled_from(["a", "🐇", "a🐇"]), st.integers(0, 5000))
def test_pieces_are_the_text(letter: str, count: int) -> None:
    made = [piece["text"]["content"] for piece in pieces(letter * count)]
    assert "".join(made) == letter * count
    assert all(0 < units(piece) <= 2000 for piece in made)


def test_a_very_long_text_is_cut_after_a_hundred_pieces() -> None:
    assert [units(piece["text"]["content"]) for piece in pieces("x" * values.MAX_TEXT)] == [2000] * 100


ANYTHING: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text() | st.integers(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["start", "end", "lat", "lon", "url", "name"]), inner),
)


@given(st.sampled_from([kind for kind in KINDS if kind != "people"]), ANYTHING)
def test_whatever_is_sent_becomes_a_value_of_its_type(kind: str, sent: Any) -> None:
    found = value_of(kind, sent)
    allowed = {
        "title": list,
        "rich_text": list,
        "files": list,
        "multi_select": list,
        "relation": list,
        "select": dict | None,
        "date": dict | None,
        "checkbox": bool,
        "number": int | float | None,
    }
    assert isinstance(found, allowed.get(SLOTS[kind].type, str | None))
