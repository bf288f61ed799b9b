"""Bodies of requests: what is allowed in each, and one message per mistake.

`parse` turns bytes into a model or raises `BadRequestError` whose message has the form that clients of this API know:
``Invalid request: `ports` should NOT have more than 15 items.`` Unknown fields are ignored (clients send private ones, and
newer clients newer ones); a `null` counts as absent except where it means "clear this".
"""

from __future__ import annotations

import base64
import binascii
from json import JSONDecodeError
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import msgspec
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, RootModel, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from hutch.control import strict_json
from hutch.control.mounts import MAX_MOUNT_PATH, canonical_path, mount_problem, overlap
from hutch.control.names import MAX_DRIVE_NAME_LENGTH, MAX_NAME_LENGTH, NAME_PATTERN, RESERVED_NAMES, is_name
from hutch.control.permissions import MemberRole, Permission, Role
from hutch.errors import BadRequestError
from hutch.login.secrets import CHALLENGE, VERIFIER
from hutch.metering.budgets import MAX_LIMIT, Limits

DAY_MS = 86_400_000
MAX_EXPIRATION_MS = 365_000 * DAY_MS
"""A thousand years: `expiresAt` stays a date that JavaScript can have."""
MEMORY_MB_PER_VCPU = 2048
MAX_FORKS = 100
MAX_PORTS = 15
MAX_TAGS = 5
MAX_PATH_BYTES = 4095
MAX_ARGUMENTS = 32_768
MAX_ARGUMENT_BYTES = 131_071
MAX_ENV_ENTRIES = 4096
"""Linux refuses a longer path (PATH_MAX) and a longer argument or environment string (MAX_ARG_STRLEN)."""
MAX_CREDENTIAL_BYTES = 8192
MIN_DISK_BYTES = 16 * 1024 * 1024
MAX_DISK_BYTES = 64 * 1024**4
MAX_MOUNTS = 4
MAX_DRIVE_BYTES = 16 * 1024**4
MAX_USER_ID = 2**32 - 2
MAX_IMAGE_FIELD_BYTES = 16 * 1024
MAX_PERCENTAGES = 10
MAX_WEBHOOK_LENGTH = 2048

EXPIRATION_RULE = "must be 0 (no expiration) or >= 86400000 ms (1 day)"

B = TypeVar("B", bound="Body")


def _no_nul(value: str) -> str:
    if "\0" in value:
        raise PydanticCustomError("nul", "should NOT contain NUL characters")
    return value


def _argument(value: str) -> str:
    if len(value) * 4 > MAX_ARGUMENT_BYTES and len(value.encode()) > MAX_ARGUMENT_BYTES:
        raise PydanticCustomError("argument", f"should NOT be longer than {MAX_ARGUMENT_BYTES} bytes")
    return _no_nul(value)


def _path(value: str) -> str:
    if not value:
        raise PydanticCustomError("path", "should NOT be shorter than 1 characters")
    if len(value.encode()) > MAX_PATH_BYTES:
        raise PydanticCustomError("path", f"should NOT be longer than {MAX_PATH_BYTES} bytes")
    return _no_nul(value)


def _absolute(value: str) -> str:
    if not value.startswith("/") or ".." in value.split("/"):
        raise PydanticCustomError("path", "should be an absolute path without `..`")
    return value


def _env(value: dict[str, str]) -> dict[str, str]:
    if len(value) > MAX_ENV_ENTRIES:
        raise PydanticCustomError("env", f"should NOT have more than {MAX_ENV_ENTRIES} properties")
    for key, item in value.items():
        if not key or "=" in key or "\0" in key:
            raise PydanticCustomError("env", "has a name that is empty or contains `=` or NUL")
        if "\0" in item:
            raise PydanticCustomError("env", "has a value that contains NUL")
        if len(key) + len(item) > MAX_ARGUMENT_BYTES // 4 and len(f"{key}={item}".encode()) > MAX_ARGUMENT_BYTES:
            raise PydanticCustomError("env", f"has an entry longer than {MAX_ARGUMENT_BYTES} bytes")
    return value


