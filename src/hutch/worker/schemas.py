"""From the types of a function to the JSON Schema that an agent reads, and from what the agent sends back to values.

    str, int, float, bool, None         their types
    Literal, Enum                       enum
    datetime, date, time, UUID          string with a format
    list[T], dict, X | None, X | Y      array, object, anyOf
    TypedDict, dataclass                object
    Annotated[T, "text"]                with a description

What models' vendors both take is a part of JSON Schema: every property is required, and no other is allowed. So a parameter
with a default may be null, which means the default. Recursive types can't be said.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import inspect
import types
import typing
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Literal, Union, get_args, get_origin

from hutch.worker.errors import WorkerError

MAX_DEPTH = 16
_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
_FORMATS: dict[Any, tuple[str, Callable[[str], Any]]] = {
    dt.datetime: ("date-time", dt.datetime.fromisoformat),
    dt.date: ("date", dt.date.fromisoformat),
    dt.time: ("time", dt.time.fromisoformat),
    uuid.UUID: ("uuid", uuid.UUID),
}
_MARKS = (typing.NotRequired, typing.Required)
_JSON: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "array": (list,),
    "object": (dict,),
}
Schema = dict[str, Any]


class Mismatch(ValueError):
    """A value is not what a type says; the text names where."""


def of_type(kind: Any, place: str = "", depth: int = 0) -> Schema:
    """The schema of a type. Raises `WorkerError`."""
    if depth > MAX_DEPTH:
        raise WorkerError(f"{place}: the type refers to itself, which a tool's schema can't say; use a plain dict.")
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is typing.Annotated:
        inner = of_type(arguments[0], place, depth)
        described = [one for one in arguments[1:] if isinstance(one, str)]
        return inner | {"description": described[0]} if described else inner
    if kind is Any:
        return {}
    if kind in _PLAIN:
        return {"type": _PLAIN[kind]}
    if kind in _FORMATS:
        return {"type": "string", "format": _FORMATS[kind][0]}
    if origin is Literal:
        return _enum(list(arguments), place)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _enum([one.value for one in kind], place)
    if origin in (Union, types.UnionType):
        return {"anyOf": [of_type(one, place, depth + 1) for one in arguments]}
    if kind is list or origin is list:
        return {"type": "array"} | ({"items": of_type(arguments[0], f"{place}[]", depth + 1)} if arguments else {})
    if kind is dict or origin is dict:
        return {"type": "object"}
    fields = _fields(kind)
    if fields is not None:
        optional = _optional(kind)
        found = {name: of_type(field, f"{place}.{name}", depth + 1) for name, field in fields.items()}
        return _object({name: or_null(schema) if name in optional else schema for name, schema in found.items()})
    raise WorkerError(
        f"{place or 'The type'}: {getattr(kind, '__name__', kind)} can't be said in a tool's schema. Use str, int, float, bool, "
        "a list, a dict, a Literal, an Enum, a TypedDict, a dataclass, or give `schema`."
    )


def of_parameters(function: Callable[..., Any], name: str) -> tuple[Schema, dict[str, Any]]:
    """The schema of a function's parameters, and the type of each. Raises `WorkerError`."""
    hints = hints_of(function, name)
    kinds: dict[str, Any] = {}
    schemas: dict[str, Schema] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise WorkerError(f"The tool {name!r} should have named parameters, not `{parameter}`.")
        if parameter.name not in hints:
            raise WorkerError(f"The tool {name!r} should say the type of its parameter `{parameter.name}`.")
        kind = hints[parameter.name]
        schema = of_type(kind, f"{name}({parameter.name})")
        left_out = parameter.default is not parameter.empty
        kinds[parameter.name], schemas[parameter.name] = kind, or_null(schema) if left_out else schema
    return _object(schemas), kinds


def of_result(function: Callable[..., Any], name: str) -> Schema | None:
    """The schema of what a function returns; None where it does not say. Raises `WorkerError`."""
    kind = hints_of(function, name).get("return", inspect.Parameter.empty)
    if kind in (inspect.Parameter.empty, Any, type(None)):
        return None
    return of_type(kind, f"the result of {name}")


def hints_of(function: Callable[..., Any], name: str) -> dict[str, Any]:
    """The types that a function names. Raises `WorkerError`."""
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError) as error:
        raise WorkerError(f"The types of {name!r} can't be read: {error}.") from error


