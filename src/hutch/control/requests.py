"""Bodies of requests: what is allowed in each, and one message per mistake.

`parse` turns bytes into a model or raises `BadRequestError` whose message has the form that clients of this API know:
``Invalid request: `ports` should NOT have more than 15 items.`` Unknown fields are ignored (clients send private ones, and
newer clients newer ones); a `null` counts as absent except where it means "clear this".
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import msgspec
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, RootModel, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from hutch.control.mounts import MAX_MOUNT_PATH, canonical_path, mount_problem, overlap
from hutch.control.names import MAX_DRIVE_NAME_LENGTH, MAX_NAME_LENGTH, NAME_PATTERN, RESERVED_NAMES, is_name
from hutch.errors import BadRequestError, PayloadTooLargeError

DAY_MS = 86_400_000
TEN_YEARS_MS = 3650 * DAY_MS
MEMORY_MB_PER_VCPU = 2048
MAX_FORKS = 100
MAX_PORTS = 15
MAX_TAGS = 5
MAX_PATH_BYTES = 4095
MAX_ARGUMENTS = 32_768
MAX_ARGUMENT_BYTES = 131_071
MAX_ENV_ENTRIES = 4096
"""Linux refuses a longer path (PATH_MAX) and a longer argument or environment string (MAX_ARG_STRLEN)."""
MAX_STDIN_BYTES = 1_000_000
MAX_CREDENTIAL_BYTES = 8192
MIN_DISK_BYTES = 16 * 1024 * 1024
MAX_DISK_BYTES = 64 * 1024**4
MAX_MOUNTS = 4
MAX_DRIVE_BYTES = 16 * 1024**4
MAX_USER_ID = 2**32 - 2
MAX_IMAGE_FIELD_BYTES = 16 * 1024

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
    if value != 0 and not DAY_MS <= value <= TEN_YEARS_MS:
        raise PydanticCustomError("expiration", "must be 0 (no expiration) or >= 86400000 ms (1 day)")
    return value


def _credential(value: str) -> str:
    # It becomes part of a header, whose ends are trimmed on the way.
    if not 1 <= len(value) <= MAX_CREDENTIAL_BYTES or not value.isascii() or not value.isprintable() or value != value.strip():
        raise PydanticCustomError(
            "credential",
            f"should be 1 to {MAX_CREDENTIAL_BYTES} visible ASCII characters, with spaces only between them and no line breaks",
        )
    return value


Text = Annotated[str, AfterValidator(_no_nul)]
Argument = Annotated[str, AfterValidator(_argument)]
GuestPath = Annotated[str, AfterValidator(_path)]
Env = Annotated[dict[str, str], AfterValidator(_env)]
Tags = Annotated[dict[str, str], AfterValidator(_tags)]
Port = Annotated[int, Field(ge=1024, le=65535)]
Ports = Annotated[list[Port], Field(max_length=MAX_PORTS), AfterValidator(_ports)]
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME_LENGTH, pattern=r"^[a-zA-Z0-9_-]+\z"), AfterValidator(_name)]
DriveName = Annotated[str, Field(min_length=1, max_length=MAX_DRIVE_NAME_LENGTH, pattern=r"^[a-zA-Z0-9_-]+\z")]
Region = Annotated[str, Field(min_length=1, max_length=32, pattern=r"^[a-z0-9-]+\z")]
POLICY_SCHEMA: dict[str, Any] = {"anyOf": [{"enum": ["allow-all", "deny-all"]}, {"type": "object"}]}
NetworkPolicy = Annotated[Any, Field(json_schema_extra=POLICY_SCHEMA)]
Expiration = Annotated[int, AfterValidator(_expiration)]
CredentialValue = Annotated[str, AfterValidator(_credential)]
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
    vcpus: int = Field(ge=1)
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


Mounts = Annotated[dict[str, Mount], AfterValidator(_mounts)]


class SandboxFields(Body):
    """What create, fork and update have in common. `networkPolicy` is read by the policy engine, from `raw_policy`."""

    nullable = frozenset({"keepLastSnapshots", "networkId"})

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


class CreateSandbox(SandboxFields):
    """Body of a create. `disk_bytes` is Hutch's own."""

    projectId: Text | None = None
    name: Name | None = None
    source: SandboxSource | None = None
    image: Text | None = Field(None, min_length=1, max_length=255)
    runtime: Runtime | None = None
    disk_bytes: int | None = Field(None, ge=MIN_DISK_BYTES, le=MAX_DISK_BYTES)

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


class ExtendTimeout(Body):
    duration: int = Field(ge=1000)


class StartCommand(Body):
    command: Argument = ""
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
    data: str | None = None
    offset: int | None = Field(None, ge=0, le=2**53)
    close: bool = False

    def decoded(self) -> bytes:
        """The bytes of `data`. Raises `BadRequestError`, or `PayloadTooLargeError` above 1 MB."""
        if self.data is None:
            return b""
        try:
            raw = base64.b64decode(self.data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise BadRequestError("bad_request", "Invalid request: `data` should be base64.") from error
        if len(raw) > MAX_STDIN_BYTES:
            raise PayloadTooLargeError(
                "payload_too_large", f"`data` holds {len(raw)} bytes; at most {MAX_STDIN_BYTES} are taken at once."
            )
        return raw


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
    home: GuestPath = "/"

    @field_validator("home")
    @classmethod
    def _home(cls, value: str) -> str:
        return _absolute(value)


class ImageSettings(Body):
    """What an image says about itself. `env` and `labels` come over those of the image below; what is absent is as
    there."""

    env: Env = Field(default_factory=dict)
    cwd: GuestPath | None = None
    user: ImageAccount | None = None
    labels: Env = Field(default_factory=dict)
    cmd: list[Argument] | None = None
    entrypoint: list[Argument] | None = None

    @field_validator("cwd")
    @classmethod
    def _cwd(cls, value: str | None) -> str | None:
        return _absolute(value) if value is not None else None

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

    username: CredentialValue
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
    role: Literal["member", "owner", "admin"] = "member"
    name: Text = Field("", max_length=128)
    ttl_s: int | None = Field(None, ge=60, le=2**40)


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
        return model.model_validate_json(raw or b"{}")
    except ValidationError as error:
        raise BadRequestError("bad_request", f"Invalid request: {explain(error)}") from error
    except RecursionError as error:
        raise BadRequestError("bad_request", "Invalid request: the body is nested too deeply.") from error


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
    where = _where(problem["loc"])
    if kind == "json_invalid":
        return f"the body is not valid JSON: {context.get('error', '')}."
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