def _tags(value: dict[str, str]) -> dict[str, str]:
    if len(value) > MAX_TAGS:
        raise PydanticCustomError("tags", f"should NOT have more than {MAX_TAGS} properties")
    for key, item in value.items():
        if not key or len(key) > 256 or len(item) > 256:
            raise PydanticCustomError("tags", "should have keys of 1 to 256 and values of at most 256 characters")
        if "\0" in key or "\0" in item:
            raise PydanticCustomError("tags", "should NOT contain NUL characters")
    return value


def _name(value: str) -> str:
    if value in RESERVED_NAMES:
        raise PydanticCustomError("name", f"should NOT be a reserved name: {', '.join(sorted(RESERVED_NAMES))}")
    return value


def _ports(value: list[int]) -> list[int]:
    if len(set(value)) != len(value):
        raise PydanticCustomError("ports", "should NOT have duplicate items")
    return value


def _expiration(value: int) -> int:
    if value != 0 and value < DAY_MS:
        raise PydanticCustomError("expiration", EXPIRATION_RULE)
    if value > MAX_EXPIRATION_MS:
        raise PydanticCustomError("expiration", f"should be <= {MAX_EXPIRATION_MS}")
    return value


def _credential(value: str) -> str:
    # It becomes part of a header, whose ends are trimmed on the way.
    if not 1 <= len(value) <= MAX_CREDENTIAL_BYTES or not value.isascii() or not value.isprintable() or value != value.strip():
        raise PydanticCustomError(
            "credential",
            f"should be 1 to {MAX_CREDENTIAL_BYTES} visible ASCII characters, with spaces only between them and no line breaks",
        )
    return value


def _schema(**words: Any) -> Any:
    """What a validator of ours checks, for the OpenAPI document."""
    return Field(json_schema_extra=words)


_NO_NUL = r"^[^\u0000]*$"
_SHORT = {"type": "string", "maxLength": 256, "pattern": _NO_NUL}
_ABSOLUTE = r"^(/(?!\.\.(/|$))[^/\u0000]*)+$"

Text = Annotated[str, AfterValidator(_no_nul), _schema(pattern=_NO_NUL)]
Argument = Annotated[str, AfterValidator(_argument), _schema(pattern=_NO_NUL)]
GuestPath = Annotated[str, AfterValidator(_path), _schema(pattern=_NO_NUL, minLength=1)]
AbsolutePath = Annotated[GuestPath, AfterValidator(_absolute), _schema(pattern=_ABSOLUTE, minLength=1)]
Env = Annotated[
    dict[str, str],
    AfterValidator(_env),
    _schema(
        maxProperties=MAX_ENV_ENTRIES,
        propertyNames={"pattern": r"^[^=\u0000]+$"},
        additionalProperties={"type": "string", "pattern": _NO_NUL},
    ),
]
Tags = Annotated[
    dict[str, str],
    AfterValidator(_tags),
    _schema(maxProperties=MAX_TAGS, propertyNames=_SHORT | {"minLength": 1}, additionalProperties=_SHORT),
]
Port = Annotated[int, Field(ge=1024, le=65535)]
Ports = Annotated[list[Port], Field(max_length=MAX_PORTS), AfterValidator(_ports), _schema(uniqueItems=True)]
Name = Annotated[
    str,
    Field(min_length=1, max_length=MAX_NAME_LENGTH, pattern=r"^[a-zA-Z0-9_-]+\z"),
    AfterValidator(_name),
    _schema(**{"not": {"enum": sorted(RESERVED_NAMES)}}),
]
DriveName = Annotated[str, Field(min_length=1, max_length=MAX_DRIVE_NAME_LENGTH, pattern=r"^[a-zA-Z0-9_-]+\z")]
Region = Annotated[str, Field(min_length=1, max_length=32, pattern=r"^[a-z0-9-]+\z")]
VISIBLE = r"^[^\x00-\x20\x7f-\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+\z"
"""Neither control characters nor spaces, in words that mean the same to every reader of patterns."""
POLICY_SCHEMA: dict[str, Any] = {"anyOf": [{"enum": ["allow-all", "deny-all"]}, {"type": "object"}]}
NetworkPolicy = Annotated[Any, Field(json_schema_extra=POLICY_SCHEMA)]
Expiration = Annotated[
    int, AfterValidator(_expiration), _schema(anyOf=[{"const": 0}, {"minimum": DAY_MS, "maximum": MAX_EXPIRATION_MS}])
]
CredentialValue = Annotated[
    str, AfterValidator(_credential), _schema(pattern=r"^[!-~]([ -~]*[!-~])?$", maxLength=MAX_CREDENTIAL_BYTES)
]
Runtime = Literal["node22", "node24", "node26", "python3.13"]