def _object(properties: Mapping[str, Schema]) -> Schema:
    named = dict(properties)
    return {"type": "object", "properties": named, "required": list(named), "additionalProperties": False}


def _enum(values: list[Any], place: str) -> Schema:
    if all(isinstance(one, str) for one in values):
        return {"type": "string", "enum": values}
    if all(isinstance(one, int | float) and not isinstance(one, bool) for one in values):
        return {"type": "number", "enum": values}
    raise WorkerError(f"{place}: the values to choose from should all be texts, or all numbers.")


def or_null(schema: Schema) -> Schema:
    """What may be left out: it is null then."""
    if _nullable(schema):
        return schema
    inner = {name: value for name, value in schema.items() if name != "description"}
    described = {"description": schema["description"]} if "description" in schema else {}
    return {"anyOf": [inner, {"type": "null"}]} | described


def _nullable(schema: Schema) -> bool:
    return schema.get("type") == "null" or not schema or any(_nullable(one) for one in schema.get("anyOf", ()))


def _fields(kind: Any) -> dict[str, Any] | None:
    """The fields of a dataclass or a TypedDict."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind, include_extras=True)
        return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}
    if typing.is_typeddict(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        return {name: get_args(hint)[0] if get_origin(hint) in _MARKS else hint for name, hint in hints.items()}
    return None


def _optional(kind: Any) -> frozenset[str]:
    """The fields that may be left out."""
    if typing.is_typeddict(kind):
        return frozenset(kind.__optional_keys__)
    missing = dataclasses.MISSING
    fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
    return frozenset(field.name for field in fields if field.default is not missing or field.default_factory is not missing)


# -- values ------------------------------------------------------------------------------------------


def value_of(kind: Any, sent: Any, place: str = "") -> Any:
    """What was sent, as a value of the type. Nothing is coerced. Raises `Mismatch`."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is typing.Annotated:
        return value_of(arguments[0], sent, place)
    if kind is Any:
        return sent
    if kind in _PLAIN:
        return _plain(kind, sent, place)
    if kind in _FORMATS:
        return _formatted(kind, sent, place)
    if origin is Literal:
        return _chosen(sent, {(type(one), one): one for one in arguments}, place)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _chosen(sent, {(type(one.value), one.value): one for one in kind}, place)
    if origin in (Union, types.UnionType):
        return _any_of(arguments, sent, place)
    if kind is list or origin is list:
        if not isinstance(sent, list):
            raise _mismatch(place, "an array")
        return [value_of(arguments[0], one, f"{place}/{index}") for index, one in enumerate(sent)] if arguments else sent
    if kind is dict or origin is dict:
        if not isinstance(sent, dict):
            raise _mismatch(place, "an object")
        return {name: value_of(arguments[1], one, f"{place}/{name}") for name, one in sent.items()} if arguments else sent
    values = named_values(_fields(kind) or {}, sent, place, _optional(kind))
    return values if typing.is_typeddict(kind) else kind(**values)


