"""Every encoding of the SDK is read, written back as it was, and never stops a sync when it is broken."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.workers import values
from hutch.workers.changes import TableDelete, TableUpsert, Upsert
from hutch.workers.checks import PROPERTY_TYPES
from hutch.workers.manifest import Option, Property
from hutch.workers.rows import Refused, Row, row, table_key, table_row
from hutch.workers.values import Cell, decode, encode, encoded, number_text, text
from tests.workers.declared import database, parsed

DAY = {"type": "date", "start_date": "2026-01-31"}

ENCODINGS: list[tuple[str, Any, Any, str]] = [
    ("title", [["Ada"]], "Ada", "Ada"),
    ("text", [["a"]], "a", "a"),
    ("url", [["https://x.example"]], "https://x.example", "https://x.example"),
    ("email", [["a@x.example"]], "a@x.example", "a@x.example"),
    ("phone_number", [["+49 30"]], "+49 30", "+49 30"),
    ("select", [["US"]], "US", "US"),
    ("status", [["Done"]], "Done", "Done"),
    ("checkbox", [["Yes"]], True, "Yes"),
    ("checkbox", [["No"]], False, "No"),
    ("number", [["42"]], 42, "42"),
    ("number", [["-0.5"]], -0.5, "-0.5"),
    ("number", [["1e+21"]], 1e21, "1e+21"),
    ("number", [], None, ""),
    ("multi_select", [["a,b"]], ["a", "b"], "a, b"),
    ("multi_select", [], [], ""),
    ("file", [["n", [["a", "https://x.example/f"]]]], [{"name": "n", "url": "https://x.example/f"}], "https://x.example/f"),
    ("date", [["‣", [["d", DAY]]]], {"start": "2026-01-31"}, "2026-01-31"),
    (
        "date",
        [["‣", [["d", {"type": "datetime", "start_date": "2026-01-31", "start_time": "09:30", "time_zone": "Europe/Berlin"}]]]],
        {"start": "2026-01-31T09:30", "timeZone": "Europe/Berlin"},
        "2026-01-31 09:30 (Europe/Berlin)",
    ),
    (
        "date",
        [["‣", [["d", {"type": "daterange", "start_date": "2026-01-31", "end_date": "2026-02-01"}]]]],
        {"start": "2026-01-31", "end": "2026-02-01"},
        "2026-01-31 → 2026-02-01",
    ),
    (
        "date",
        [
            [
                "‣",
                [
                    [
                        "d",
                        {
                            "type": "datetimerange",
                            "start_date": "2026-01-31",
                            "start_time": "09:30",
                            "end_date": "2026-02-01",
                            "end_time": "10:00",
                        },
                    ]
                ],
            ]
        ],
        {"start": "2026-01-31T09:30", "end": "2026-02-01T10:00"},
        "2026-01-31 09:30 → 2026-02-01 10:00",
    ),
    ("people", [{"email": "a@x.example"}, {"email": "b@x.example"}], ["a@x.example", "b@x.example"], "a@x.example, b@x.example"),
    ("place", {"lat": 52.5, "lon": 13.4, "name": "Berlin"}, {"lat": 52.5, "lon": 13.4, "name": "Berlin"}, "Berlin"),
    ("place", {"lat": 0, "lon": -180}, {"lat": 0, "lon": -180}, "0, -180"),
    ("relation", [{"type": "primaryKey", "value": "p1"}], ["p1"], "p1"),
]


@pytest.mark.parametrize(("kind", "sent", "plain", "written"), ENCODINGS)
def test_an_encoding_is_read_and_written_back(kind: str, sent: Any, plain: Any, written: str) -> None:
    found = decode(kind, sent)
    assert found.problem is None
    assert found.cell == Cell(plain)
    assert encode(kind, plain) == sent
    assert text(kind, plain) == written


def test_every_type_of_property_has_an_encoding_in_these_tests() -> None:
    assert {kind for kind, *_ in ENCODINGS} == PROPERTY_TYPES


@pytest.mark.parametrize("kind", sorted(PROPERTY_TYPES))
@pytest.mark.parametrize("sent", [[], None])
def test_an_empty_array_is_an_empty_value(kind: str, sent: Any) -> None:
    found = decode(kind, sent)
    assert found.problem is None
    assert found.cell == Cell(values.empty(kind))
    assert text(kind, found.cell.value) == ("No" if kind == "checkbox" else "")


def test_a_text_with_marks_keeps_them_beside_its_plain_text() -> None:
    sent = [["Hello ", [["b"]]], ["world", [["a", "https://x.example"]]]]
    found = decode("text", sent)
    assert found.cell == Cell("Hello world", sent)
    assert encoded("text", found.cell) == sent


@pytest.mark.parametrize(
    ("kind", "sent", "problem"),
    [
        ("number", [["forty"]], 'should be a number, not "forty"'),
        ("number", [["Infinity"]], "should be a number"),
        ("number", [["1e999"]], "not too large"),
        ("number", True, "should be a number"),
        ("number", [["9" * 500]], "should be a number"),
        ("checkbox", [["maybe"]], "Yes or No"),
        ("date", [["‣", [["d", {"type": "date", "start_date": "2026-02-30"}]]]], "should be a date"),
        ("date", [["‣", [["d", {"type": "datetime", "start_date": "2026-02-01", "start_time": "25:00"}]]]], "should be a date"),
        ("date", [["‣", [["d", DAY | {"time_zone": "Mars/Base"}]]]], "time zone"),
        ("date", [["soon"]], "should be a date"),
        ("date", {"start": "2026-01-31", "timeZone": []}, "time zone"),
        ("place", {"latitude": 1, "longitude": 2}, "lat is a number"),
        ("place", {"lat": 91, "lon": 0}, "lat is a number"),
        ("place", [["x"]], "an object with lat and lon"),
        ("relation", [5], "primaryKey"),
        ("people", [5], "email"),
        ("file", 5, "a list of files"),
        ("text", 5, "a list of tokens"),
        ("text", [[5]], "tokens such as"),
        ("text", [[]], "tokens such as"),
        ("text", [["a" * (2**18 + 1)]], "characters"),
        ("text", [["a"]] * 10_001, "tokens"),
        ("select", [["a" * 257]], "option of more"),
        ("relation", ["x"] * 10_001, "more than"),
    ],
)
def test_what_cannot_be_read_is_empty_with_a_problem(kind: str, sent: Any, problem: str) -> None:
    found = decode(kind, sent)
    assert found.problem is not None
    assert problem in found.problem
    assert found.cell == Cell(values.empty(kind))


def test_nul_is_dropped_everywhere() -> None:
    found = decode("text", [["a\x00b", [["a", "x\x00"]]]])
    assert found.cell == Cell("ab", [["ab", [["a", "x"]]]])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((1, "1"), (1.0, "1"), (-0.0, "0"), (0.1, "0.1"), (1e-6, "0.000001"), (1.5e-6, "0.0000015"), (1e-7, "1e-7")),
        *((1.5e-7, "1.5e-7"), (1e20, "100000000000000000000"), (12345678901234567890.0, "12345678901234567000"), (1e21, "1e+21")),
        *((-1.5e22, "-1.5e+22"), (5e-324, "5e-324"), (123456.789, "123456.789")),
    ],
)
def test_numbers_are_written_as_javascript_writes_them(value: float, expected: str) -> None:
    assert number_text(value) == expected


LINE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=12)
NAME = LINE.map(str.strip).filter(bool)
DAYS = st.dates().map(lambda day: f"{day.year:04}-{day.month:02}-{day.day:02}")
MOMENTS = st.tuples(DAYS, st.times()).map(lambda pair: f"{pair[0]}T{pair[1].hour:02}:{pair[1].minute:02}")
PLAIN: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(["title", "text", "url", "email", "phone_number"], st.none() | LINE),
    **dict.fromkeys(["select", "status"], st.none() | NAME),
    "multi_select": st.lists(NAME.filter(lambda name: "," not in name), unique=True, max_size=4),
    "people": st.lists(LINE, unique=True, max_size=4),
    "relation": st.lists(LINE, unique=True, max_size=4),
    "number": st.none() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False),
    "checkbox": st.booleans(),
    "file": st.lists(st.fixed_dictionaries({"name": NAME.filter(lambda name: name != ","), "url": LINE}), max_size=3),
    "date": st.none()
    | st.fixed_dictionaries({"start": DAYS | MOMENTS}, optional={"end": DAYS | MOMENTS, "timeZone": st.just("Asia/Tokyo")}),
    "place": st.none()
    | st.fixed_dictionaries({"lat": st.floats(-90, 90), "lon": st.integers(-180, 180)}, optional={"name": LINE, "address": LINE}),
}


@given(st.data())
def test_what_is_encoded_is_decoded_to_the_same(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(PROPERTY_TYPES)))
    value = data.draw(PLAIN[kind])
    found = decode(kind, encode(kind, value))
    assert found == values.Decoded(Cell(value))
    assert isinstance(text(kind, value), str)
    # The plain form is read as well.
    assert decode(kind, value).cell.value == value


GARBAGE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.sampled_from(["a", "d", "‣", "Yes"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["start_date", "start_time", "type", "value", "email", "lat", "lon", "url", "name", "start", "timeZone"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=15,
)


@given(st.sampled_from(sorted(PROPERTY_TYPES)), GARBAGE)
def test_garbage_is_a_value_or_a_problem_and_what_is_kept_is_sound(kind: str, sent: Any) -> None:
    found = decode(kind, sent)
    assert isinstance(values.csv_text(kind, found.cell.value), str)
    again = decode(kind, encode(kind, found.cell.value))
    assert again.problem is None
    assert again.cell.value == found.cell.value


def test_a_spreadsheet_computes_nothing_of_an_export() -> None:
    assert values.csv_text("text", "=1+1") == "'=1+1"
    assert values.csv_text("number", -5) == "-5"


def test_options_that_do_not_exist_are_named_for_adding() -> None:
    item = Property(type="multi_select", options=[Option(name="a")])
    assert values.new_options(item, ["a", "b"]) == ["b"]
    assert values.new_options(Property(type="select", options=[Option(name="a")]), "c") == ["c"]
    assert values.new_options(Property(type="text"), "c") == []


ROWS = parsed(
    {
        "databases": [
            database(
                "d",
                {
                    "Name": {"type": "title"},
                    "ID": {"type": "text"},
                    "N": {"type": "number"},
                    "S": {"type": "select", "options": [{"name": "a"}]},
                },
            )
        ],
        "xldbs": [
            {
                "key": "x",
                "config": {
                    "upsertKey": ["id"],
                    "schema": {
                        "columns": [
                            {"name": "id", "type": "number"},
                            {"name": "day", "type": "date"},
                            {"name": "tags", "type": "array_text"},
                            {"name": "more", "type": "json"},
                        ]
                    },
                },
            }
        ],
    }
)


def made(properties: dict[str, Any], **fields: Any) -> Row:
    found = row(ROWS.databases[0], Upsert(key="1", properties={"ID": [["1"]]} | properties, **fields))
    assert isinstance(found, Row)
    return found


def test_a_row_has_the_properties_that_were_sent_and_no_others() -> None:
    found = made({"N": [["5"]]})
    assert found.cells == {"ID": Cell("1"), "N": Cell(5)}
    assert found.warnings == ()


def test_a_row_without_its_primary_key_is_refused_aloud() -> None:
    found = row(ROWS.databases[0], Upsert(key="1", properties={"N": [["5"]]}))
    assert isinstance(found, Refused)
    assert '"ID"' in found.warning


def test_bad_values_unknown_properties_and_other_keys_are_warnings() -> None:
    found = made({"N": [["x"]], "Nope": [["y"]], "S": [["b"]], "ID": [["2"]]})
    assert found.cells["N"] == Cell(None)
    assert found.new_options == {"S": ["b"]}
    assert ["Nope" in line or "number" in line or "found by its key" in line for line in found.warnings] == [True] * 3


@pytest.mark.parametrize(
    ("icon", "expected"),
    [
        ({"type": "emoji", "value": "🍕"}, {"type": "emoji", "value": "🍕"}),
        ({"type": "notion", "icon": "pizza"}, {"type": "notion", "icon": "pizza", "color": "gray"}),
        ({"type": "notion", "icon": "pizza", "color": []}, {"type": "notion", "icon": "pizza", "color": "gray"}),
        ({"type": ["emoji"], "value": "x"}, None),
        ({"type": "image", "url": "https://x.example/i.png"}, {"type": "image", "url": "https://x.example/i.png"}),
        ({"type": "image", "url": "javascript:alert(1)"}, None),
        ({"type": "image", "url": 5}, None),
        ({"type": "emoji", "value": "\x00"}, None),
        ({}, None),
    ],
)
def test_icons_are_checked(icon: dict[str, Any], expected: Any) -> None:
    found = made({}, icon=icon)
    assert found.icon == expected
    assert len(found.warnings) == (expected is None)


@pytest.mark.parametrize(("position", "good"), [(0, True), (1, True), (0.5, True), (1.1, False), (True, False), ("0", False)])
def test_covers_are_checked(position: Any, good: bool) -> None:
    found = made({}, cover={"type": "image", "url": "https://x.example/i.png", "position": position})
    assert (found.cover is not None) is good
    assert len(found.warnings) == (not good)


def test_a_row_of_a_table_is_complete_and_typed() -> None:
    table = ROWS.xldbs[0]
    change = TableUpsert({"id": 1, "day": "2026-01-31", "tags": ["a"], "more": {"x": ["\x00y"]}})
    assert table_row(table, change) == ({"id": 1, "day": "2026-01-31", "tags": ["a"], "more": {"x": ["y"]}}, [])
    found, warnings = table_row(table, TableUpsert({"id": 1, "day": "soon", "other": 1}))
    assert found == {"id": 1, "day": None, "tags": None, "more": None}
    assert len(warnings) == 2
    assert table_key(table, change) == table_key(table, TableDelete({"id": 1})) == "[1]"
    for bad in ({}, {"id": None}, {"id": "1"}, {"id": True}):
        with pytest.raises(ValueError, match='"id"'):
            table_row(table, TableUpsert(bad))
        with pytest.raises(ValueError, match='"id"'):
            table_key(table, TableDelete(bad))