class Body(BaseModel):
    """A request body: strict types, unknown fields ignored, `null` is absent unless the field is in `nullable`."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)
    nullable: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: object) -> object:
        if isinstance(value, dict) and None in value.values():
            return {key: item for key, item in value.items() if item is not None or key in cls.nullable}
        return value


class Resources(Body):
    """`memory` is 2048 MB per vCPU, whether it is said or not."""

    vcpus: int = Field(ge=1, json_schema_extra={"anyOf": [{"const": 1}, {"multipleOf": 2}]})
    memory: int | None = None

    @model_validator(mode="after")
    def _check(self) -> Resources:
        if self.vcpus != 1 and self.vcpus % 2:
            raise PydanticCustomError("vcpus", "should have `vcpus` of 1 or an even number")
        if self.memory is not None and self.memory != self.vcpus * MEMORY_MB_PER_VCPU:
            raise PydanticCustomError("memory", f"should have `memory` of {MEMORY_MB_PER_VCPU} MB per vCPU")
        return self


class KeepLastSnapshots(Body):
    count: int = Field(ge=1, le=10)
    expiration: Expiration | None = None
    deleteEvicted: bool = True

    def stored(self) -> dict[str, Any]:
        return self.model_dump(exclude_none=True)


class SandboxSource(Body):
    """Where the file system comes from; which of the other fields are needed depends on `type`. Without `memory` (Hutch's own)
    only the files of a snapshot are used."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"type": {"const": "snapshot"}}},
            "then": {"required": ["snapshotId"], "properties": {"snapshotId": {"type": "string", "minLength": 1}}},
            "else": {"required": ["url"], "properties": {"url": {"type": "string", "minLength": 1}}},
        }
    )

    type: Literal["git", "tarball", "snapshot"]
    url: Text | None = None
    snapshotId: Text | None = None
    depth: int | None = Field(None, ge=1)
    revision: Text | None = None
    username: Text | None = None
    password: Text | None = None
    memory: bool = True

    @model_validator(mode="after")
    def _check(self) -> SandboxSource:
        if self.type == "snapshot" and not self.snapshotId:
            raise PydanticCustomError("source", "should have required property 'snapshotId'")
        if self.type != "snapshot" and not self.url:
            raise PydanticCustomError("source", "should have required property 'url'")
        return self


class Mount(Body):
    """A drive by its name. `read-only` is what older clients call `snapshot`."""

    drive: DriveName
    mode: Literal["read-write", "snapshot", "read-only"] = "read-write"

    def stored(self) -> dict[str, str]:
        return {"drive": self.drive, "mode": "snapshot" if self.mode == "read-only" else self.mode}


