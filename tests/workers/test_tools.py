"""Tools have names that MCP takes, schemas that mean the same, and inputs with the nulls that models leave out."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.workers.manifest import Hints, Tool
from hutch.workers.outcome import Failure, Success
from hutch.workers.tools import filled, function, name, names, result, tool_input
from tests.workers.declared import SCHEMA


def tool(schema: Any = SCHEMA, **fields: Any) -> Tool:
    return Tool(title="Greet", description="Greets", schema=schema, **fields)


@pytest.mark.parametrize("key", ["greet", "say-hello_2", "A" * 64])
def test_a_key_that_is_a_name_stays(key: str) -> None:
    assert name(key) == key


@given(st.lists(st.text(min_size=1, max_size=80), unique=True, max_size=8), st.sampled_from(["", "worker", "w" * 60, "ω"]))
def test_names_are_taken_by_mcp_and_lead_back(keys: list[str], prefix: str) -> None:
    found = names(keys, prefix)
    assert sorted(found.values()) == sorted(keys)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", made) for made in found)


def test_a_name_depends_on_its_key_alone() -> None:
    assert name("say hello") == name("say hello")
    assert name("say hello") != name("say_hello")
    assert name("say hello").startswith("say_hello_")
    assert name("ключ").startswith("tool_")


def test_two_keys_never_share_a_name() -> None:
    other = name("say hello")
    assert len(names([other, "say hello"])) == 2


def test_a_tool_of_mcp() -> None:
    assert function("greet", tool()).mcp() == {
        "name": "greet",
        "title": "Greet",
        "description": "Greets",
        "inputSchema": SCHEMA,
        "annotations": {"title": "Greet", "readOnlyHint": False},
    }
    assert function("greet", tool(hints=Hints(read_only_hint=True))).mcp()["annotations"]["readOnlyHint"] is True


def test_a_function_of_a_model() -> None:
    found = function("greet", tool())
    fields = {"name": "greet", "description": "Greets", "parameters": SCHEMA, "strict": True}
    assert found.function() == {"type": "function", **fields}
    assert found.function(nested=True) == {"type": "function", "function": fields}
    assert not function("greet", tool({"type": "string", "minLength": 1})).strict


def test_an_input_that_is_no_object_is_wrapped_with_its_references() -> None:
    schema = {"$defs": {"n": {"type": "number"}}, "type": "array", "items": {"$ref": "#/$defs/n"}}
    found = function("sum", tool(schema)).input_schema
    assert found["type"] == "object"
    assert found["properties"]["input"]["items"] == {"$ref": "#/properties/input/$defs/n"}
    assert tool_input(tool(schema), {"input": [1]}) == [1]
    assert tool_input(tool(schema), "nonsense") is None


def test_nulls_are_put_where_something_was_left_out() -> None:
    assert tool_input(tool(), {"name": "a"}) == {"name": "a", "note": None}
    assert tool_input(tool(), {"note": "n"}) == {"note": "n"}
    assert tool_input(tool(), None) is None
    nested = {
        "type": "object",
        "$defs": {"inner": SCHEMA, "maybe": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/inner"}]}},
        "properties": {"list": {"type": "array", "items": {"$ref": "#/$defs/inner"}}, "maybe": {"$ref": "#/$defs/maybe"}},
    }
    assert filled(nested, {"list": [{"name": "a"}, 5], "maybe": {"name": "b"}, "more": 1}) == {
        "list": [{"name": "a", "note": None}, 5],
        "maybe": {"name": "b", "note": None},
        "more": 1,
    }
    assert filled(nested, {"list": []}) == {"list": [], "maybe": None}


@pytest.mark.parametrize(
    "schema",
    [
        True,
        {"$ref": "#"},
        {"$ref": "#/$defs/gone"},
        {"anyOf": [{"$ref": "#"}]},
        {"type": "object", "properties": {"a": {"$ref": "#"}}},
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    ],
)
def test_schemas_in_circles_end(schema: Any) -> None:
    value = {"a": {"a": {"b": 1}}}
    assert filled(schema, value) == value


def test_results_are_text_and_values_and_errors_have_no_trace() -> None:
    assert result(tool(), Success("hi")) == {"content": [{"type": "text", "text": "hi"}], "isError": False}
    with_schema = tool(output_schema=SCHEMA)
    assert result(with_schema, Success({"name": "é"}))["structuredContent"] == {"name": "é"}
    assert result(with_schema, Success({"name": "é"}))["content"][0]["text"] == '{"name": "é"}'
    assert result(tool(output_schema={"type": "number"}), Success(5))["structuredContent"] == {"result": 5}
    assert function("n", tool(output_schema={"type": "number"})).mcp()["outputSchema"]["properties"] == {
        "result": {"type": "number"}
    }
    failed = result(tool(), Failure(name="ToolExecutionError", message="nope", trace="secret path"))
    assert failed == {"content": [{"type": "text", "text": "ToolExecutionError: nope"}], "isError": True}
