"""A worker: what a program declares, and what it does when it is asked."""

from __future__ import annotations

import asyncio
import inspect
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from hutch.worker import blocks, credentials, schemas, tables
from hutch.worker.changes import Delete, Page, Record, Upsert
from hutch.worker.columns import Column
from hutch.worker.errors import ExecutionError, InvalidToolInputError, InvalidToolOutputError, WorkerError
from hutch.worker.events import AutomationEvent, VerifyRequest, VerifyResponse, WebhookEvent
from hutch.worker.properties import Database, Property, present
from hutch.worker.schedules import Schedule
from hutch.worker.tables import Row, RowDelete, Table

SDK_VERSION = "hutch-python-1"
MAX_CREDENTIALS = 100
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Capability:
    """Something that can be run. `execute` takes what was sent, and returns what is told as the value."""

    tag: str
    key: str
    config: dict[str, Any]
    execute: Callable[[Any], Any] | None
    verify: Callable[[Any], Any] | None = None

    def declared(self) -> dict[str, Any]:
        return {"_tag": self.tag, "key": self.key, "config": self.config}


@dataclass(slots=True)
class Pacer:
    """Spreads requests to somebody who wants no more than so many: `wait` before each. The platform divides it between syncs that
    run at once, and it goes on where the run before left it."""

    key: str
    allowed_requests: float
    interval_ms: float
    last_ms: float = 0

    def wait(self) -> None:
        """Sleep until it is this request's turn."""
        time.sleep(self._turn())

    async def turn(self) -> None:
        """As `wait`, for `async` functions."""
        await asyncio.sleep(self._turn())

    def _turn(self) -> float:
        now_ms = time.time() * 1000
        pace = math.ceil(self.interval_ms / self.allowed_requests)
        self.last_ms = max(self.last_ms + pace, now_ms)
        return max(0.0, self.last_ms - now_ms) / 1000

    def state(self) -> dict[str, float]:
        return {
            "lastScheduledAtMs": math.floor(self.last_ms),
            "allowedRequests": self.allowed_requests,
            "intervalMs": self.interval_ms,
        }


@dataclass(frozen=True, slots=True)
class OAuth:
    """A login with another service."""

    key: str
    name: str

    def access_token(self) -> str:
        """Raises `RuntimeError` as long as nobody has logged in."""
        variable = f"OAUTH_{self.name.encode().hex().upper()}_ACCESS_TOKEN"
        token = os.environ.get(variable)
        if not token:
            raise RuntimeError(
                f"There is no access token for {self.key!r} ({variable}): log in with `ntn workers oauth start {self.key}`."
            )
        return token