def _mounts(value: dict[str, Mount]) -> dict[str, Mount]:
    if len(value) > MAX_MOUNTS:
        raise PydanticCustomError("mounts", f"should NOT have more than {MAX_MOUNTS} properties")
    found: dict[str, Mount] = {}
    for path, mount in value.items():
        problem = mount_problem(path)
        if problem is not None:
            shown = {"path": ascii(path[:MAX_MOUNT_PATH]), "problem": problem}
            raise PydanticCustomError("mounts", "has the path {path}, which {problem}", shown)
        canonical = canonical_path(path)
        if any(overlap(canonical, other) for other in found):
            raise PydanticCustomError("mounts", "has paths that overlap")
        if any(mount.drive == other.drive for other in found.values()):
            raise PydanticCustomError("mounts", "has a drive twice")
        found[canonical] = mount
    return found


Mounts = Annotated[
    dict[str, Mount],
    AfterValidator(_mounts),
    _schema(maxProperties=MAX_MOUNTS, propertyNames={"pattern": _ABSOLUTE, "maxLength": MAX_MOUNT_PATH}),
]


Limit = Annotated[int | None, Field(None, ge=0, le=MAX_LIMIT)]


class BudgetLimits(Body):
    """What may be used in all; what is absent has no limit. `money_nano` is in nano-units of the price table's currency."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    active_cpu_us: Limit
    memory_byte_seconds: Limit
    egress_bytes: Limit
    money_nano: Limit

    def stored(self) -> dict[str, int] | None:
        """The limits that there are; None without any."""
        names = [name for name in Limits.__struct_fields__ if name in type(self).model_fields]
        return {name: limit for name in names if (limit := getattr(self, name)) is not None} or None


class TenantLimits(BudgetLimits):
    """What may be used by all sandboxes of a team or project together."""

    concurrency: Limit
    creations_per_minute: Limit
    storage_bytes: Limit


def _percentages(value: list[int]) -> list[int]:
    if len(set(value)) < len(value):
        raise PydanticCustomError("percentages", "should NOT have duplicate items")
    return sorted(value)


Percentages = Annotated[
    list[Annotated[int, Field(ge=1, le=100)]],
    Field(max_length=MAX_PERCENTAGES),
    AfterValidator(_percentages),
    _schema(uniqueItems=True),
]


class PutBudget(TenantLimits):
    """Body of a team's or project's budget: limits of each `period` (default: in all). Without any there is none. `soft` limits
    stop nothing; they and the percentages `notify_at` are told of in events, which are sent to `webhook` (null: nowhere; absent:
    where they are sent now)."""

    nullable = frozenset({"webhook"})

    period: Literal["day", "month", "total"] = "total"
    soft: TenantLimits | None = None
    notify_at: Percentages = []
    webhook: str | None = Field(None, min_length=1, max_length=MAX_WEBHOOK_LENGTH)


class SandboxFields(Body):
    """What create, fork and update have in common. `networkPolicy` is read by the policy engine, from `raw_policy`. Hutch's
    own: `portsPrivate` (null: as the project says), `wakeOnRequest` and `budget` (null: none)."""

    nullable = frozenset({"budget", "keepLastSnapshots", "networkId", "portsPrivate"})

    ports: Ports | None = None
    timeout: int | None = Field(None, ge=1000)
    resources: Resources | None = None
    persistent: bool | None = None
    networkPolicy: NetworkPolicy | None = None
    networkId: Text | None = None
    env: Env | None = None
    tags: Tags | None = None
    snapshotExpiration: Expiration | None = None
    keepLastSnapshots: KeepLastSnapshots | None = None
    mounts: Mounts | None = None
    region: Region | None = None
    failoverRegions: list[Region] | None = Field(None, max_length=16)
    portsPrivate: bool | None = None
    wakeOnRequest: bool | None = None
    budget: BudgetLimits | None = None


class CreateSandbox(SandboxFields):
    """Body of a create. `disk_bytes` and `isolation` are Hutch's own; a sandbox keeps both."""

    projectId: Text | None = None
    name: Name | None = None
    source: SandboxSource | None = None
    image: Text | None = Field(None, min_length=1, max_length=255)
    runtime: Runtime | None = None
    disk_bytes: int | None = Field(None, ge=MIN_DISK_BYTES, le=MAX_DISK_BYTES)
    isolation: Literal["gvisor", "qemu", "firecracker"] | None = None

    @model_validator(mode="after")
    def _exclusive(self) -> CreateSandbox:
        if self.image is not None and self.runtime is not None:
            raise PydanticCustomError("body", "`image` and `runtime` can't be used together")
        if self.source is not None and self.source.type == "snapshot" and (self.image or self.runtime):
            raise PydanticCustomError("body", "a snapshot `source` can't be used together with `image` or `runtime`")
        return self


