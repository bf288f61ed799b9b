"""The OpenAPI document: made of the routes, of what is said beside them (`routing.documented`), of the bodies that they take
(`control.requests`) and of the answers that they give (`control.answers`)."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from hutch import __version__
from hutch.api.first_version import former_path
from hutch.api.routing import FORM, JSON, NDJSON, Answer, Documented, PlainRoute
from hutch.control import answers
from hutch.control.requests import PolicyBody

Json = dict[str, Any]
FIRST = "v1_"
"""Before the ids of operations of the vendor's first API."""

DESCRIPTION = """Sandboxes for code that nobody trusts. Every path is served below `/api` and at the root; versions 2, 3 and 4 of
the sandbox API differ only in defaults, version 1 is the vendor's first, in which a sandbox is a session. Objects may get more
fields, and more kinds of errors, within a version."""

_SHARED: dict[str, Json] = {
    "limit": {"type": "integer", "minimum": 1, "maximum": 999_999_999},
    "after": {"type": "integer", "minimum": 0, "maximum": 999_999_999_999_999_999},
    "sortOrder": {"enum": ["asc", "desc"]},
    "wait": {"type": "boolean"},
    "resume": {"type": "boolean"},
    "shared": {"type": "boolean"},
    "deleteOrphanSnapshots": {"type": "boolean"},
}
"""Parameters that mean the same wherever they are."""
_TEAM: dict[str, str] = {"teamId": "Id or slug of the team; default: the token's"}
_REFERENCE = {"pattern": "^[a-zA-Z0-9_-]{1,64}$"}
_SANDBOX = {"pattern": "^[a-zA-Z0-9_-]{1,128}$"}
_NAMES = {
    "/v2/sandboxes/{name}": ("Name of a sandbox", _SANDBOX),
    "/hutch/v1/sandboxes/{name}": ("Name of a sandbox", _SANDBOX),
    "/hutch/v1/credentials/{name}": ("Name of a credential", {"pattern": "^[a-zA-Z0-9_-]{1,64}$"}),
    "/hutch/v1/images/{name}": ("Name of an image", {}),
}
"""What `name` is, by the beginning of the path."""
_PATH = {
    "session_id": "Id of a session",
    "command_id": "Id of a command",
    "snapshot_id": "Id of a snapshot",
    "token_id": "Id of a token",
    "member_id": ("Id of a member", _REFERENCE),
    "drive": ("Name of a drive", {"pattern": "^[a-zA-Z0-9_-]{1,64}$"}),
    "team": ("Id or slug of a team", _REFERENCE),
    "project": ("Id or slug of a project", _REFERENCE),
    "upload": "The secret of an upload",
    "worker_id": "Id of a worker",
    "run_id": "Id of a run",
    "job_id": "Id of a delivery or trigger",
    "button_id": "Id of a button",
    "button": "The secret of a button",
    "project_id": "Id of a project",
    "address": "The secret of a webhook",
    "webhook": "Key of a webhook",
    "key": "Key of a capability",
    "sync": "Key of a sync",
    "database": "Key of a database",
    "view": "Name of a view of a database",
    "tool": "Name or key of a tool",
    "registry": ("HOST[:PORT] of a registry", {"pattern": r"^[a-z0-9.:\[\]-]{1,55}$"}),
}
MULTIPART = "multipart/form-data"
_FILE: Json = {
    "schema": {"type": "object", "required": ["file"], "properties": {"file": {"type": "string", "format": "binary"}}},
}
"""A form with one file."""
_WORDS = {
    400: "Something in the request can't be meant.",
    401: "No token, or one that is not valid.",
    402: "A quota or budget is exhausted.",
    403: "The token is not for this.",
    404: "There is no such thing for this caller.",
    405: "It does not take this method.",
    408: "The rest of the body does not come.",
    409: "The name is taken, or the thing is busy.",
    410: "The session, or the snapshot, is no more. Clients resume on this.",
    412: "What was to be changed is not what the caller has seen.",
    413: "The body is larger than what is taken.",
    415: "The body is compressed for its way.",
    421: "The name that was asked is that of a sandbox's port.",
    422: "The session is past the point of accepting commands.",
    429: "Too many requests, or too many sandboxes at once.",
    500: "A fault of ours.",
    503: "A part of the server is away or full.",
    504: "The process does not read.",
}