class Worker:
    """What a program declares. It is found as `worker` in the program's module."""

    def __init__(self) -> None:
        self._keys: set[str] = set()
        self._capabilities: dict[str, Capability] = {}
        self._databases: list[Database] = []
        self._tables: list[Table] = []
        self._pacers: dict[str, Pacer] = {}
        self._credentials: list[dict[str, Any]] = []

    # -- what it is ----------------------------------------------------------------------------------

    @property
    def capabilities(self) -> list[dict[str, Any]]:
        return [item.declared() for item in self._capabilities.values()]

    @property
    def manifest(self) -> dict[str, Any]:
        """What the platform reads when the worker is deployed."""
        return {
            "sdkVersion": SDK_VERSION,
            "credentials": self._credentials,
            "databases": [{"key": item.key, "config": item.config} for item in self._databases],
            "xldbs": [{"key": item.key, "config": item.config} for item in self._tables],
            "pacers": [
                {"key": item.key, "config": {"allowedRequests": item.allowed_requests, "intervalMs": item.interval_ms}}
                for item in self._pacers.values()
            ],
            "capabilities": self.capabilities,
        }

    def capability(self, key: str) -> Capability:
        """Raises `LookupError`."""
        if key not in self._capabilities:
            raise LookupError(f'Capability "{key}" not found')
        return self._capabilities[key]

    # -- resources -----------------------------------------------------------------------------------

    def database(
        self, key: str, *, title: str, primary_key: str, properties: Mapping[str, Property], icon: str | None = None
    ) -> Database:
        """A database that syncs write to. `primary_key` is a property of it. Raises `WorkerError`."""
        if primary_key not in properties:
            raise WorkerError(f"Database {key!r}: its primary key {primary_key!r} is none of its properties.")
        if sum(one.type == "title" for one in properties.values()) != 1:
            raise WorkerError(f"Database {key!r} should have one property that is a title.")
        self._reserve(key)
        schema: dict[str, Any] = {"properties": {name: item.declared for name, item in properties.items()}}
        if icon is not None:
            schema["databaseIcon"] = {"type": "emoji", "value": icon}
        config = {"type": "managed", "initialTitle": title, "primaryKeyProperty": primary_key, "schema": schema}
        made = Database(key, primary_key, dict(properties), config)
        self._databases.append(made)
        return made

    def table(self, key: str, *, title: str, upsert_key: Sequence[str], columns: Mapping[str, Column]) -> Table:
        """A table of plain columns (an XLDB) that syncs write to. The columns of `upsert_key` tell its rows apart. Raises
        `WorkerError`."""
        made = tables.declared(key, title, upsert_key, columns)
        self._reserve(key)
        self._tables.append(made)
        return made

    def pacer(self, key: str, *, requests: int, per_s: float) -> Pacer:
        """So many requests in so many seconds, spread evenly. Raises `WorkerError`."""
        numbers = all(
            isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) for one in (requests, per_s)
        )
        if not numbers or requests < 1 or not 0 < per_s <= 7 * 24 * 3600:
            raise WorkerError(f"Pacer {key!r} should allow at least one request, in up to 7 days.")
        self._reserve(key)
        made = Pacer(key, requests, per_s * 1000)
        self._pacers[key] = made
        return made

    def credential(self, key: str, network: Mapping[str, Mapping[str, str]]) -> None:
        """Headers by domain that the network adds, with the secret `key` where they say `CREDENTIAL`. The program never has the
        secret. Raises `WorkerError`."""
        if len(self._credentials) >= MAX_CREDENTIALS:
            raise WorkerError(f"A worker has at most {MAX_CREDENTIALS} credentials.")
        found = credentials.declared(key, network)
        self._reserve(key)
        self._credentials.append(found)

    def oauth(
        self,
        key: str,
        *,
        name: str,
        provider: str | None = None,
        authorization_endpoint: str = "",
        token_endpoint: str = "",
        scope: str = "",
        client_id: str = "",
        client_secret: str = "",
        authorization_params: Mapping[str, str] | None = None,
        access_token_expires_ms: int | None = None,
    ) -> OAuth:
        """A login with another service: an app of your own with its endpoints and client, or a `provider` that the operator
        knows. Raises `WorkerError`."""
        config: dict[str, Any]
        if provider is not None:
            config = {"type": "notion_managed", "name": name, "provider": provider}
        else:
            if not authorization_endpoint or not token_endpoint:
                raise WorkerError(f"OAuth {key!r} should have a `provider`, or both endpoints.")
            config = {
                "type": "user_managed",
                "name": name,
                "authorizationEndpoint": authorization_endpoint,
                "tokenEndpoint": token_endpoint,
                "scope": scope,
                "clientId": client_id,
                "clientSecret": client_secret,
            }
            if authorization_params is not None:
                config["authorizationParams"] = dict(authorization_params)
        if access_token_expires_ms is not None:
            config["accessTokenExpireMs"] = access_token_expires_ms
        self._add(Capability("oauth", key, config, None))
        return OAuth(key, name)

    def custom_block(
        self,
        key: str,
        *,
        path: str,
        type: Literal["project", "static"] = "project",
        command: str | None = None,
        output: str | None = None,
        name: str | None = None,
        description: str | None = None,
        icon: str | None = None,
        slash_command: str | None = None,
        data_sources: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """A front end that somebody's page shows: files at `path`, which `command` builds into `output` unless they are `static`.
        `data_sources` are made by `data_source`. Raises `WorkerError`."""
        config = blocks.declared(key, path, type, command, output, name, description, icon, slash_command, data_sources or {})
        wanted = config["manifest"].get("slashCommand")
        others = (item.config["manifest"] for item in self._capabilities.values() if item.tag == "custom_block")
        if wanted is not None and any(other.get("slashCommand") == wanted for other in others):
            raise WorkerError(f"The slash command {wanted!r} is another custom block's already.")
        self._add(Capability("custom_block", key, config, None))

    # -- capabilities --------------------------------------------------------------------------------

    def sync(
        self,
        database: Database | Table,
        *,
        key: str | None = None,
        mode: Literal["replace", "incremental"] | None = None,
        schedule: Schedule | None = None,
    ) -> Callable[[Function], Function]:
        """A function of the state (None in the first run) that returns a `Page`. In the mode `replace`, the default, rows that a
        whole cycle did not have are deleted; in `incremental` those that are `delete`d."""

        def register(function: Function) -> Function:
            config: dict[str, Any]
            if isinstance(database, Table):
                config = {"target": {"type": "xldb", "key": database.key}}
            else:
                config = {"databaseKey": database.key, "primaryKeyProperty": database.primary_key}
            config |= present({"mode": mode, "schedule": schedule.declared if schedule else None})
            name = key or function.__name__
            _takes(function, 1, f"The sync {name!r}", "the state")

            def execute(context: Any) -> Any:
                found = self._page(function, context)
                return {
                    "changes": [_change(change, database) for change in found.changes],
                    "hasMore": found.more,
                    "nextUserContext": schemas.plain(found.state),
                    "nextPacerStates": self._pacer_states(),
                }

            self._add(Capability("sync", name, config, execute))
            return function

        return register

    def ai_connector(
        self,
        connector: str,
        *,
        archetype: Literal["chat", "project"],
        key: str | None = None,
        schedule: Schedule | None = None,
    ) -> Callable[[Function], Function]:
        """A function of the state (None in the first run) that returns a `Page` of `record`s for an AI connector."""

        def register(function: Function) -> Function:
            config = {"aiConnectorId": connector, "archetype": archetype}
            config |= present({"schedule": schedule.declared if schedule else None})
            name = key or function.__name__
            _takes(function, 1, f"The AI connector {name!r}", "the state")

            def execute(context: Any) -> Any:
                found = self._page(function, context)
                value = {"changes": [_record(change) for change in found.changes], "hasMore": found.more}
                return (
                    value | present({"nextUserContext": schemas.plain(found.state)}) | {"nextPacerStates": self._pacer_states()}
                )

            self._add(Capability("ai_connector", name, config, execute))
            return function

        return register

    def tool(
        self,
        *,
        key: str | None = None,
        title: str | None = None,
        description: str | None = None,
        read_only: bool | None = None,
        schema: Mapping[str, Any] | None = None,
        output_schema: Mapping[str, Any] | None = None,
    ) -> Callable[[Function], Function]:
        """A function that agents call. Its parameters and its result say their types, its docstring what it does. With a JSON
        Schema of your own (`schema`) it takes the input as one value. `read_only` tools need no
        confirmation."""

        def register(function: Function) -> Function:
            name = key or function.__name__
            takes_all = schema is not None
            if takes_all:
                _takes(function, 1, f"The tool {name!r}", "the input")
                wanted, kinds = dict(schema or {}), dict[str, Any]()
            else:
                wanted, kinds = schemas.of_parameters(function, name)
            result = dict(output_schema) if output_schema is not None else schemas.of_result(function, name)
            kind = None if output_schema is not None else schemas.hints_of(function, name).get("return", Any)
            described = description if description is not None else inspect.getdoc(function) or ""
            if not described:
                raise WorkerError(f"The tool {name!r} should say what it does: in a docstring, or by `description`.")
            config: dict[str, Any] = {"title": title or name.replace("_", " ").capitalize(), "description": described}
            config |= {"schema": wanted} | present({"outputSchema": result})
            if read_only is not None:
                config["hints"] = {"readOnlyHint": read_only}
            optional = frozenset() if takes_all else _optional(function)

            def execute(sent: Any) -> Any:
                try:
                    if takes_all:
                        schemas.conform(wanted, sent)
                    values = {} if takes_all else schemas.named_values(kinds, sent, optional=optional)
                except schemas.Mismatch as error:
                    raise InvalidToolInputError(str(error)) from error
                value = schemas.plain(_called(function, sent) if takes_all else _called(function, **values))
                try:
                    if output_schema is not None:
                        schemas.conform(output_schema, value, "the result")
                    elif result is not None:
                        schemas.value_of(kind, value, "the result")
                        value = schemas.filled(kind, value)
                except schemas.Mismatch as error:
                    raise InvalidToolOutputError(str(error)) from error
                return value

            self._add(Capability("tool", name, config, execute))
            return function

        return register

    def automation(
        self, *, key: str | None = None, title: str | None = None, description: str = ""
    ) -> Callable[[Function], Function]:
        """A function of an `AutomationEvent`, which a button or a request starts."""

        def register(function: Function) -> Function:
            name = key or function.__name__
            _takes(function, 1, f"The automation {name!r}", "the event")

            def execute(sent: Any) -> Any:
                _called(function, AutomationEvent.read(sent))
                return {"status": "success"}

            self._add(Capability("automation", name, _titled(function, name, title, description), execute))
            return function

        return register

    def webhook(
        self,
        *,
        key: str | None = None,
        title: str | None = None,
        description: str = "",
        verify: Callable[[VerifyRequest], VerifyResponse | None] | None = None,
    ) -> Callable[[Function], Function]:
        """A function of `WebhookEvent`s. `verify` sees each request before it is taken, and says what is answered: None is 200,
        and a `WebhookVerificationError` a refusal. It has five seconds."""

        def register(function: Function) -> Function:
            name = key or function.__name__
            _takes(function, 1, f"The webhook {name!r}", "the events")
            config = _titled(function, name, title, description) | ({"hasVerify": True} if verify is not None else {})

            def execute(sent: Any) -> Any:
                events = sent if isinstance(sent, list) else [sent]
                _called(function, [WebhookEvent.read(event) for event in events])
                return {"status": "success"}

            def check(sent: Any) -> Any:
                assert verify is not None
                answer = _called(verify, VerifyRequest.read(sent.get("request") or {}))
                if answer is None:
                    answer = VerifyResponse()
                if not isinstance(answer, VerifyResponse):
                    raise TypeError(f"`verify` should return a VerifyResponse, not {type(answer).__name__}")
                return answer.sent()

            self._add(Capability("webhook", name, config, execute, check if verify is not None else None))
            return function

        return register

    # -- its own -------------------------------------------------------------------------------------

    def _page(self, function: Callable[..., Any], context: Any) -> Page:
        """What a sync returns, from the state and the pacers that it is given."""
        context = context if isinstance(context, dict) else {}
        self._resume(context.get("pacers") or {})
        found = _called(function, context["state"] if "state" in context else context.get("userContext"))
        if not isinstance(found, Page):
            raise TypeError(f"a sync should return a Page, not {type(found).__name__}")
        return found

    def _pacer_states(self) -> dict[str, Any]:
        return {name: pacer.state() for name, pacer in self._pacers.items()}

    def _resume(self, states: Mapping[str, Any]) -> None:
        for key, pacer in self._pacers.items():
            sent = states.get(key)
            if isinstance(sent, dict):
                pacer.last_ms = float(sent.get("lastScheduledAtMs", 0))
                pacer.allowed_requests = float(sent.get("allowedRequests", pacer.allowed_requests))
                pacer.interval_ms = float(sent.get("intervalMs", pacer.interval_ms))

    def _reserve(self, key: str) -> None:
        if not key:
            raise WorkerError("A key should be a text that is not empty.")
        if key in self._keys:
            raise WorkerError(f"Worker item with key {key!r} already registered; give one of them another key.")
        self._keys.add(key)

    def _add(self, capability: Capability) -> None:
        self._reserve(capability.key)
        self._capabilities[capability.key] = capability


def _change(change: Any, database: Database | Table) -> dict[str, Any]:
    if isinstance(database, Table):
        if not isinstance(change, Row | RowDelete):
            raise TypeError(f"the changes of a table's sync should be `row`s and `delete_row`s, not {type(change).__name__}")
        return change.sent(database)
    if not isinstance(change, Upsert | Delete):
        raise TypeError(f"a sync's changes should be `upsert`s and `delete`s, not {type(change).__name__}")
    return change.sent(database)


def _record(change: Any) -> dict[str, Any]:
    if not isinstance(change, Record):
        raise TypeError(f"an AI connector's changes should be `record`s, not {type(change).__name__}")
    return change.sent()


def _called(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    found = function(*arguments, **named)
    if inspect.iscoroutine(found):
        return asyncio.run(found)
    return found


def _titled(function: Callable[..., Any], name: str, title: str | None, description: str) -> dict[str, Any]:
    described = description or inspect.getdoc(function) or ""
    return {"title": title or name.replace("_", " ").capitalize(), "description": described}


def _takes(function: Callable[..., Any], number: int, subject: str, what: str) -> None:
    """Raises `WorkerError`."""
    try:
        inspect.signature(function).bind(*[None] * number)
    except TypeError as error:
        raise WorkerError(f"{subject} should be a function of {what}: {error}.") from error


def _optional(function: Callable[..., Any]) -> frozenset[str]:
    """Parameters for which null is their default."""
    parameters = inspect.signature(function).parameters.values()
    return frozenset(one.name for one in parameters if one.default is not one.empty)


__all__ = ["Capability", "ExecutionError", "OAuth", "Pacer", "Worker"]
