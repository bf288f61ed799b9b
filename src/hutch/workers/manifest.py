"""What a worker declares, as its SDK writes it down, read into structs.

Manifests of all SDKs since 0.3.0 are read: arrays that are absent are empty, fields and kinds of capability that are not known
here are kept and never run. The alpha layout (`type` for `_tag`, `primaryKey` for `primaryKeyProperty`) means the same.
`null` is what is absent. What is well-formed and can't be meant nevertheless is found by `hutch.workers.checks`.

A manifest is the output of the worker's own code: all of it may be a lie, and it holds the client secrets of OAuth in clear text.
Seal what is stored; show only `public`.
"""

from __future__ import annotations

import enum
from typing import Any, Literal, TypeAlias

import msgspec

from hutch.errors import BadRequestError
from hutch.workers import reading

MAX_BYTES = 2 * 2**20
MAX_DEPTH = 64
MAX_ITEMS = 1000
"""Entries of each array of a manifest."""
MAX_KEY = 256
"""Characters of a key, or of a property's name."""

MINUTE_MS = 60_000
DEFAULT_SCHEDULE_MS = 30 * MINUTE_MS
_EMPTY: Any = msgspec.field(default_factory=dict)


class Layout(enum.StrEnum):
    """Which SDK wrote it: in `classic` all keys share one namespace, in `alpha` a capability is found by type and key."""

    CLASSIC = "classic"
    ALPHA = "alpha"


