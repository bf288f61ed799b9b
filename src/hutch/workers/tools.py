"""Tools as agents see them: over MCP, and as function schemas.

Keys are any text, names of tools are not: `[A-Za-z0-9_-]`, 64 at most. A key that is a name stays; any other gets a part of its
hash, so that its name depends on nothing but itself, and two keys never share one (`names` checks).

Every property of a tool's schema is required, those that may be left out are nullable. Models leave them out nevertheless:
`filled` puts the nulls there.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any

import msgspec

from hutch.workers import tool_schemas
from hutch.workers.manifest import Tool
from hutch.workers.outcome import Failure, Outcome

MAX_NAME = 64
HASH_LETTERS = 8
WRAPPED = "input"
"""The property that holds an input which is no object; MCP knows objects only."""
RESULT = "result"
"""The same for a result."""
MAX_DEPTH = 64
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_OTHER = re.compile(r"[^A-Za-z0-9_-]+")


def name(key: str, prefix: str = "") -> str:
    """A key as the name of a tool; `prefix` tells workers apart where one connection has several."""
    whole = f"{prefix}_{key}" if prefix else key
    if _NAME.fullmatch(whole):
        return whole
    digest = hashlib.sha256(f"{prefix}\x00{key}".encode()).hexdigest()[:HASH_LETTERS]
    readable = _OTHER.sub("_", whole).strip("_")[: MAX_NAME - HASH_LETTERS - 1]
    return f"{readable or 'tool'}_{digest}"


def names(keys: Iterable[str], prefix: str = "") -> dict[str, str]:
    """Keys by their names. Of two that would share one, as when a key ends with another's hash, the later gets a number."""
    found: dict[str, str] = {}
    for key in keys:
        made, number = name(key, prefix), 2
        while made in found:
            made = f"{name(key, prefix)[: MAX_NAME - 8]}_{number}"
            number += 1
        found[made] = key
    return found


class Function(msgspec.Struct, frozen=True, kw_only=True):
    """A tool for agents. `read_only` may be called without asking a person; `strict` when all models understand its schema."""

    name: str
    title: str
    description: str
    input_schema: dict[str, Any]
    output_schema: dict[str, Any] | None
    read_only: bool
    strict: bool

    def mcp(self) -> dict[str, Any]:
        """The tool of an MCP server's list."""
        found = {
            "name": self.name,
            "title": self.title or self.name,
            "description": self.description,
            "inputSchema": self.input_schema,
            "annotations": {"title": self.title or self.name, "readOnlyHint": self.read_only},
        }
        return found | ({"outputSchema": self.output_schema} if self.output_schema else {})

    def function(self, *, nested: bool = False) -> dict[str, Any]:
        """The tool of OpenAI's Responses API, or of Chat Completions (`nested`)."""
        fields = {"name": self.name, "description": self.description, "parameters": self.input_schema, "strict": self.strict}
        return {"type": "function", "function": fields} if nested else {"type": "function", **fields}


def function(name: str, tool: Tool) -> Function:
    """A tool under a name."""
    return Function(
        name=name,
        title=tool.title,
        description=tool.description,
        input_schema=_object(tool.schema, WRAPPED),
        output_schema=None if tool.output_schema is None else _object(tool.output_schema, RESULT),
        read_only=tool.read_only,
        strict=not any(True for _ in tool_schemas.problems(tool.schema, "schema")),
    )


def _is_object(schema: Any) -> bool:
    return isinstance(schema, dict) and schema.get("type") == "object"


def _object(schema: Any, wrapper: str) -> dict[str, Any]:
    if _is_object(schema):
        return dict(schema)
    inner = _moved(schema, f"#/properties/{wrapper}")
    return {"type": "object", "properties": {wrapper: inner}, "required": [wrapper], "additionalProperties": False}


def _moved(node: Any, place: str) -> Any:
    """A schema whose references to itself lead to where it is now."""
    if isinstance(node, list):
        return [_moved(item, place) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        key: place + item[1:] if key == "$ref" and isinstance(item, str) and item.startswith("#") else _moved(item, place)
        for key, item in node.items()
    }


def tool_input(tool: Tool, arguments: Any) -> Any:
    """What the tool gets, of the arguments that a model sent: unwrapped, with null for what was left out and may be."""
    value = arguments
    if not _is_object(tool.schema):
        value = arguments.get(WRAPPED) if isinstance(arguments, dict) else None
    return filled(tool.schema, value)


def filled(schema: Any, value: Any) -> Any:
    """A value with null for each property that it lacks and that may be null, at every depth. The SDK checks the rest."""
    return _filled(schema, schema, value, MAX_DEPTH)


def _filled(root: Any, schema: Any, value: Any, depth: int) -> Any:
    schema = _resolved(root, schema)
    if depth == 0 or not isinstance(schema, dict):
        return value
    choices = schema.get("anyOf")
    if isinstance(choices, list) and value is not None:
        # Only where it is clear which one is meant: a value or null.
        others = [choice for choice in choices if _resolved(root, choice) != {"type": "null"}]
        return _filled(root, others[0], value, depth - 1) if len(others) == 1 else value
    if isinstance(value, list) and "items" in schema:
        return [_filled(root, schema["items"], item, depth - 1) for item in value]
    properties = schema.get("properties")
    if not isinstance(value, dict) or not isinstance(properties, dict):
        return value
    found = {key: _filled(root, properties[key], item, depth - 1) if key in properties else item for key, item in value.items()}
    return found | {key: None for key, child in properties.items() if key not in found and _nullable(root, child)}


def _resolved(root: Any, schema: Any) -> Any:
    """What a reference leads to; itself where it leads nowhere, or in circles."""
    for _ in range(MAX_DEPTH):
        reference = schema.get("$ref") if isinstance(schema, dict) else None
        if not isinstance(reference, str) or not reference.startswith("#"):
            return schema
        found = root
        for part in reference.split("/")[1:]:
            plain = part.replace("~1", "/").replace("~0", "~")
            found = found.get(plain) if isinstance(found, dict) else None
        if found is None:
            return schema
        schema = found
    return schema


def _nullable(root: Any, schema: Any) -> bool:
    schema = _resolved(root, schema)
    if not isinstance(schema, dict):
        return False
    kinds, choices = schema.get("type"), schema.get("anyOf")
    if kinds == "null" or (isinstance(kinds, list) and "null" in kinds):
        return True
    return isinstance(choices, list) and any(isinstance(choice, dict) and choice.get("type") == "null" for choice in choices)


def result(tool: Tool, outcome: Outcome) -> dict[str, Any]:
    """The result of an MCP call: text, and the value itself where the tool declares what it returns. Traces stay in the log."""
    if isinstance(outcome, Failure):
        text = f"{outcome.name}: {outcome.message}" if outcome.message else outcome.name
        return {"content": [{"type": "text", "text": text}], "isError": True}
    value = outcome.value
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    found: dict[str, Any] = {"content": [{"type": "text", "text": text}], "isError": False}
    if tool.output_schema is not None:
        found["structuredContent"] = value if _is_object(tool.output_schema) else {RESULT: value}
    return found