def named_values(kinds: Mapping[str, Any], sent: Any, place: str = "", optional: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The values of an object, each of its type. Of `optional` ones null is left out. Raises `Mismatch`."""
    if not isinstance(sent, dict):
        raise _mismatch(place, "an object")
    for name in sent:
        if name not in kinds:
            raise Mismatch(f"{place or 'the input'} must NOT have the additional property {name!r}")
    found = {}
    for name, kind in kinds.items():
        if name not in sent:
            if name in optional:
                continue
            raise Mismatch(f"{place or 'the input'} must have required property {name!r}")
        if sent[name] is None and name in optional:
            continue
        found[name] = value_of(kind, sent[name], f"{place}/{name}")
    return found


def _plain(kind: type, sent: Any, place: str) -> Any:
    if kind is float and isinstance(sent, int) and not isinstance(sent, bool):
        return float(sent)
    if kind is int and isinstance(sent, float) and sent.is_integer():
        return int(sent)
    if isinstance(sent, kind) and (kind is bool or not isinstance(sent, bool)):
        return sent
    raise _mismatch(place, _PLAIN[kind])


def _formatted(kind: Any, sent: Any, place: str) -> Any:
    name, read = _FORMATS[kind]
    try:
        if isinstance(sent, str):
            return read(sent)
    except ValueError:
        pass
    raise Mismatch(f'{place or "the input"} must match format "{name}"')


def _chosen(sent: Any, among: dict[tuple[type, Any], Any], place: str) -> Any:
    key = (type(sent), sent) if isinstance(sent, str | int | float | bool) else None
    if key not in among:
        raise Mismatch(f"{place or 'the input'} must be equal to one of the allowed values")
    return among[key]


def _any_of(arguments: tuple[Any, ...], sent: Any, place: str) -> Any:
    problems = []
    for one in arguments:
        try:
            return value_of(one, sent, place)
        except Mismatch as error:
            problems.append(str(error))
    raise Mismatch("; or ".join(problems))


def filled(kind: Any, value: Any) -> Any:
    """A result with null for what it leaves out, as its schema says that it is there."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is typing.Annotated:
        return filled(arguments[0], value)
    if origin in (Union, types.UnionType):
        return next((filled(one, value) for one in arguments if _fits(one, value)), value)
    if origin is list and isinstance(value, list):
        return [filled(arguments[0], one) for one in value]
    fields = _fields(kind)
    if fields is not None and isinstance(value, dict):
        return {name: filled(field, value[name]) if value.get(name) is not None else None for name, field in fields.items()}
    return value


def _fits(kind: Any, value: Any) -> bool:
    try:
        value_of(kind, value)
    except Mismatch:
        return False
    return True


def conform(schema: Any, value: Any, place: str = "", root: Any = None) -> None:
    """Look at a value by a JSON Schema, as far as models' vendors take those: types, `enum`, `anyOf`, objects, arrays, references
    within, and the formats of dates, times and UUIDs. Raises `Mismatch`."""
    root = schema if root is None else root
    if not isinstance(schema, Mapping):
        return
    if "$ref" in schema:
        found = _referred(root, str(schema["$ref"]))
        if found is schema:
            raise Mismatch(f"the schema's {schema['$ref']} refers to itself")
        conform(found, value, place, root)
        return
    if "anyOf" in schema:
        _conform_to_any(schema["anyOf"], value, place, root)
    wanted = schema.get("type")
    kinds = [wanted] if isinstance(wanted, str) else wanted or []
    if kinds and not any(_is_json(kind, value) for kind in kinds):
        raise _mismatch(place, " or ".join(map(str, kinds)))
    if "enum" in schema and not any(type(one) is type(value) and one == value for one in schema["enum"]):
        raise Mismatch(f"{place or 'the input'} must be equal to one of the allowed values")
    kind = next((kind for kind, (name, _) in _FORMATS.items() if name == schema.get("format")), None)
    if kind is not None and isinstance(value, str):
        _formatted(kind, value, place)
    if isinstance(value, dict):
        _conform_object(schema, value, place, root)
    if isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            raise Mismatch(f"{place or 'the input'} must NOT have fewer than {schema['minItems']} items")
        for index, one in enumerate(value):
            conform(schema.get("items"), one, f"{place}/{index}", root)


def _conform_to_any(schemas: Any, value: Any, place: str, root: Any) -> None:
    problems = []
    for one in schemas:
        try:
            conform(one, value, place, root)
        except Mismatch as error:
            problems.append(str(error))
        else:
            return
    raise Mismatch("; or ".join(problems))


def _conform_object(schema: Mapping[str, Any], value: dict[str, Any], place: str, root: Any) -> None:
    properties = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in value:
            raise Mismatch(f"{place or 'the input'} must have required property {name!r}")
    for name, one in value.items():
        if name in properties:
            conform(properties[name], one, f"{place}/{name}", root)
        elif schema.get("additionalProperties") is False:
            raise Mismatch(f"{place or 'the input'} must NOT have the additional property {name!r}")


def _is_json(kind: str, value: Any) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _JSON.get(kind, ()))


def _referred(root: Any, reference: str) -> Any:
    found = root
    for part in reference.removeprefix("#").strip("/").split("/") if reference.strip("#/") else ():
        found = found.get(part) if isinstance(found, Mapping) else None
    if found is None:
        raise Mismatch(f"the schema refers to {reference}, which it does not have")
    return found


def _mismatch(place: str, wanted: str) -> Mismatch:
    return Mismatch(f"{place or 'the input'} must be {wanted}")


def plain(value: Any) -> Any:
    """A result as JSON has it. Raises `TypeError`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, dict):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(one) for one in value]
    if isinstance(value, dt.datetime | dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, uuid.UUID):
        return str(value)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"{type(value).__name__} can't be written as JSON")