class Declared(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Base of what is declared: camel case on the wire, unknown fields ignored."""


class Schedule(Declared, frozen=True, kw_only=True):
    """When a sync is due. `interval_ms` belongs to `interval`; `expression` and `time_zone` (IANA) to `cron`, which Python
    workers may use."""

    type: Literal["interval", "continuous", "manual", "cron"]
    interval_ms: int | None = None
    expression: str | None = None
    time_zone: str | None = None


DEFAULT_SCHEDULE = Schedule(type="interval", interval_ms=DEFAULT_SCHEDULE_MS)
"""For a sync that names none."""


class Hints(Declared, frozen=True, kw_only=True):
    read_only_hint: bool | None = None


class Tool(Declared, frozen=True, kw_only=True):
    title: str = ""
    description: str = ""
    schema: Any
    output_schema: Any = None
    hints: Hints | None = None

    @property
    def read_only(self) -> bool:
        """Whether an agent may call it without asking a person."""
        return bool(self.hints and self.hints.read_only_hint)


class Target(Declared, frozen=True, kw_only=True):
    type: str
    key: str


class Mode(enum.StrEnum):
    REPLACE = "replace"
    INCREMENTAL = "incremental"


class Sync(Declared, frozen=True, kw_only=True):
    """Writes to the database `database_key`, or to an XLDB (`target`)."""

    database_key: str | None = None
    target: Target | None = None
    primary_key_property: str | None = None
    mode: Mode | None = None
    schedule: Schedule | None = None

    @property
    def replaces(self) -> bool:
        """Whether a cycle is the whole data set, after which rows that it did not have are deleted."""
        return self.mode is not Mode.INCREMENTAL


class AiConnector(Declared, frozen=True, kw_only=True):
    ai_connector_id: str
    archetype: str
    mode: Mode | None = None
    schedule: Schedule | None = None


class Automation(Declared, frozen=True, kw_only=True):
    title: str = ""
    description: str = ""


class Webhook(Declared, frozen=True, kw_only=True):
    title: str = ""
    description: str = ""
    has_verify: bool | None = None


class OAuth(Declared, frozen=True, kw_only=True):
    """`user_managed` has endpoints and a client of its own; for `notion_managed` the operator knows `provider`."""

    type: Literal["notion_managed", "user_managed"]
    name: str
    provider: str | None = None
    authorization_endpoint: str | None = None
    token_endpoint: str | None = None
    scope: str | None = None
    client_id: str | None = None
    client_secret: str | None = None
    authorization_params: dict[str, str] | None = None
    callback_url: str | None = None
    access_token_expire_ms: float | None = None

    def __repr__(self) -> str:
        return f"OAuth(type={self.type!r}, name={self.name!r})"

    def __rich_repr__(self) -> Any:
        yield "type", self.type
        yield "name", self.name


class CustomBlock(Declared, frozen=True, kw_only=True):
    """A part of somebody's page. It is listed, and not run here."""

    source: dict[str, Any] = _EMPTY
    manifest: dict[str, Any] = _EMPTY


class Trigger(Declared, frozen=True, kw_only=True):
    type: str


class Workflow(Declared, frozen=True, kw_only=True):
    title: str = ""
    name: str = ""
    description: str = ""
    triggers: list[Trigger] = msgspec.field(default_factory=list)


class Unknown(Declared, frozen=True, kw_only=True):
    """A capability of a kind that is newer than this code: listed, never run."""


Config: TypeAlias = Tool | Sync | AiConnector | Automation | Webhook | OAuth | CustomBlock | Workflow | Unknown
CONFIGS: dict[str, type[Config]] = {
    "tool": Tool,
    "sync": Sync,
    "ai_connector": AiConnector,
    "automation": Automation,
    "webhook": Webhook,
    "oauth": OAuth,
    "custom_block": CustomBlock,
    "workflow": Workflow,
}
RUNNABLE = frozenset(CONFIGS) - {"oauth", "custom_block"}


class Capability(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that the platform may invoke, or is configured by. `declared` is the configuration as it was sent."""

    tag: str
    key: str
    config: Config
    declared: dict[str, Any]

    def __repr__(self) -> str:
        return f"Capability({self.tag!r}, {self.key!r})"

    @property
    def runnable(self) -> bool:
        return self.tag in RUNNABLE


class Option(Declared, frozen=True, kw_only=True):
    name: str
    color: str | None = None


class Group(Declared, frozen=True, kw_only=True):
    name: str
    options: list[Option] = msgspec.field(default_factory=list)


class RelationConfig(Declared, frozen=True, kw_only=True):
    two_way: bool = False
    related_property_name: str | None = None


class Property(Declared, frozen=True, kw_only=True):
    """A column. Which of the optional fields it has depends on `type`."""

    type: str
    options: list[Option] | None = None
    groups: list[Group] | None = None
    format: str | None = None
    date_format: str | None = msgspec.field(default=None, name="date_format")
    related_database_key: str | None = None
    config: RelationConfig | None = None

    @property
    def option_names(self) -> list[str]:
        """Of a select, a multi-select or a status, in order."""
        grouped = [option for group in self.groups or () for option in group.options]
        return [option.name for option in (self.options or grouped)]


class SubItems(Declared, frozen=True, kw_only=True):
    parent_property_name: str
    child_property_name: str


class DatabaseSchema(Declared, frozen=True, kw_only=True):
    properties: dict[str, Property] = _EMPTY
    database_icon: Any = None
    sub_items: SubItems | None = None


class Database(Declared, frozen=True, kw_only=True):
    """`type` is `managed`, the default, or `attached`. Without a title it has its key as one."""

    key: str
    type: str = "managed"
    initial_title: str = ""
    primary_key_property: str = ""
    schema: DatabaseSchema


class Column(Declared, frozen=True, kw_only=True):
    name: str
    title: str = ""
    type: str
    select_options: list[Option] | None = None


class ColumnSchema(Declared, frozen=True, kw_only=True):
    columns: list[Column] = msgspec.field(default_factory=list)


class Xldb(Declared, frozen=True, kw_only=True):
    """A table of plain columns (alpha)."""

    key: str
    type: str = "managed"
    initial_title: str = ""
    upsert_key: list[str] = msgspec.field(default_factory=list)
    schema: ColumnSchema


class PacerDeclaration(Declared, frozen=True, kw_only=True):
    key: str
    allowed_requests: float
    interval_ms: float


class Transform(Declared, frozen=True, kw_only=True):
    headers: dict[str, str]


class CredentialRule(Declared, frozen=True, kw_only=True):
    domain: str
    transform: list[Transform]


class Credential(Declared, frozen=True, kw_only=True):
    """Headers that the gateway adds to requests to these domains; the value is the secret of the same name."""

    key: str
    network: list[CredentialRule]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """All of it, in the order of declaration."""

    layout: Layout
    sdk_version: str
    capabilities: tuple[Capability, ...]
    databases: tuple[Database, ...]
    xldbs: tuple[Xldb, ...]
    pacers: tuple[PacerDeclaration, ...]
    credentials: tuple[Credential, ...]

    def capability(self, key: str, tag: str | None = None) -> Capability | None:
        """By key; `tag` tells apart what shares one in the alpha layout."""
        return next((item for item in self.capabilities if item.key == key and tag in {None, item.tag}), None)

    def database(self, key: str) -> Database | None:
        return next((item for item in self.databases if item.key == key), None)


def parse(raw: bytes) -> Manifest:
    """A manifest from JSON. Raises `BadRequestError` (`worker_manifest_invalid`) with what to fix; no value is part of it."""
    try:
        return _manifest(reading.load(raw, most_bytes=MAX_BYTES, most_depth=MAX_DEPTH))
    except ValueError as error:
        raise invalid(f"it {error}") from error


def invalid(reason: str, details: dict[str, object] | None = None) -> BadRequestError:
    """The error for a manifest that can't be used."""
    return BadRequestError("worker_manifest_invalid", f"The worker's manifest can't be used: {reason}.", details=details)


def _manifest(value: Any) -> Manifest:
    if not isinstance(value, dict):
        raise ValueError("should be an object; is the entry's default export a Worker?")
    sent = _array(value, "capabilities")
    version = value.get("sdkVersion")
    return Manifest(
        layout=Layout.ALPHA if any("_tag" not in item and "type" in item for item in sent) else Layout.CLASSIC,
        sdk_version=version[: reading.MAX_SHOWN] if isinstance(version, str) else "",
        capabilities=tuple(_capability(index, item) for index, item in enumerate(sent)),
        databases=tuple(_resources(value, "databases", Database)),
        xldbs=tuple(_resources(value, "xldbs", Xldb)),
        pacers=tuple(_resources(value, "pacers", PacerDeclaration)),
        credentials=tuple(_resources(value, "credentials", Credential)),
    )


def _array(value: dict[str, Any], name: str) -> list[dict[str, Any]]:
    items = value.get(name)
    if items is None:
        return []
    if not isinstance(items, list):
        raise ValueError(f"should have a list as `{name}`")
    if len(items) > MAX_ITEMS:
        raise ValueError(f"has {len(items)} {name}; there may be {MAX_ITEMS}")
    for index, item in enumerate(items):
        if not isinstance(item, dict):
            raise ValueError(f"should have objects in `{name}`: `{name}[{index}]` is none")
    return items


def _key(place: str, item: dict[str, Any]) -> str:
    key = item.get("key")
    if not isinstance(key, str) or not key:
        raise ValueError(f"should have a key that is not empty at `{place}`")
    if len(key) > MAX_KEY or key == "__proto__" or any(ord(letter) < 0x20 or ord(letter) == 0x7F for letter in key):
        raise ValueError(f"has the key {reading.shown(key)} at `{place}`: {MAX_KEY} characters, none of them a control character")
    return key


def _capability(index: int, item: dict[str, Any]) -> Capability:
    place = f"capabilities[{index}]"
    key = _key(place, item)
    tag = item.get("_tag", item.get("type"))
    if not isinstance(tag, str) or not 1 <= len(tag) <= reading.MAX_SHOWN or not tag.isprintable():
        raise ValueError(f"should say what {reading.shown(key)} is: `{place}._tag`")
    declared = item.get("config")
    if declared is None:
        declared = {}
    if not isinstance(declared, dict):
        raise ValueError(f"should have an object as the config of {tag} {reading.shown(key)}")
    config = _converted(f"{tag} {reading.shown(key)}", _present(declared), CONFIGS.get(tag, Unknown))
    return Capability(tag=tag, key=key, config=config, declared=declared)


def _resources(value: dict[str, Any], name: str, kind: type[reading.Converted]) -> list[reading.Converted]:
    found = []
    for index, item in enumerate(_array(value, name)):
        key = _key(f"{name}[{index}]", item)
        fields = item.get("config") if isinstance(item.get("config"), dict) else item
        assert isinstance(fields, dict)
        if name == "databases" and "primaryKeyProperty" not in fields and "primaryKey" in fields:
            fields = {**fields, "primaryKeyProperty": fields["primaryKey"]}
        found.append(_converted(f"{name[:-1]} {reading.shown(key)}", {**_present(fields), "key": key}, kind))
    return found


def _present(value: dict[str, Any]) -> dict[str, Any]:
    return {name: field for name, field in value.items() if field is not None}


def _converted(subject: str, value: dict[str, Any], kind: type[reading.Converted]) -> reading.Converted:
    try:
        return reading.convert(value, kind)
    except ValueError as error:
        raise ValueError(f"is wrong about {subject}: {error}") from None


def public(manifest: Manifest) -> dict[str, Any]:
    """What may be shown to whoever may see the worker: everything but client secrets, and of kinds that are not known here
    the names alone, as nobody knows where those keep theirs."""
    return {
        "layout": str(manifest.layout),
        "sdkVersion": manifest.sdk_version,
        "capabilities": [{"_tag": item.tag, "key": item.key, "config": _public(item)} for item in manifest.capabilities],
        "databases": [_resource(item) for item in manifest.databases],
        "xldbs": [_resource(item) for item in manifest.xldbs],
        "pacers": [_resource(item) for item in manifest.pacers],
        "credentials": msgspec.to_builtins(manifest.credentials),
    }


def _public(item: Capability) -> dict[str, Any]:
    config = item.config
    if isinstance(config, OAuth):
        config = msgspec.structs.replace(config, client_secret=None)
    shown: dict[str, Any] = msgspec.to_builtins(config)
    return shown


def _resource(item: Database | Xldb | PacerDeclaration) -> dict[str, Any]:
    config: dict[str, Any] = msgspec.to_builtins(item)
    return {"key": config.pop("key"), "config": config}
