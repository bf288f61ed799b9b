"""What a program can't mean is said when it is loaded."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import enum
import json
import math
import typing
import uuid
from collections.abc import Callable
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.worker import CREDENTIAL, Worker, WorkerError, cron, every, page, schemas, upsert
from hutch.worker import properties as p
from hutch.worker.credentials import declared
from hutch.worker.errors import InvalidToolInputError, InvalidToolOutputError
from hutch.workers import values
from hutch.workers.schedule import wrong_expression


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass
class Point:
    x: int
    y: int | None = None


class Named(typing.TypedDict):
    name: str
    at: Point


class Looped(typing.TypedDict):
    inner: list[Looped]


@pytest.mark.parametrize(
    ("kind", "schema"),
    [
        (str, {"type": "string"}),
        (bool, {"type": "boolean"}),
        (float, {"type": "number"}),
        (list[int], {"type": "array", "items": {"type": "integer"}}),
        (Colour, {"type": "string", "enum": ["red", "blue"]}),
        (Literal[1, 2], {"type": "number", "enum": [1, 2]}),
        (dt.date, {"type": "string", "format": "date"}),
        (Annotated[str, "who"], {"type": "string", "description": "who"}),
        (int | None, {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
        (dict, {"type": "object"}),
        (Any, {}),
    ],
)
def test_types_are_schemas(kind: Any, schema: dict[str, Any]) -> None:
    assert schemas.of_type(kind) == schema


def test_objects_require_all_they_have() -> None:
    schema = schemas.of_type(Named)
    assert (schema["required"], schema["additionalProperties"]) == (["name", "at"], False)
    assert schema["properties"]["at"]["properties"]["y"] == {"anyOf": [{"type": "integer"}, {"type": "null"}]}


@pytest.mark.parametrize("kind", [Looped, bytes, set[int], Callable[[], None], Literal["a", 1], complex])
def test_what_a_schema_cannot_say_is_refused(kind: Any) -> None:
    with pytest.raises(WorkerError):
        schemas.of_type(kind)


KINDS: list[Any] = [str, int, bool, float, Colour, Point, Named, list[Point], dt.datetime, uuid.UUID, int | str | None, dict, Any]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(KINDS), JSON)
def test_whatever_is_sent_is_a_value_of_the_type_or_a_mismatch(kind: Any, sent: Any) -> None:
    try:
        value = schemas.value_of(kind, sent)
    except schemas.Mismatch as error:
        assert str(error)
    else:
        json.dumps(schemas.plain(value))


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        (int, True),
        (int, "1"),
        (int, 1.5),
        (str, None),
        (bool, 1),
        (Colour, "green"),
        (Point, {"y": 1}),
        (Point, {"x": 1, "y": None, "z": 1}),
        (list[int], {"0": 1}),
        (dt.date, "yesterday"),
        (Named, []),
        (Literal[1], True),
        (uuid.UUID, "x"),
    ],
)
def test_nothing_is_coerced(kind: Any, sent: Any) -> None:
    with pytest.raises(schemas.Mismatch):
        schemas.value_of(kind, sent)


@dataclasses.dataclass
class Sized:
    size: int = 3


class Partly(typing.TypedDict, total=False):
    name: typing.Required[str]
    at: Point


def test_what_may_be_left_out_is_null() -> None:
    schema = schemas.of_type(Partly)
    assert schema["required"] == ["name", "at"]
    assert schema["properties"]["at"]["anyOf"][1] == {"type": "null"}
    assert schemas.value_of(Partly, {"name": "a", "at": None}) == {"name": "a"}
    assert schemas.value_of(Sized, {"size": None}) == Sized(3)
    assert schemas.filled(list[Partly], [{"name": "a"}]) == [{"name": "a", "at": None}]
    assert schemas.filled(Partly | None, {"name": "a"}) == {"name": "a", "at": None}
    schemas.conform(schema, {"name": "a", "at": None})


def test_values_of_a_dict_are_looked_at() -> None:
    assert schemas.value_of(dict[str, int], {"a": 1}) == {"a": 1}
    with pytest.raises(schemas.Mismatch, match="/a must be integer"):
        schemas.value_of(dict[str, int], {"a": "1"})


TREE = {
    "type": "object",
    "properties": {
        "kind": {"type": "string", "enum": ["a", "b"]},
        "day": {"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}]},
        "below": {"type": "array", "items": {"$ref": "#"}, "minItems": 0},
    },
    "required": ["kind", "day", "below"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (7, "must be object"),
        ({"kind": "a", "day": None}, "required property 'below'"),
        ({"kind": "c", "day": None, "below": []}, "/kind must be equal to one of"),
        ({"kind": "a", "day": "today", "below": []}, "/day must match format"),
        ({"kind": "a", "day": None, "below": {}}, "/below must be array"),
        ({"kind": "a", "day": None, "below": [{"kind": "a", "day": None, "below": [1]}]}, "/below/0/below/0 must be object"),
        ({"kind": "a", "day": None, "below": [], "more": 1}, "additional property 'more'"),
    ],
)
def test_a_schema_of_one_s_own_is_held_to(value: Any, said: str) -> None:
    schemas.conform(TREE, {"kind": "a", "day": "2026-01-31", "below": [{"kind": "b", "day": None, "below": []}]})
    with pytest.raises(schemas.Mismatch, match=said):
        schemas.conform(TREE, value)


@given(JSON, JSON)
def test_whatever_a_schema_is_a_value_conforms_or_does_not(schema: Any, value: Any) -> None:
    with contextlib.suppress(schemas.Mismatch):
        schemas.conform(schemas.of_type(Named), value)
    with contextlib.suppress(schemas.Mismatch):
        schemas.conform({"type": "object", "properties": {"a": {"type": "string"}}}, schema)


def test_results_by_a_schema_of_one_s_own_are_held_to_it() -> None:
    worker = registered(lambda value: 7, key="t", description="d", schema={"type": "object"}, output_schema={"type": "string"})
    execute = worker.capability("t").execute
    assert execute is not None
    with pytest.raises(InvalidToolOutputError, match="must be string"):
        execute({})
    with pytest.raises(InvalidToolInputError, match="must be object"):
        execute(7)


@pytest.mark.parametrize(("requests", "per_s"), [(math.nan, 1), (0, 1), ("1", 1), (1, math.inf), (1, 0), (True, 1)])
def test_pacers_that_cannot_be_are_refused(requests: Any, per_s: Any) -> None:
    with pytest.raises(WorkerError, match="at least one request"):
        Worker().pacer("p", requests=requests, per_s=per_s)


def registered(function: Callable[..., Any], **options: Any) -> Worker:
    worker = Worker()
    worker.tool(**options)(function)
    return worker


def test_a_tool_that_does_not_say_enough_is_refused() -> None:
    def silent(a: str) -> str:
        return a

    def untyped(a) -> str:  # type: ignore[no-untyped-def]
        """d"""
        return str(a)

    def several(*a: str) -> str:
        """d"""
        return "".join(a)

    for function, said in ((silent, "what it does"), (untyped, "type of its parameter `a`"), (several, "named parameters")):
        with pytest.raises(WorkerError, match=said):
            registered(function)


def test_keys_are_unique_and_none_is_empty() -> None:
    worker = Worker()
    worker.pacer("a", requests=1, per_s=1)
    for key, said in (("a", "already registered"), ("", "not empty")):
        with pytest.raises(WorkerError, match=said):
            worker.pacer(key, requests=1, per_s=1)
    with pytest.raises(WorkerError, match="function of the event"):
        worker.automation()(lambda: None)
    with pytest.raises(WorkerError, match="provider"):
        worker.oauth("o", name="o")
    assert worker.manifest["capabilities"] == []


def test_databases_have_a_title_and_their_primary_key() -> None:
    worker = Worker()
    for properties in ({"Id": p.text()}, {"Name": p.title()}, {"Id": p.title(), "Name": p.title()}):
        with pytest.raises(WorkerError):
            worker.database("d", title="D", primary_key="Id", properties=properties)
    database = worker.database("d", title="D", primary_key="Id", properties={"Id": p.title()})
    with pytest.raises(WorkerError, match="no property 'Other'"):
        upsert("1", Other=1).sent(database)


@pytest.mark.parametrize("make", [every, lambda: every(days=8), lambda: cron("* * *"), lambda: cron("* * * * *", "Mars/Olympus")])
def test_schedules_that_cannot_be_are_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(WorkerError):
        make()


def test_a_schedule_is_what_the_platform_reads() -> None:
    assert every(hours=1).declared == {"type": "interval", "intervalMs": 3_600_000}
    found = cron("0 6 * * 1-5", "Europe/Berlin").declared
    assert found == {"type": "cron", "expression": "0 6 * * 1-5", "timeZone": "Europe/Berlin"}
    assert wrong_expression(found["expression"]) is None


GOOD = {"Authorization": f"Bearer {CREDENTIAL}"}


@pytest.mark.parametrize(
    ("key", "network"),
    [
        ("1X", {"a.example": GOOD}),
        ("NOTION_X", {"a.example": GOOD}),
        ("X", {}),
        ("X", {"localhost": GOOD}),
        ("X", {"https://a.example": GOOD}),
        ("X", {"*": GOOD}),
        ("X", {"a.example": GOOD, "A.example.": GOOD}),
        ("X", {"a.example": {}}),
        ("X", {"a.example": {"Authorization": "none"}}),
        ("X", {"a.example": {"Authorization": CREDENTIAL * 2}}),
        ("X", {"a.example": {"Authorization": f"{CREDENTIAL}\r\nX: y"}}),
        ("X", {"a.example": {"a b": CREDENTIAL}}),
        ("X", {"a.example": {"a": CREDENTIAL, "A": CREDENTIAL}}),
    ],
)
def test_credentials_that_cannot_be_are_refused(key: str, network: dict[str, dict[str, str]]) -> None:
    with pytest.raises(WorkerError):
        declared(key, network)


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
MOMENTS = st.datetimes(dt.datetime.fromisoformat("1970-01-01"), dt.datetime.fromisoformat("2100-01-01"))


@given(st.integers() | st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_travel_as_they_are(number: float) -> None:
    assert values.decode("number", p.encoded(p.number(), number)).cell.value == pytest.approx(number, rel=0, abs=0)


@given(TEXTS, st.booleans(), MOMENTS, st.lists(st.text(min_size=1, alphabet="abcü "), min_size=1, max_size=3))
def test_values_travel_to_the_platform_as_they_are(text: str, flag: bool, moment: dt.datetime, keys: list[str]) -> None:
    assert values.decode("text", p.encoded(p.text(), text)).cell.value == text
    assert values.decode("checkbox", p.encoded(p.checkbox(), flag)).cell.value is flag
    found = values.decode("date", p.encoded(p.date(), moment)).cell.value
    assert moment.strftime("%Y-%m-%dT%H:%M") in json.dumps(found) or moment.strftime("%H:%M") in json.dumps(found)
    assert p.encoded(p.relation("d"), keys) == [{"type": "primaryKey", "value": key} for key in keys]


@pytest.mark.parametrize(("item", "value"), [(p.number(), "1"), (p.number(), True), (p.checkbox(), "yes"), (p.date(), 7)])
def test_values_of_another_type_are_refused(item: p.Property, value: Any) -> None:
    with pytest.raises(TypeError):
        p.encoded(item, value, "P")


def test_an_offset_is_told_as_the_same_moment() -> None:
    moment = dt.datetime(2026, 1, 31, 9, 30, tzinfo=dt.timezone(dt.timedelta(hours=5)))
    [[_, [[_, told]]]] = p.encoded(p.date(), moment)
    assert told == {"type": "datetime", "start_date": "2026-01-31", "start_time": "04:30", "time_zone": "UTC"}


def test_a_page_is_made_of_changes() -> None:
    worker = Worker()
    database = worker.database("d", title="D", primary_key="Id", properties={"Id": p.title()})
    worker.sync(database, key="s")(lambda state: page([{"type": "upsert"}]))  # type: ignore[list-item]
    execute = worker.capability("s").execute
    assert execute is not None
    with pytest.raises(TypeError, match="`upsert`s and `delete`s"):
        execute({})