class ForkSandbox(SandboxFields):
    """Body of a fork: each given field replaces the copied one. Hutch's own: with `memory` the running session is forked with all
    its processes; `count` sandboxes are made, several named NAME-1 and so on."""

    name: Name | None = None
    image: Text | None = Field(None, min_length=1, max_length=255)
    disk_bytes: int | None = Field(None, ge=MIN_DISK_BYTES, le=MAX_DISK_BYTES)
    memory: bool = False
    count: int | None = Field(None, ge=1, le=MAX_FORKS)

    @model_validator(mode="after")
    def _of_one_machine(self) -> ForkSandbox:
        for name in ("image", "resources") if self.memory else ():
            if getattr(self, name) is not None:
                raise PydanticCustomError("body", "`memory` can't be used together with `{name}`", {"name": name})
        return self

    def names(self) -> list[str | None]:
        """One per sandbox; None is made up. Raises `BadRequestError`."""
        if self.name is None or self.count in (None, 1):
            return [self.name] * (self.count or 1)
        assert self.count is not None
        names = [f"{self.name}-{number}" for number in range(1, self.count + 1)]
        if not is_name(names[-1]):
            raise BadRequestError("bad_request", f"Invalid request: `name` is too long for {self.count} sandboxes.")
        return list(names)


class UpdateSandbox(SandboxFields):
    """Body of an update; what is absent stays."""

    runtime: Runtime | None = None
    currentSnapshotId: Text | None = None


class TriggerSync(Body):
    """Body of a cycle of a worker's sync that somebody wants now."""

    preview: bool = False
    wait: bool = False
    context: Any = None


class SyncTimes(Body):
    """When a sync is due. `interval_ms` belongs to `interval`, `expression` and `time_zone` (IANA; UTC without) to `cron`."""

    type: Literal["interval", "continuous", "manual", "cron"]
    interval_ms: int | None = None
    expression: str | None = Field(None, max_length=128)
    time_zone: str | None = Field(None, max_length=64)

    @model_validator(mode="after")
    def _belongs(self) -> Self:
        if self.interval_ms is not None and self.type != "interval":
            raise ValueError("`interval_ms` is only valid when `type` is interval")
        if (self.expression is not None or self.time_zone is not None) and self.type != "cron":
            raise ValueError("`expression` and `time_zone` are only valid when `type` is cron")
        return self


class ScheduleSync(Body):
    """Body of the times of a sync; null is what its program says."""

    schedule: SyncTimes | None = None


class PutView(Body):
    """Body of a view of a worker's database: rows where properties are these texts, sorted by one (`-` before it: descending),
    with these properties (null: all)."""

    filter: dict[str, str] = Field(default_factory=dict, max_length=10)
    sort: str | None = Field(None, max_length=512)
    properties: list[str] | None = Field(None, max_length=500)


NotionId = Annotated[str, Field(pattern=r"^[0-9A-Fa-f]{8}-?([0-9A-Fa-f]{4}-?){3}[0-9A-Fa-f]{12}$")]


class NotionParent(Body):
    """A page, below which a database is made, or a data source that there is."""

    page_id: NotionId | None = None
    data_source_id: NotionId | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.page_id is None) is (self.data_source_id is None):
            raise ValueError("one of `page_id` and `data_source_id` should be there")
        return self