def document(routes: Iterable[object]) -> Json:
    """The document about these routes."""
    paths: Json = {}
    schemas = _Schemas()
    for route in routes:
        if isinstance(route, PlainRoute):
            for method in sorted(route.methods or ()):
                paths.setdefault(route.path_format, {})[method.lower()] = _operation(route, route.documentation, schemas)
                former = former_path(method, route.path_format)
                if former is not None:
                    told = _of_the_first_version(route.documentation)
                    paths.setdefault(former, {})[method.lower()] = _operation(route, told, schemas, first_version=True)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Hutch", "version": __version__, "description": DESCRIPTION},
        "servers": [{"url": "/api"}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
            "headers": {
                "retry-after": {"description": "Seconds after which to try again.", "schema": {"type": "integer", "minimum": 0}}
            },
            "responses": {f"Error{status}": _error(status, schemas) for status in _WORDS},
            "schemas": schemas.found,
        },
    }


def _of_the_first_version(told: Documented) -> Documented:
    """The same endpoint in the vendor's first API (`api.first_version`)."""
    first = copy.copy(told)
    first.successes = tuple(replace(one, kind=answers.FIRST_VERSION.get(one.kind, one.kind)) for one in told.successes)
    return first


def _operation(route: PlainRoute, told: Documented, schemas: _Schemas, *, first_version: bool = False) -> Json:
    words = inspect.cleandoc(route.endpoint.__doc__ or "")
    operation: Json = {
        "operationId": f"{FIRST}{route.name}" if first_version else route.name,
        "tags": ["first version"] if first_version else list(route.tags),
        "summary": route.name.replace("_", " ").capitalize(),
        "description": words,
        "parameters": list(_parameters(route, told)),
        "responses": _responses(route, told, schemas),
        "security": [] if told.public else [{"token": []}],
    }
    if told.needs is not None:
        operation["x-permission"] = str(told.needs)
    if told.body is not None:
        content: Json = {"schema": schemas.body(told.body)}
        if told.example is not None:
            content["example"] = told.example
        # What is left out is an empty object.
        required = TypeAdapter(told.body).json_schema().get("required", ())
        operation["requestBody"] = {"required": bool(required) or told.body is PolicyBody, "content": {JSON: content}}
    elif told.content != JSON:
        if told.content == MULTIPART:
            body: Json = _FILE
        elif told.content == FORM:
            body = {"schema": {"type": "object", "additionalProperties": {"type": "string"}}}
        else:
            body = {"schema": {"type": "string", "format": "binary"}}
        operation["requestBody"] = {"required": True, "content": {told.content: body}}
    return operation


def _parameters(route: PlainRoute, told: Documented) -> Iterator[Json]:
    for name in route.param_convertors:
        begun = next((given for start, given in _NAMES.items() if route.path_format.startswith(start)), None)
        given = begun if name == "name" and begun is not None else _PATH[name]
        text, more = given if isinstance(given, tuple) else (given, {})
        schema = {"type": "string", "minLength": 1, **more}
        yield {"name": name, "in": "path", "required": True, "description": text, "schema": schema}
    team = {} if told.public or "teamId" in told.query else _TEAM
    for place, named in (("query", {**told.query, **team}), ("header", told.headers)):
        for name, given in named.items():
            text, schema = given if isinstance(given, tuple) else (given, _SHARED.get(name, {"type": "string"}))
            parameter = {"name": name, "in": place, "required": False, "description": text, "schema": schema}
            # An empty one counts as one that is not there.
            yield parameter | ({"allowEmptyValue": True} if place == "query" else {})


