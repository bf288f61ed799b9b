"""The one settings object.

A value comes from, weakest first: the default here, `hutch.toml`, an environment variable `HUTCH_SECTION__KEY`, a
command-line flag. `load` merges them, remembers where each came from (`Settings.source_of`) and refuses unknown keys and
bad values with the key, the value and what is allowed. `docs/configuration.md` documents every key; a test fails when one is
missing there.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from hutch.errors import BadRequestError

DEFAULT_CONFIG_FILE = Path("/etc/hutch/hutch.toml")
ENVIRONMENT_PREFIX = "HUTCH_"
DEFAULT_IMAGE = "vercel/sandbox/universal:latest"
MIB = 1024 * 1024
GIB = 1024 * MIB

_SECRET_KEYS = frozenset({"database.url"})
HOST_SECRETS = frozenset({"blobs.access_key_id", "blobs.secret_access_key"})
"""Nothing of these is ever shown, and only the host gets them."""
MASK = "********"


class Source(StrEnum):
    """Where a value came from, weakest first."""

    DEFAULT = "default"
    FILE = "file"
    ENVIRONMENT = "env"
    FLAG = "flag"


class Backend(StrEnum):
    AUTO = "auto"
    GVISOR = "gvisor"
    QEMU = "qemu"
    FIRECRACKER = "firecracker"


class MinimumIsolation(StrEnum):
    """The weakest backend that `auto` may pick, weakest first."""

    GVISOR = "gvisor"
    QEMU = "qemu"
    FIRECRACKER = "firecracker"


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def _split(value: object) -> object:
    """A list from a JSON array or a comma-separated string; anything else is left for the validator."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.startswith("["):
        try:
            return json.loads(text)
        except ValueError as error:
            raise ValueError(f"is neither a JSON array nor a comma-separated list: {error}") from error
    return [part.strip() for part in text.split(",") if part.strip()]


TextList = Annotated[tuple[str, ...], BeforeValidator(_split)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class ServerSettings(Section):
    """The API process and where everything is kept."""

    listen: str = Field("127.0.0.1:7070", description="Address and port of the API; port 0 takes a free one.")
    public_url: str | None = Field(
        None, description="Base URL that clients use, when a proxy stands in front. Default: from `listen`."
    )
    data_dir: Path = Field(Path("/var/lib/hutch"), description="Directory of all state.")
    user: str = Field("hutch", description="System user that the API process runs as.", min_length=1, max_length=32)
    max_body_bytes: int = Field(MIB, description="Largest JSON request body.", ge=64 * 1024, le=64 * MIB)
    max_header_bytes: int = Field(32 * 1024, description="Largest request line and headers together.", ge=8192, le=MIB)
    max_connections: int = Field(4096, description="Connections at once; more are answered 503.", ge=16, le=1_000_000)
    shutdown_grace_s: int = Field(10, description="Seconds that running requests get to finish on SIGTERM.", ge=0, le=3600)
    log_level: LogLevel = Field(LogLevel.INFO, description="Least severe log record written to standard error.")

    @field_validator("listen")
    @classmethod
    def _listen(cls, value: str) -> str:
        split_listen(value)
        return value

    @field_validator("public_url")
    @classmethod
    def _public_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
            raise ValueError("must be an http:// or https:// URL without query and fragment")
        return value.rstrip("/")

    @field_validator("data_dir")
    @classmethod
    def _data_dir(cls, value: Path) -> Path:
        return value.expanduser().absolute()


class HostSettings(Section):
    """The process that owns this machine's sandboxes."""

    max_sessions: int = Field(
        1000, description="Sessions alive at once on this machine; more are answered 503.", ge=1, le=100_000
    )


class IsolationSettings(Section):
    """How sandboxes are kept apart from the machine and from each other."""

    backend: Backend = Field(Backend.AUTO, description="Isolation backend; `auto` takes the strongest one that a probe boots.")
    minimum: MinimumIsolation = Field(MinimumIsolation.GVISOR, description="Weakest backend that `auto` may take.")
    runsc: Path | None = Field(
        None,
        description="gVisor's `runsc`. Default: `.hutch/bin/runsc` of the checkout, then the one in the package, then `PATH`.",
    )

    def runsc_path(self) -> Path:
        """Where `runsc` is. Raises `FileNotFoundError` naming every place that was looked at."""
        package = Path(__file__).resolve().parent
        if self.runsc is not None:
            places = [self.runsc]
        else:
            places = [package.parents[1] / ".hutch" / "bin" / "runsc", package / "bin" / "runsc"]
            places += [Path(directory) / "runsc" for directory in os.get_exec_path()]
        for place in places:
            if place.is_file() and os.access(place, os.X_OK):
                return place
        looked = ", ".join(str(place) for place in places)
        raise FileNotFoundError(f"runsc is not installed (looked at {looked}). Run `make setup`, or set isolation.runsc.")


class ImageSettings(Section):
    """Root file systems of sandboxes."""

    dir: Path | None = Field(
        None, description="Directory of built images. Default: `.hutch/images` of the checkout, else `<data_dir>/images`."
    )
    registries: TextList = Field(
        (),
        description="Registries (`HOST[:PORT]`) that every project may pull from, `*` for any; they may be at private addresses. "
        "Default: only administrators pull.",
    )
    insecure_registries: TextList = Field(
        (), description="Registries that are spoken to by HTTP without TLS; they may be at private addresses."
    )
    auth_file: Path | None = Field(
        None, description="Logins at registries for pulls of administrators: a file such as Docker's `config.json`."
    )
    max_bytes: int = Field(
        16 * GIB, description="Largest image from a registry, both as it is sent and unpacked.", ge=MIB, le=2**50
    )
    max_entries: int = Field(500_000, description="Most files of an image from a registry.", ge=1, le=2_000_000)
    pull_wait_s: int = Field(
        120, description="How long a create waits for an image that is being pulled before it is answered 503.", ge=1, le=3600
    )

    @field_validator("registries", "insecure_registries")
    @classmethod
    def _registries(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for registry in value:
            if registry != "*" and re.fullmatch(r"[a-z0-9.-]+(:[0-9]+)?|\[[0-9a-f:]+\](:[0-9]+)?", registry) is None:
                raise ValueError(f"has {registry!r}, which is not HOST[:PORT] such as registry.example.com:5000")
        return value

    @field_validator("insecure_registries")
    @classmethod
    def _named(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "*" in value:
            raise ValueError("has '*'; name the registries that have no TLS")
        return value

    @field_validator("auth_file")
    @classmethod
    def _auth_file(cls, value: Path | None) -> Path | None:
        return value.expanduser().absolute() if value is not None else None


class SandboxSettings(Section):
    """Defaults and bounds of sandboxes."""

    default_image: str = Field(DEFAULT_IMAGE, description="Image of sandboxes that name none.", min_length=1, max_length=255)
    default_timeout_ms: int = Field(300_000, description="Time that a session lives when its create names none.", ge=1000)
    max_timeout_ms: int = Field(86_400_000, description="Longest time a session may live, extensions included.", ge=1000)
    default_vcpus: int = Field(2, description="vCPUs when a create names none; memory is 2048 MB each.", ge=1, le=256)
    max_vcpus: int = Field(32, description="Most vCPUs of one sandbox.", ge=1, le=256)
    disk_bytes: int = Field(32 * GIB, description="Writable space of a sandbox, unless its create says otherwise.", ge=16 * MIB)
    log_bytes: int = Field(
        64 * MIB, description="Stored output per command; past it output is dropped with a marker.", ge=64 * 1024
    )
    max_archive_bytes: int = Field(8 * GIB, description="Unpacked size of one uploaded archive.", ge=MIB)
    max_archive_files: int = Field(200_000, description="Entries of one uploaded archive.", ge=1, le=10_000_000)
    region: str = Field(
        "iad1", description="Region that sandboxes report when their create names none.", min_length=1, max_length=32
    )

    @field_validator("max_timeout_ms")
    @classmethod
    def _order(cls, value: int, info: Any) -> int:
        default = info.data.get("default_timeout_ms")
        if default is not None and value < default:
            raise ValueError(f"must not be below sandbox.default_timeout_ms ({default})")
        return value


class PoolSettings(Section):
    """Machines started ahead of time, so that a create only claims one."""

    size: int = Field(2, description="Machines kept ready per image; 0 switches pools off.", ge=0, le=1000)
    images: TextList = Field((), description="Images that get a pool. Default: only `sandbox.default_image`.")
    max_size: int = Field(
        16,
        description="Machines kept ready in all: more than `pool.size` while many are asked for, and some with the files of "
        "snapshots that are used again and again.",
        ge=0,
        le=10_000,
    )
    refill_concurrency: int = Field(2, description="Machines started at once to refill a pool.", ge=1, le=64)


class DatabaseSettings(Section):
    """Where names, tenants and sessions are kept."""

    url: str | None = Field(
        None,
        description="`sqlite:///PATH` or `postgresql://USER:PASSWORD@HOST/NAME`. Default: `<data_dir>/control/hutch.db`.",
    )

    @field_validator("url")
    @classmethod
    def _url(cls, value: str | None) -> str | None:
        if value is not None and not re.match(r"(sqlite|postgresql)(\+\w+)?://", value):
            raise ValueError("must start with sqlite:// or postgresql://")
        return value


class BlobSettings(Section):
    """Where copies of snapshots are kept besides this machine's own."""

    url: str = Field(
        "",
        description="`local` (`host/blobs` of the data directory), `file:///PATH` or `s3://BUCKET/PREFIX`. Empty: none.",
    )
    endpoint: str | None = Field(None, description="URL of the S3 server. Default: that of AWS for the region.")
    region: str | None = Field(None, description="Region of the bucket.")
    access_key_id: str | None = Field(None, description="Key of the S3 server.")
    secret_access_key: str | None = Field(None, description="Its secret.")
    concurrency: int = Field(4, description="Requests to the store at once per snapshot.", ge=1, le=64)
    grace_s: int = Field(
        86_400,
        description="Seconds that what no snapshot needs stays in the store; uploads must be faster.",
        ge=0,
        le=30 * 86_400,
    )

    @field_validator("url")
    @classmethod
    def _url(cls, value: str) -> str:
        parts = urlsplit(value)
        absolute = parts.scheme == "file" and not parts.netloc and parts.path.startswith("/")
        if value in ("", "local") or absolute or (parts.scheme == "s3" and parts.netloc):
            return value
        raise ValueError("must be empty, local, file:///PATH or s3://BUCKET/PREFIX")

    @field_validator("endpoint")
    @classmethod
    def _endpoint(cls, value: str | None) -> str | None:
        if value is not None and (urlsplit(value).scheme not in ("http", "https") or not urlsplit(value).netloc):
            raise ValueError("must be an http:// or https:// URL")
        return value


class LimitSettings(Section):
    """What a project may have at most."""

    snapshot_bytes_per_project: int = Field(
        0,
        description="Bytes that the snapshots of a project, and the images made of them, may hold; with more neither can be "
        "asked for. 0: any number.",
        ge=0,
    )


class TokenSettings(Section):
    """Bearer tokens."""

    default_ttl_s: int = Field(30 * 86_400, description="Life of a new token that names none, in seconds.", ge=60)
    max_ttl_s: int = Field(366 * 86_400, description="Longest life of a token, in seconds.", ge=60)


class Audit(StrEnum):
    """Which decisions of the egress firewall are recorded."""

    ALL = "all"
    DENIALS = "denials"


class EgressSettings(Section):
    """What sandboxes may reach at most, and how the gateway reaches it."""

    dns_upstreams: TextList = Field(
        (), description="Resolvers (`ADDR:PORT`) that the gateway asks. Default: those of the machine."
    )
    extra_trust_roots: Path | None = Field(
        None, description="PEM file of certificate authorities that servers may have besides those of the machine."
    )
    allow_private: TextList = Field(
        (),
        description="Ranges (CIDR) that policies may open although they are private; "
        "never loopback, metadata, own or sandbox addresses.",
    )
    audit: Audit = Field(Audit.ALL, description="Decisions that are recorded.")
    max_flows: int = Field(1024, description="Connections of one sandbox at once; more are refused.", ge=1, le=1_000_000)
    flows_per_second: int = Field(
        200, description="New connections of one sandbox per second, five times as many in a burst.", ge=1, le=1_000_000
    )
    max_upload_bytes: int = Field(
        4 * 1024**3,
        description="Largest body of one request to a name with rules; more is refused, or cut where no length was said.",
        ge=65_536,
        le=2**50,
    )
    policy: Path | None = Field(
        None, description="JSON file with a network policy within which all others hold; read when the server starts."
    )

    @field_validator("dns_upstreams")
    @classmethod
    def _dns_upstreams(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for upstream in value:
            try:
                host, port = split_listen(upstream)
                ip_address(host)
            except ValueError as error:
                raise ValueError(f"has {upstream!r}, which is not ADDR:PORT such as 198.51.100.53:53") from error
            if port == 0:
                raise ValueError(f"has {upstream!r}, and no server listens on port 0")
        return value

    @field_validator("allow_private")
    @classmethod
    def _allow_private(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        # Which of them can be opened at all is the policy engine's to say; this only tells a range from a slip of the pen.
        for text in value:
            try:
                ip_network(text)
            except ValueError as error:
                raise ValueError(f"has {text!r}, which is not a range such as 10.20.0.0/16") from error
        return value

    @field_validator("extra_trust_roots", "policy")
    @classmethod
    def _file(cls, value: Path | None) -> Path | None:
        return value.expanduser().absolute() if value is not None else None


class Settings(BaseSettings):
    """Every setting, by section. Make one with `load`."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, validate_default=True)

    server: ServerSettings = Field(default_factory=ServerSettings)
    host: HostSettings = Field(default_factory=HostSettings)
    isolation: IsolationSettings = Field(default_factory=IsolationSettings)
    image: ImageSettings = Field(default_factory=ImageSettings)
    sandbox: SandboxSettings = Field(default_factory=SandboxSettings)
    pool: PoolSettings = Field(default_factory=PoolSettings)
    database: DatabaseSettings = Field(default_factory=DatabaseSettings)
    blobs: BlobSettings = Field(default_factory=BlobSettings)
    limits: LimitSettings = Field(default_factory=LimitSettings)
    tokens: TokenSettings = Field(default_factory=TokenSettings)
    egress: EgressSettings = Field(default_factory=EgressSettings)

    _sources: dict[str, tuple[Source, str]] = PrivateAttr(default_factory=dict)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `load` merged: it knows the source of each value, which pydantic-settings forgets."""
        return (init_settings,)

    def source_of(self, key: str) -> tuple[Source, str]:
        """The source of `section.key` and its name (file path, variable or flag)."""
        return self._sources.get(key, (Source.DEFAULT, ""))

    def effective(self) -> list[EffectiveValue]:
        """Every key with its value and source, secrets masked."""
        values = []
        for section in type(self).model_fields:
            model: Section = getattr(self, section)
            for name in type(model).model_fields:
                key = f"{section}.{name}"
                value = getattr(model, name)
                source, origin = self.source_of(key)
                values.append(EffectiveValue(key, mask(key, value), source, origin))
        return values

    # -- paths below the data directory -------------------------------------------------------------

    @property
    def control_dir(self) -> Path:
        """Database and keys; belongs to the API's user."""
        return self.server.data_dir / "control"

    @property
    def host_dir(self) -> Path:
        """The host's journal, layers and logs; root only."""
        return self.server.data_dir / "host"

    @property
    def run_dir(self) -> Path:
        """Sockets."""
        return self.server.data_dir / "run"

    @property
    def host_socket(self) -> Path:
        return self.run_dir / "host.sock"

    def image_dir(self) -> Path:
        if self.image.dir is not None:
            return self.image.dir.expanduser().absolute()
        checkout = Path(__file__).resolve().parents[2] / ".hutch" / "images"
        return checkout if checkout.is_dir() else self.server.data_dir / "images"

    def pool_images(self) -> tuple[str, ...]:
        return self.pool.images or (self.sandbox.default_image,)

    def database_url(self) -> str:
        return self.database.url or f"sqlite:///{self.control_dir / 'hutch.db'}"


@dataclass(frozen=True, slots=True)
class EffectiveValue:
    """One line of `hutch config show`. `origin` names the file, variable or flag."""

    key: str
    value: Any
    source: Source
    origin: str


class SettingsError(BadRequestError):
    """A configuration that can't be meant; the message names key, value, source and what is allowed."""

    def __init__(self, message: str) -> None:
        super().__init__("invalid_configuration", message)


def split_listen(value: str) -> tuple[str, int]:
    """`HOST:PORT` as host (an IP address, without brackets, or a name) and port. Raises `ValueError`."""
    host, separator, port = value.rpartition(":")
    if not separator or not host or not port.isdecimal() or not 0 <= int(port) <= 65535:
        raise ValueError("must be HOST:PORT with a port from 0 to 65535, for example 127.0.0.1:7070")
    if host.startswith("[") and host.endswith("]"):
        return str(ip_address(host[1:-1])), int(port)
    if ":" in host:
        raise ValueError("must have an IPv6 address in brackets, for example [::1]:7070")
    return host, int(port)


def mask(key: str, value: Any) -> Any:
    """`value` without its secrets."""
    if key in HOST_SECRETS and value:
        return MASK
    if key in _SECRET_KEYS and isinstance(value, str):
        return re.sub(r"(://[^:/@]*):[^@]*@", rf"\1:{MASK}@", value)
    return value


def load(
    config_file: Path | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> Settings:
    """The effective settings. Raises `SettingsError`.

    `config_file` defaults to `$HUTCH_CONFIG`, then `/etc/hutch/hutch.toml` where that exists. `flags` maps `section.key` to
    what a command-line flag said; None means the flag was not given.
    """
    environment = os.environ if environment is None else environment
    merged: dict[str, dict[str, object]] = {}
    sources: dict[str, tuple[Source, str]] = {}

    def put(section: str, key: str, value: object, source: Source, origin: str) -> None:
        _check_known(section, key, origin)
        merged.setdefault(section, {})[key] = value
        sources[f"{section}.{key}"] = (source, origin)

    path = _config_path(config_file, environment)
    if path is not None:
        for section, content in _read_toml(path).items():
            if not isinstance(content, dict):
                raise SettingsError(f"{path}: `{section}` must be a section [{section}], not a value.")
            if section not in Settings.model_fields:
                _check_known(section, "", str(path))
            for key, value in content.items():
                put(section, key, value, Source.FILE, str(path))
    for variable, text in environment.items():
        section, separator, key = variable.removeprefix(ENVIRONMENT_PREFIX).partition("__")
        if variable.startswith(ENVIRONMENT_PREFIX) and separator:
            put(section.lower(), key.lower(), text, Source.ENVIRONMENT, variable)
    for dotted, flag in (flags or {}).items():
        if flag is not None:
            section, _, key = dotted.partition(".")
            put(section, key, flag, Source.FLAG, "the command line")
    try:
        settings = Settings.model_validate(merged)
    except ValidationError as error:
        raise SettingsError(_explain(error, sources)) from error
    settings._sources.update(sources)
    return settings


def _config_path(given: Path | None, environment: Mapping[str, str]) -> Path | None:
    if given is None and environment.get("HUTCH_CONFIG"):
        given = Path(environment["HUTCH_CONFIG"])
    if given is not None:
        return given
    return DEFAULT_CONFIG_FILE if DEFAULT_CONFIG_FILE.is_file() else None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"The configuration file {path} can't be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"The configuration file {path} is not valid TOML: {error}.") from error


def _section(name: str) -> type[Section]:
    annotation = Settings.model_fields[name].annotation
    assert isinstance(annotation, type)
    assert issubclass(annotation, Section)
    return annotation


def _check_known(section: str, key: str, origin: str) -> None:
    if section not in Settings.model_fields:
        allowed = ", ".join(Settings.model_fields)
        raise SettingsError(f"{origin}: there is no section `{section}`; the sections are {allowed}.")
    if key and key not in _section(section).model_fields:
        allowed = ", ".join(_section(section).model_fields)
        raise SettingsError(f"{origin}: there is no key `{section}.{key}`; the keys of `{section}` are {allowed}.")


def _explain(error: ValidationError, sources: Mapping[str, tuple[Source, str]]) -> str:
    sentences = []
    for problem in error.errors(include_url=False):
        key = ".".join(str(part) for part in problem["loc"][:2])
        origin = sources.get(key, (Source.DEFAULT, ""))[1] or "default"
        value = mask(key, problem["input"])
        reason = problem["msg"].removeprefix("Value error, ")
        sentences.append(f"{origin}: `{key}` is {value!r}, but {_lower_first(reason)}.")
    return " ".join(sentences)


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