class PutNotion(Body):
    """Body of a database's mirror in Notion: an integration's token, and where to."""

    token: str = Field(min_length=1, max_length=512, pattern=r"^[!-~]+$", repr=False)
    parent: NotionParent
    base_url: str = Field("https://api.notion.com", max_length=512)


class LinkBody(Body):
    """Body of a link to a private port."""

    port: int = Field(ge=1, le=65535)
    ttl_s: int | None = Field(None, ge=1)


class ProjectIngress(Body):
    """What holds for ports of a project's sandboxes that say nothing themselves."""

    private: bool


class ExtendTimeout(Body):
    duration: int = Field(ge=1000)


class StartCommand(Body):
    """Without a `command` it is one that does not exist, and refused as such: so the vendor's clients know it."""

    model_config = ConfigDict(json_schema_extra={"required": ["command"]})

    command: Argument = Field(default_factory=str, json_schema_extra={"minLength": 1})
    args: list[Argument] = Field(default_factory=list, max_length=MAX_ARGUMENTS)
    cwd: GuestPath | None = None
    env: Env = Field(default_factory=dict)
    sudo: bool = False
    timeout: int | None = Field(None, ge=100, le=2**53)
    wait: bool = False
    logs: bool = False
    attachStdin: bool = False


class KillCommand(Body):
    signal: int = Field(15, ge=1, le=64)


