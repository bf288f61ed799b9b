"""JSON Schemas of tools: the subset that models' vendors share, and what of a schema can't work.

What the SDK itself refuses, or its validator can't compile, is an error. What goes beyond the subset works in the sandbox, but
may not with every model: a warning.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hutch.workers.reading import shown

FORMATS = frozenset("date-time date time duration email hostname ipv4 ipv6 uuid".split())
TYPES = frozenset("string number integer boolean null array object".split())
ALLOWED = frozenset(
    "type enum format description anyOf items minItems properties required additionalProperties $defs $ref title default".split()
)
MAX_NODES = 5000


def problems(schema: Any, where: str) -> Iterator[tuple[bool, str]]:
    """What is wrong with a tool's schema: whether it is an error, and the sentence. `where` is the name of the schema."""
    if not isinstance(schema, dict):
        yield True, f"{where} should be a JSON Schema, made with `j`; it is no object."
        return
    waiting: list[tuple[str, Any]] = [(where, schema)]
    nodes = 0
    while waiting:
        place, node = waiting.pop()
        nodes += 1
        if nodes > MAX_NODES:
            yield True, f"{where} has more than {MAX_NODES} parts."
            return
        if not isinstance(node, dict):
            if not isinstance(node, bool):
                yield True, f"{place} should be a schema, an object."
            continue
        yield from _wrong(schema, place, node)
        waiting += _below(place, node)


def _below(place: str, node: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name in ("properties", "$defs"):
        for key, child in _object(node.get(name)).items():
            yield f"{place}.{name}.{key[:64]}", child
    for name in ("anyOf", "allOf", "oneOf"):
        choices = node.get(name)
        for index, child in enumerate(choices if isinstance(choices, list) else ()):
            yield f"{place}.{name}[{index}]", child
    if "items" in node:
        yield f"{place}.items", node["items"]


def _wrong(root: dict[str, Any], place: str, node: dict[str, Any]) -> Iterator[tuple[bool, str]]:
    kinds = node.get("type")
    for kind in kinds if isinstance(kinds, list) else () if kinds is None else (kinds,):
        if not isinstance(kind, str) or kind not in TYPES:
            yield True, f"{place} has a type that JSON Schema does not know."
    for name in ("properties", "$defs"):
        if name in node and not isinstance(node[name], dict):
            yield True, f"{place}.{name} should be an object."
    if "anyOf" in node and (not isinstance(node["anyOf"], list) or not node["anyOf"]):
        yield True, f"{place}.anyOf should be a list of schemas."
    if "enum" in node and (not isinstance(node["enum"], list) or not node["enum"]):
        yield True, f"{place}.enum should be a list of values."
    yield from _required(place, node)
    if "$ref" in node:
        yield from _reference(root, place, node["$ref"])
    if isinstance(node.get("format"), str) and node["format"] not in FORMATS:
        yield False, f"{place} has the format {shown(node['format'])}; models know {', '.join(sorted(FORMATS))}."
    if isinstance(node.get("properties"), dict) and node.get("additionalProperties") is not False:
        yield False, f"{place} should have `additionalProperties: false`."
    if "minItems" in node and node["minItems"] not in (0, 1):
        yield False, f"{place}.minItems should be 0 or 1."
    for name in sorted(set(node) - ALLOWED):
        yield False, f"{place} has {shown(name)}, which not every model understands."


def _required(place: str, node: dict[str, Any]) -> Iterator[tuple[bool, str]]:
    properties, required = _object(node.get("properties")), node.get("required", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        yield True, f"{place}.required should be a list of names."
        return
    missing = sorted(set(properties) - set(required))
    if missing:
        listed = ", ".join(name[:64] for name in missing[:20])
        # The sentence of the SDK, so that a search for it leads to the same advice.
        message = (
            f'Invalid schema at {place}: properties [{listed}] must be listed in "required". Both model providers require '
            'all properties to be required. Use anyOf with { type: "null" } for optional fields.'
        )
        yield True, message


def _reference(root: dict[str, Any], place: str, reference: Any) -> Iterator[tuple[bool, str]]:
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        yield True, f"{place}.$ref should point into the same schema: `#/$defs/NAME`."
        return
    if reference == "#":
        yield False, f"{place}.$ref makes the schema contain itself, which not every model understands."
        return
    node: Any = root
    for part in reference[2:].split("/"):
        name = part.replace("~1", "/").replace("~0", "~")
        node = node.get(name) if isinstance(node, dict) else None
        if node is None:
            yield True, f"{place}.$ref points to {shown(reference)}, which the schema does not have."
            return


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