def _responses(route: PlainRoute, told: Documented, schemas: _Schemas) -> Json:
    responses: Json = {}
    for answer in told.successes:
        response = responses.setdefault(str(answer.status), {"description": HTTPStatus(answer.status).phrase})
        if answer.status != HTTPStatus.NO_CONTENT and not (answer.status == HTTPStatus.ACCEPTED and answer.kind is None):
            response.setdefault("content", {})[answer.content] = {"schema": _body_of(answer, schemas)}
    for status in sorted(statuses(route) - {answer.status for answer in told.successes}):
        responses[str(status)] = {"$ref": f"#/components/responses/Error{status}"}
    return responses


def statuses(route: PlainRoute) -> frozenset[int]:
    """The statuses of errors that a route may answer."""
    told = route.documentation
    return told.errors | {404} if route.param_convertors else told.errors


def _body_of(answer: Answer, schemas: _Schemas) -> Json:
    if answer.kind is None:
        return {"type": "string"} if answer.content.startswith("text/") else {"type": "string", "format": "binary"}
    if answer.content == NDJSON:
        return {"type": "string", "description": "One object per line.", "x-records": schemas.answer(answer.kind)}
    return schemas.answer(answer.kind)


def _error(status: int, schemas: _Schemas) -> Json:
    response: Json = {"description": _WORDS[status], "content": {JSON: {"schema": schemas.answer(answers.Error)}}}
    if status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS):
        response["headers"] = {"retry-after": {"$ref": "#/components/headers/retry-after"}}
    return response


class _Schemas:
    """JSON schemas as they are asked for. Bodies and answers may have parts of the same name, so all parts of bodies are named
    `…Body`."""

    def __init__(self) -> None:
        self.found: Json = {}

    def body(self, model: type[BaseModel]) -> Json:
        schema = TypeAdapter(model).json_schema(ref_template="#/{model}")
        for part in (schema, *schema.get("$defs", {}).values()):
            _take_nulls(part)
        return self._kept(schema, model.__name__, "Body")

    def answer(self, kind: Any) -> Json:
        if kind is Any:
            return {"type": "object"}
        schema = TypeAdapter(kind).json_schema(ref_template="#/{model}", schema_generator=_Open)
        return self._kept(schema, getattr(kind, "__name__", None), "")

    def _keep(self, name: str, content: Json) -> None:
        """Raises `TypeError` for two that have one name: one would be documented as the other."""
        if self.found.setdefault(name, content) != content:
            raise TypeError(f"two bodies or answers have the name {name}")

    def _kept(self, schema: Json, name: str | None, suffix: str) -> Json:
        for part, content in schema.pop("$defs", {}).items():
            self._keep(_named(part, suffix), _renamed(content, suffix))
        if name is None or "$ref" in schema:
            whole: Json = _renamed(schema, suffix)
            return whole
        self._keep(_named(name, suffix), _renamed(schema, suffix))
        return {"$ref": f"#/components/schemas/{_named(name, suffix)}"}


class _Open(GenerateJsonSchema):
    """Answers may get more fields, whatever the tests of this version say about it."""

    def typed_dict_schema(self, schema: Any) -> Json:
        return {key: value for key, value in super().typed_dict_schema(schema).items() if key != "additionalProperties"}


def _take_nulls(schema: Json) -> None:
    """In a body, a field that may be left out may be null."""
    for name, field in schema.get("properties", {}).items():
        if name not in schema.get("required", ()) and {"type": "null"} not in field.get("anyOf", ()):
            about = {key: field.pop(key) for key in ("title", "description", "default") if key in field}
            schema["properties"][name] = {"anyOf": [field, {"type": "null"}], **about}


def _named(part: str, suffix: str) -> str:
    return part.removesuffix(suffix) + suffix if suffix else part


def _renamed(schema: Any, suffix: str) -> Any:
    """A schema with its references where the document has them."""
    if isinstance(schema, list):
        return [_renamed(item, suffix) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _renamed(value, suffix) for key, value in schema.items()}
    if isinstance(found.get("pattern"), str):
        # Rust's end of a text, which JSON schemas write as `$`.
        found["pattern"] = found["pattern"].replace("\\z", "$")
    if isinstance(found.get("$ref"), str) and re.fullmatch(r"#/\w+", found["$ref"]):
        found["$ref"] = f"#/components/schemas/{_named(found['$ref'][2:], suffix)}"
    return found