class WriteStdin(Body):
    data: str | None = Field(None, json_schema_extra={"contentEncoding": "base64"})
    offset: int | None = Field(None, ge=0, le=2**53)
    close: bool = False

    def decoded(self) -> bytes:
        """The bytes of `data`. Raises `BadRequestError`."""
        if self.data is None:
            return b""
        try:
            return base64.b64decode(self.data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise BadRequestError("bad_request", "Invalid request: `data` should be base64.") from error


class ReadFile(Body):
    path: GuestPath
    cwd: GuestPath | None = None


class MakeDirectory(Body):
    path: GuestPath
    cwd: GuestPath | None = None
    recursive: bool = False
    sudo: bool = False


class TakeSnapshot(Body):
    """`keepRunning` and `memory` are Hutch's own."""

    expiration: Expiration | None = None
    keepRunning: bool = False
    memory: bool = False


class OpenInteractive(Body):
    """Nothing is read from it today."""


class GetOrCreateDrive(Body):
    """What is absent is as it is, or the default."""

    projectId: Text | None = None
    region: Region | None = None
    maxSizeBytes: int | None = Field(None, ge=1, le=MAX_DRIVE_BYTES)


class ForkDrive(Body):
    name: DriveName


class PolicyBody(RootModel[NetworkPolicy]):
    """A network policy as a whole body."""


class PutCredential(Body):
    value: CredentialValue


class PullImage(Body):
    """`name` is another name for the image; `shared` gives it to every project."""

    reference: Text = Field(min_length=1, max_length=255)
    name: Text | None = Field(None, min_length=1, max_length=255)
    shared: bool = False


class ImageAccount(Body):
    """Who runs commands in an image, looked up in its files."""

    name: Text = Field(min_length=1, max_length=256)
    uid: int = Field(ge=0, le=MAX_USER_ID)
    gid: int = Field(ge=0, le=MAX_USER_ID)
    groups: list[Annotated[int, Field(ge=0, le=MAX_USER_ID)]] = Field(default_factory=list, max_length=64)
    home: AbsolutePath = "/"


class ImageSettings(Body):
    """What an image says about itself. `env` and `labels` come over those of the image below; what is absent is as
    there."""

    env: Env = Field(default_factory=dict)
    cwd: AbsolutePath | None = None
    user: ImageAccount | None = None
    labels: Env = Field(default_factory=dict)
    cmd: list[Argument] | None = None
    entrypoint: list[Argument] | None = None

    @model_validator(mode="after")
    def _bounded(self) -> ImageSettings:
        for name in ("env", "labels", "cmd", "entrypoint"):
            if len(msgspec.json.encode(getattr(self, name))) > MAX_IMAGE_FIELD_BYTES:
                raise PydanticCustomError("image", f"should NOT have more than {MAX_IMAGE_FIELD_BYTES} bytes of `{name}`")
        return self


class BuildImage(Body):
    """An image out of a snapshot; `shared` gives it to every project."""

    snapshotId: Text = Field(min_length=1, max_length=64)
    name: Text = Field(min_length=1, max_length=255)
    config: ImageSettings = Field(default_factory=ImageSettings)
    shared: bool = False


class LogIn(Body):
    """A login at a registry."""

    username: Annotated[CredentialValue, _schema(pattern=r"^[!-9;-~]([ -9;-~]*[!-9;-~])?$")]
    password: CredentialValue

    @field_validator("username")
    @classmethod
    def _username(cls, value: str) -> str:
        if ":" in value:
            raise PydanticCustomError("username", "should NOT contain `:`")
        return value


class CreateToken(Body):
    """A new token. `team` and `project` are ids or slugs; an administrator's request creates slugs that do not exist."""

    team: Text | None = Field(None, min_length=1, max_length=64)
    project: Text | None = Field(None, min_length=1, max_length=64)
    role: Role | None = None
    name: Text = Field("", max_length=128)
    ttl_s: int | None = Field(None, ge=60, le=2**40)
    member: Text | None = Field(None, min_length=1, max_length=64)
    scopes: list[Annotated[Text, Field(json_schema_extra={"enum": [str(one) for one in Permission]})]] | None = Field(
        None, max_length=64
    )


class AddMember(Body):
    """A new member of a team."""

    identity: Text = Field(min_length=1, max_length=320, pattern=VISIBLE)
    role: MemberRole
    name: Text = Field("", max_length=128)


class ChangeMember(Body):
    """What changes about a member."""

    role: MemberRole | None = None
    name: Text | None = Field(None, max_length=128)
    disabled: bool | None = None


class BeginLogin(Body):
    """A login of a command line: `challenge` is S256 of a verifier that it keeps (PKCE). With `port` it waits there, on the
    machine of the browser, for what ends the login, which has `state` with it."""

    challenge: str = Field(pattern=CHALLENGE)
    port: int | None = Field(None, ge=1024, le=65_535, strict=True)
    state: str | None = Field(None, pattern=r"^[A-Za-z0-9_-]{16,128}$")
    team: str | None = Field(None, pattern=r"^[A-Za-z0-9_-]{1,64}$")
    project: str | None = Field(None, pattern=r"^[A-Za-z0-9_-]{1,64}$")

    @model_validator(mode="after")
    def _port_with_state(self) -> Self:
        if (self.port is None) is not (self.state is None):
            raise PydanticCustomError("together", "should have `port` and `state` together")
        return self


class EndLogin(Body):
    """What a login's code becomes a token with."""

    code: str = Field(pattern=CHALLENGE)
    verifier: str = Field(pattern=VERIFIER)


class NameTeam(Body):
    """The slug of a team or project that is made or renamed."""

    slug: Text = Field(min_length=1, max_length=64)


class PtyStart(Body):
    """First message of a terminal's WebSocket."""

    type: Literal["start"]
    command: Argument
    args: list[Argument] = Field(default_factory=list, max_length=MAX_ARGUMENTS)
    env: list[Argument] = Field(default_factory=list, max_length=MAX_ENV_ENTRIES)
    cwd: GuestPath | None = None
    cols: int = 80
    rows: int = 24

    @field_validator("command")
    @classmethod
    def _command(cls, value: str) -> str:
        if not value:
            raise PydanticCustomError("command", "should NOT be shorter than 1 characters")
        return value

    def environment(self) -> dict[str, str]:
        """`KEY=VALUE` items as a map; items without `=` are dropped."""
        pairs = (item.partition("=") for item in self.env)
        return {key: value for key, separator, value in pairs if key and separator}


def clamp_size(value: int, fallback: int) -> int:
    """Columns or rows within what a terminal can have; clients without a terminal send 0."""
    return fallback if value <= 0 else min(value, 10_000)


# -- parsing and messages ---------------------------------------------------------------------------


class _WithPolicy(msgspec.Struct):
    networkPolicy: msgspec.Raw = msgspec.Raw()


def raw_policy(raw: bytes) -> bytes | None:
    """The bytes of `networkPolicy` in a body that `parse` accepted, as they were sent: what was parsed once has lost what the
    engine refuses, such as repeated names. None where there is none. Raises `BadRequestError`."""
    try:
        policy = bytes(msgspec.json.decode(raw or b"{}", type=_WithPolicy).networkPolicy)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadRequestError("bad_request", f"Invalid request: the body is not valid JSON: {error}.") from error
    return policy if policy not in (b"", b"null") else None


def parse(model: type[B], raw: bytes) -> B:
    """The body `raw` as `model`; an empty body is `{}`. Raises `BadRequestError`."""
    try:
        return model.model_validate(strict_json.load(raw or b"{}"))
    except ValidationError as error:
        sentence = explain(error)
        # The vendor says this one without the words before it.
        whole = sentence if EXPIRATION_RULE in sentence else f"Invalid request: {sentence}"
        raise BadRequestError("bad_request", whole) from error
    except RecursionError as error:
        raise BadRequestError("bad_request", "Invalid request: the body is nested too deeply.") from error
    except (JSONDecodeError, UnicodeDecodeError) as error:
        raise BadRequestError("bad_request", f"Invalid request: the body is not valid JSON: {error}.") from error
    except ValueError as error:
        raise BadRequestError("bad_request", f"Invalid request: the body {error}.") from error


def explain(error: ValidationError) -> str:
    """The first mistake, as a sentence."""
    return _sentence(error.errors(include_url=False, include_context=True, include_input=False)[0])


_KINDS = {
    "string_type": "string",
    "int_type": "integer",
    "int_from_float": "integer",
    "int_parsing_size": "integer",
    "float_type": "number",
    "bool_type": "boolean",
    "list_type": "array",
    "dict_type": "object",
    "model_type": "object",
    "model_attributes_type": "object",
}
_BOUNDS = {
    "too_long": "should NOT have more than {max_length} items.",
    "string_too_long": "should NOT be longer than {max_length} characters.",
    "string_too_short": "should NOT be shorter than {min_length} characters.",
    "greater_than_equal": "should be >= {ge}.",
    "less_than_equal": "should be <= {le}.",
}


def _sentence(problem: ErrorDetails) -> str:
    kind, context = problem["type"], problem.get("ctx", {})
    if kind in ("too_long", "too_short") and context.get("field_type") == "Value":
        # A bound of a type that has a check of its own: pydantic does not know any more that it is text.
        kind = f"string_{kind}"
    where = _where(problem["loc"])
    if kind == "missing":
        parent, _, name = where.rpartition(".")
        return f"{f'`{parent}` ' if parent else ''}should have required property '{name}'."
    subject = f"`{where}` " if where else ""
    if kind in _KINDS:
        if not subject:
            return "the body should be a JSON object."
        return f"{subject}should be {_KINDS[kind]}."
    if kind in _BOUNDS:
        return f"{subject}{_BOUNDS[kind].format(**context)}"
    if kind == "literal_error":
        allowed = context["expected"].replace("' or '", "', '").replace("'", '"')
        return f"{subject}should be equal to one of the allowed values {allowed}."
    if kind == "string_pattern_mismatch":
        return f'{subject}should match pattern "{context["pattern"].replace(chr(92) + "z", "$")}".'
    return f"{subject}{problem['msg']}."


def _where(location: tuple[int | str, ...]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text[:256]


assert NAME_PATTERN.pattern == r"^[a-zA-Z0-9_-]+$"
