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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from hutch.control.permissions import MemberRole
from hutch.errors import BadRequestError

DEFAULT_CONFIG_FILE = Path("/etc/hutch/hutch.toml")
ENVIRONMENT_PREFIX = "HUTCH_"
DEFAULT_IMAGE = "vercel/sandbox/universal:latest"
INGRESS_PORT = 7071
WEBHOOK_LABEL = "webhooks"
"""Of webhooks below `ingress.domain`; no sandbox has it (`crates/net/src/ingress/name.rs`)."""
VENDOR_REGIONS = tuple(
    "arn1 bom1 cdg1 cle1 cpt1 dub1 dxb1 fra1 gru1 hkg1 hnd1 iad1 icn1 kix1 lhr1 pdx1 sfo1 sin1 syd1 yul1".split()
)
"""What the vendor calls its regions: clients send the name of the one that they are in themselves."""
MIB = 1024 * 1024
GIB = 1024 * MIB

_SECRET_KEYS = frozenset({"database.url"})
HOST_SECRETS = frozenset({"blobs.access_key_id", "blobs.secret_access_key"})
"""Nothing of these is ever shown, and only the host gets them."""
API_SECRETS = frozenset({"sso.client_secret", "telemetry.headers"})
"""Nothing of these is ever shown, and only the API process gets them."""
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


class QemuAccelerator(StrEnum):
    """What runs the guests of `qemu`; with `auto` KVM where a machine boots with it, else emulation."""

    AUTO = "auto"
    KVM = "kvm"
    TCG = "tcg"


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
BackendList = Annotated[tuple[MinimumIsolation, ...], BeforeValidator(_split)]


def _parsed(value: object) -> object:
    """What JSON text says; anything else is left for the validator."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else ()
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not a JSON array: {error}") from error


def _provider_url(value: str) -> str:
    """An issuer: https, or http on this machine. Raises `ValueError`."""
    parts = urlsplit(value)
    local = parts.hostname in ("localhost", "127.0.0.1", "::1")
    if parts.scheme not in (("http", "https") if local else ("https",)) or not parts.hostname:
        raise ValueError("must be an https:// URL (http:// only on this machine)")
    if parts.query or parts.fragment or parts.username is not None or len(value) > 200:
        raise ValueError("must be a URL of at most 200 characters without user, query and fragment")
    return value


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
    max_connections_per_client: int = Field(
        2048,
        description="Connections of one address at once; more are answered 503. 0: any number, as behind a proxy.",
        ge=0,
        le=1_000_000,
    )
    header_timeout_s: int = Field(30, description="Seconds for the head of a request.", ge=1, le=600)
    keep_alive_s: int = Field(75, description="Seconds that a connection stays open without a request.", ge=1, le=3600)
    body_timeout_s: int = Field(
        60,
        description="Seconds in which `server.body_min_bytes` more of a request's body, or its end, have to come while the "
        "server waits for it; else 408. Who sends faster may take as long as it takes.",
        ge=1,
        le=3600,
    )
    body_min_bytes: int = Field(1024, description="See `server.body_timeout_s`.", ge=1, le=MIB)
    stall_timeout_s: int = Field(
        600,
        description="Seconds until a connection is closed whose client takes nothing of what is sent to it. One to which nothing "
        "is to be said stays.",
        ge=1,
        le=86_400,
    )
    shutdown_grace_s: int = Field(
        10,
        description="Seconds that running requests get to finish on SIGTERM, and after them jobs and syncs of workers.",
        ge=0,
        le=3600,
    )
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


class FirecrackerSettings(Section):
    """Firecracker, which is in no registry of packages: its programs are named here."""

    binary: Path | None = Field(None, description="Firecracker's program, linked statically. Default: no Firecracker.")
    jailer: Path | None = Field(None, description="Its jailer, of the same release. Sandboxes are never started without one.")
    kernel: Path | None = Field(
        None,
        description="Kernel of its guests: an ELF `vmlinux`, or a `bzImage` that holds one. Default: the one of `make setup`.",
    )
    kernel_args: str | None = Field(
        None,
        description="The kernel's command line, to which Hutch adds words of its own. "
        "Default: a console on the serial line, and an end at each panic.",
        max_length=1500,
    )
    boot_timeout_s: int = Field(
        120, description="Seconds until the agent of a machine must have answered, from a start or a snapshot.", ge=1, le=86_400
    )
    api_timeout_s: int = Field(60, description="Seconds for each answer of Firecracker's API.", ge=1, le=86_400)

    @field_validator("binary", "jailer", "kernel")
    @classmethod
    def _path(cls, value: Path | None) -> Path | None:
        return value.expanduser().absolute() if value is not None else None

    @field_validator("kernel_args")
    @classmethod
    def _one_line(cls, value: str | None) -> str | None:
        if value is not None and not (value.isascii() and value.isprintable()):
            raise ValueError("must be one line of printable ASCII characters")
        return value


class IsolationSettings(Section):
    """How sandboxes are kept apart from the machine and from each other."""

    backend: Backend = Field(
        Backend.AUTO, description="Isolation backend; `auto` takes the strongest one that a probe boots, and emulates nothing."
    )
    minimum: MinimumIsolation = Field(
        MinimumIsolation.GVISOR, description="Weakest backend that `auto` may take, and that a sandbox may be created under."
    )
    also: BackendList = Field(
        (), description="Further backends, which a sandbox may be created under by naming one (`isolation`)."
    )
    runsc: Path | None = Field(
        None,
        description="gVisor's `runsc`. Default: `.hutch/bin/runsc` of the checkout, then the one in the package, then `PATH`.",
    )
    qemu: str = Field(
        "qemu-system-x86_64", description="QEMU's program: a name in the system's directories, or a path.", min_length=1
    )
    qemu_accelerator: QemuAccelerator = Field(
        QemuAccelerator.AUTO,
        description="What runs the guests of `qemu`. `auto`: KVM where a machine boots with it, else emulation (`tcg`).",
    )
    firecracker: FirecrackerSettings = Field(default_factory=FirecrackerSettings, description="See `isolation.firecracker`.")

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
    regions: TextList = Field(
        VENDOR_REGIONS, description="What else a request may name as its region. All of them are where this server is."
    )
    source_timeout_ms: int = Field(
        240_000, description="Time within which the `source` of a create (git, tarball) has to be fetched.", ge=1000
    )

    def known_regions(self) -> frozenset[str]:
        """What a request may name as its region."""
        return frozenset((self.region, *self.regions))

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
    requests_per_minute: int = Field(
        100_000,
        description="Requests of a project to the API in a minute, and at once after a rest; more are answered 429. Creations "
        "and deletions of sandboxes have their own limits. 0: any number.",
        ge=0,
    )
    creates_per_minute: int = Field(
        5_000,
        description="Creates and forks of a project in a minute, and at once after a rest; a fork of `count` sandboxes is so "
        "many. 0: any number.",
        ge=0,
    )
    deletes_per_second: int = Field(200, description="Sandboxes that a project may delete in a second. 0: any number.", ge=0)
    unauthorized_per_minute: int = Field(
        1_000,
        description="Requests of one address (IPv6: of one /64) without a valid token in a minute, and at once after a rest; "
        "more are answered 429 instead of 401. Those with one are not concerned. 0: any number.",
        ge=0,
    )
    logins_per_minute: int = Field(
        60,
        description="Steps of logins (`sso`) of one address (IPv6: of one /64) in a minute, and at once after a rest; more are "
        "answered 429. 0: any number.",
        ge=0,
    )
    concurrent_sandboxes: int = Field(
        10_000, description="Sandboxes of a project that may run at once; more are answered 429. 0: any number.", ge=0
    )


class TokenSettings(Section):
    """Bearer tokens."""

    default_ttl_s: int = Field(30 * 86_400, description="Life of a new token that names none, in seconds.", ge=60)
    max_ttl_s: int = Field(366 * 86_400, description="Longest life of a token, in seconds.", ge=60)


class RoleRule(BaseModel):
    """A claim of a login, and the role in a team that it gives: `claim` is that text, or a list that has it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    claim: str = Field(min_length=1, max_length=128)
    value: str = Field(min_length=1, max_length=512)
    team: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    role: MemberRole


RoleRules = Annotated[tuple[RoleRule, ...], BeforeValidator(_parsed)]


class SsoSettings(Section):
    """Logins by an OpenID provider."""

    issuer: str | None = Field(None, description="The provider: its issuer, exactly as it calls itself. Default: no logins.")
    client_id: str | None = Field(None, description="Who this server is to the provider.", min_length=1, max_length=255)
    client_secret: str | None = Field(None, description="Its secret. Default: none, as a public client has.", min_length=1)
    scopes: TextList = Field(("openid", "email", "profile"), description="Scopes that are asked for; `openid` has to be in them.")
    roles: RoleRules = Field(
        (), description="Which claims give which role in which team. Default: only members that were added can log in."
    )
    email_domains: TextList = Field(
        (), description="Domains of which a verified e-mail address has to be. Default: any, and none is needed."
    )
    session_ttl_s: int = Field(12 * 3600, description="Life of a login's token, in seconds.", ge=60, le=31 * 86_400)

    @field_validator("issuer")
    @classmethod
    def _issuer(cls, value: str | None) -> str | None:
        return _provider_url(value) if value is not None else None

    @field_validator("client_id")
    @classmethod
    def _client_id(cls, value: str | None, info: Any) -> str | None:
        if (value is None) != (info.data.get("issuer") is None):
            raise ValueError("must be given together with sso.issuer")
        return value

    @field_validator("scopes")
    @classmethod
    def _scopes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "openid" not in value or any(re.fullmatch(r"[!#-\[\]-~]{1,128}", scope) is None for scope in value):
            raise ValueError("must be scopes without spaces, `openid` among them")
        return value

    @field_validator("email_domains")
    @classmethod
    def _email_domains(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for domain in value:
            if re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", domain) is None:
                raise ValueError(f"has {domain!r}, which is not a domain in small letters such as example.com")
        return value

    @property
    def enabled(self) -> bool:
        return self.issuer is not None


class TelemetrySettings(Section):
    """Metrics that are sent elsewhere."""

    otlp_endpoint: str | None = Field(
        None, description="URL of an OpenTelemetry collector that takes metrics by OTLP over HTTP. Default: nothing is sent."
    )
    headers: Annotated[tuple[str, ...], BeforeValidator(_split)] = Field(
        (), description="Headers (`NAME=VALUE`) of what is sent there, as for its authorization."
    )
    interval_s: int = Field(30, description="Seconds from one sending to the next.", ge=1, le=3600)
    timeout_s: int = Field(10, description="Seconds that the collector has for one.", ge=1, le=300)
    service_name: str = Field("hutch", description="`service.name` of the metrics.", min_length=1, max_length=255)

    @field_validator("otlp_endpoint")
    @classmethod
    def _otlp_endpoint(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("must be an http:// or https:// URL without query and fragment")
        # Without a path it is the collector as a whole, which has metrics there.
        return value if parts.path.strip("/") else f"{value.rstrip('/')}/v1/metrics"

    @field_validator("headers")
    @classmethod
    def _headers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for number, header in enumerate(value, 1):
            # What is wrong with it is not said with its value.
            if re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+=[\t -~]*", header) is None:
                raise ValueError(f"must be headers NAME=VALUE in ASCII, and number {number} is none")
        return value

    def header_map(self) -> dict[str, str]:
        """Names in small letters → values."""
        return {name.lower(): text for name, _, text in (header.partition("=") for header in self.headers)}


class BillingSettings(Section):
    """Usage windows and prices."""

    window_s: int = Field(
        60, description="Seconds after which a running session's usage is written down and passed on.", ge=1, le=3600
    )
    prices: Path | None = Field(
        None, description="JSON file with a price table; read when the server starts. Default: a table in US dollars."
    )


class WebhookSettings(Section):
    """Where events are sent."""

    private_hosts: TextList = Field(
        (),
        description="Hosts (`HOST[:PORT]`) of webhooks that may be at private and loopback addresses, and spoken to by HTTP "
        "without TLS. Default: none; webhooks are HTTPS to public addresses.",
    )

    @field_validator("private_hosts")
    @classmethod
    def _hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for host in value:
            if re.fullmatch(r"[a-z0-9.-]+(:[0-9]+)?|\[[0-9a-f:]+\](:[0-9]+)?", host) is None:
                raise ValueError(f"has {host!r}, which is not HOST[:PORT] such as hooks.example.com:8443")
        return value


class WorkerSettings(Section):
    """Workers: how they are built and run."""

    image: str | None = Field(None, description="Image that workers are built and run on. Default: `sandbox.default_image`.")
    vcpus: int = Field(2, description="vCPUs of builds and runs; memory is 2048 MB each.", ge=1, le=32)
    registries: TextList = Field(
        (),
        description="Names that a build may reach while it installs packages, and nothing else. Default: the registry that npm "
        "in the image is set to.",
    )
    build_timeout_s: int = Field(600, description="Seconds for each step of a build.", ge=10, le=3600)
    run_timeout_s: int = Field(300, description="Seconds for one run.", ge=1, le=86_400)
    max_archive_bytes: int = Field(64 * MIB, description="Largest uploaded source archive.", ge=MIB, le=4 * GIB)
    oauth_hosts: TextList = Field(
        (),
        description="Token endpoints of OAuth providers (`HOST[:PORT]`) that may be at private or loopback addresses.",
    )
    notion_hosts: TextList = Field(
        (),
        description="APIs like Notion's (`HOST[:PORT]`) into which rows are mirrored and that may be at private or loopback "
        "addresses.",
    )
    oauth_clients: Path | None = Field(
        None,
        description="JSON file with the operator's apps at OAuth providers, for workers that name a provider and have no app of "
        "their own; read when it is needed.",
    )
    webhook_url: str | None = Field(
        None,
        description="Base URL of webhooks where they have a name of their own, such as https://hooks.example.com: at that name "
        "the API has webhooks and nothing else. Default: the ingress's.",
    )
    run_cpu_s: int = Field(0, description="Most CPU seconds of one run, over all vCPUs; 0: any number.", ge=0, le=10_000_000)
    run_egress_bytes: int = Field(0, description="Most bytes that one run may send; 0: any number.", ge=0, le=2**50)
    run_money_nano: int = Field(
        0, description="Most that one run may cost, in nano-units of the price table; 0: anything.", ge=0, le=2**60
    )
    warm_s: int = Field(
        300,
        description="Seconds after a tool was called for which a sandbox with the worker loaded waits for the next call; "
        "0: none does.",
        ge=0,
        le=86_400,
    )
    max_warm: int = Field(8, description="Most sandboxes that wait so.", ge=0, le=10_000)
    max_ahead: int = Field(
        128,
        description="Most sandboxes that are begun before the syncs are due that they are for, about 50 MB each, and none while "
        "less than a quarter of the memory is free; 0: none is.",
        ge=0,
        le=10_000,
    )
    log_bytes: int = Field(MIB, description="Bytes that are kept of what a run writes.", ge=16 * 1024, le=64 * MIB)
    run_concurrency: int = Field(
        8,
        description="Most queued deliveries and triggers that one API process runs at once, and most requests to webhooks that "
        "it has verified at once; one project half of the latter.",
        ge=1,
        le=10_000,
    )
    max_queued: int = Field(
        10_000, description="Most deliveries and triggers of a project that wait; 0: any number.", ge=0, le=10_000_000
    )
    max_webhook_bytes: int = Field(MIB, description="Largest body of a request to a webhook.", ge=1024, le=5 * MIB)
    webhook_requests_per_minute: int = Field(
        600, description="Most requests to the webhooks of one worker per minute; 0: any number.", ge=0, le=1_000_000
    )
    project_webhook_requests_per_minute: int = Field(
        1200, description="The same for all workers of a project.", ge=0, le=1_000_000
    )
    deliveries_per_minute: int = Field(
        60, description="Most webhook events of a project that are queued per minute; 0: any number.", ge=0, le=1_000_000
    )
    deliveries_per_hour: int = Field(600, description="The same per hour.", ge=0, le=10_000_000)
    queued_runs_per_minute: int = Field(
        60,
        description="Most queued deliveries and triggers of a project that are run per minute, others wait; 0: any number.",
        ge=0,
        le=1_000_000,
    )
    queued_runs_per_hour: int = Field(600, description="The same per hour.", ge=0, le=10_000_000)
    limit_tools: bool = Field(
        False,
        description="Whether runs of tools count among the queued ones of a project, and are refused (429) beyond that.",
    )
    sync_runs_per_minute: int = Field(
        0, description="Most runs of syncs of a project per minute, others wait; 0: any number.", ge=0, le=1_000_000
    )
    sync_runs_per_hour: int = Field(0, description="The same per hour.", ge=0, le=10_000_000)
    row_changes_per_minute: int = Field(
        0,
        description="Most rows that syncs of a project change and delete per minute; what a run returns is written whole, and "
        "the next runs wait. 0: any number.",
        ge=0,
        le=1_000_000_000,
    )
    row_changes_per_hour: int = Field(0, description="The same per hour.", ge=0, le=1_000_000_000)
    build_burst: int = Field(
        0, description="Most builds of a project in five minutes, more are refused (429); 0: any number.", ge=0, le=1_000_000
    )
    builds_per_day: int = Field(0, description="The same per day.", ge=0, le=10_000_000)
    keep_layers_s: int = Field(
        2_592_000,
        description="Seconds for which installed dependencies that no deploy used are kept for the next one with the same; "
        "0: they are installed each time.",
        ge=0,
        le=315_360_000,
    )
    keep_runs_s: int = Field(
        2_592_000,
        description="Seconds after its end for which a run is kept, with what it was given, returned and wrote, and a delivery "
        "or trigger with its idempotency key; 0: for ever.",
        ge=0,
        le=315_360_000,
    )
    sync_concurrency: int = Field(
        128, description="Most runs of syncs at once that this process schedules; 0: it schedules none.", ge=0, le=1000
    )

    @field_validator("oauth_clients")
    @classmethod
    def _file(cls, value: Path | None) -> Path | None:
        return value.expanduser().absolute() if value is not None else None

    @field_validator("webhook_url")
    @classmethod
    def _webhook_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.rstrip("/") or parts.query or parts.fragment:
            raise ValueError("must be an http:// or https:// URL without a path")
        return value.rstrip("/")

    def run_budget(self) -> dict[str, int] | None:
        """What one run may use, by limit of a budget; None: as much as its project may."""
        limits = {
            "active_cpu_us": self.run_cpu_s * 1_000_000,
            "egress_bytes": self.run_egress_bytes,
            "money_nano": self.run_money_nano,
        }
        return {name: limit for name, limit in limits.items() if limit} or None


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


class IngressSettings(Section):
    """Requests of anybody to the ports of sandboxes."""

    listen: str | None = Field(
        None,
        description="Address and port of the ingress. Default: port 7071 at the address of `server.listen`; a free port where "
        "that takes one.",
    )
    domain: str = Field("localhost", description="Each exposed port has a name of one label below this domain.")
    public_url: str | None = Field(
        None, description="Base URL below whose host names are reached, when a proxy stands in front. Default: from `listen`."
    )
    tls_certificate: Path | None = Field(
        None, description="PEM file with a certificate for `*.DOMAIN` and its chain; read again when it changes."
    )
    tls_key: Path | None = Field(None, description="PEM file with its key.")
    header_timeout_s: int = Field(15, description="Seconds for the head of a request, and for a TLS greeting.", ge=1, le=600)
    idle_timeout_s: int = Field(600, description="Seconds until a connection is closed on which nothing moves.", ge=5, le=86_400)
    connect_timeout_s: int = Field(5, description="Seconds for a connection to a program in a sandbox.", ge=1, le=120)
    wake_timeout_s: int = Field(
        60, description="Seconds that requests wait for a sandbox with `wakeOnRequest` to be resumed.", ge=1, le=600
    )
    listen_timeout_s: int = Field(
        15, description="Seconds that they wait for its program to listen once it is resumed.", ge=0, le=600
    )
    max_connections: int = Field(10_000, description="Connections at once; more are closed.", ge=1, le=1_000_000)
    max_connections_per_client: int = Field(
        512, description="Connections of one address at once; more are closed. 0: any number.", ge=0, le=1_000_000
    )
    max_requests_per_sandbox: int = Field(
        1024, description="Requests and tunnels of one sandbox at once; more are answered 503.", ge=1, le=1_000_000
    )
    max_waiting: int = Field(
        128, description="Requests that wait for one sandbox to be resumed; more are answered 503.", ge=1, le=100_000
    )
    max_header_bytes: int = Field(32 * 1024, description="Largest head of a request.", ge=4096, le=MIB)
    max_body_bytes: int = Field(0, description="Largest body of a request. 0: any size.", ge=0, le=2**50)
    max_link_ttl_s: int = Field(7 * 86_400, description="Longest life of a link to a private port, in seconds.", ge=60)

    @field_validator("listen")
    @classmethod
    def _listen(cls, value: str | None) -> str | None:
        if value is not None:
            split_listen(value)
        return value

    @field_validator("domain")
    @classmethod
    def _domain(cls, value: str) -> str:
        label = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
        if len(value) > 200 or re.fullmatch(rf"{label}(\.{label})*", value) is None:
            raise ValueError("must be a domain in small letters, such as sandboxes.example.com")
        return value

    @field_validator("public_url")
    @classmethod
    def _public_url(cls, value: str | None, info: Any) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or parts.hostname != info.data.get("domain") or parts.path.rstrip("/"):
            raise ValueError("must be an http:// or https:// URL of ingress.domain without a path")
        return value.rstrip("/")

    @field_validator("tls_certificate", "tls_key")
    @classmethod
    def _file(cls, value: Path | None) -> Path | None:
        return value.expanduser().absolute() if value is not None else None

    @field_validator("tls_key")
    @classmethod
    def _both(cls, value: Path | None, info: Any) -> Path | None:
        if (value is None) != (info.data.get("tls_certificate") is None):
            raise ValueError("must be given together with ingress.tls_certificate")
        return value

    @property
    def https(self) -> bool:
        """Whether clients speak TLS, to us or to what stands in front."""
        return self.tls_certificate is not None or (self.public_url or "").startswith("https:")


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
    sso: SsoSettings = Field(default_factory=SsoSettings)
    billing: BillingSettings = Field(default_factory=BillingSettings)
    workers: WorkerSettings = Field(default_factory=WorkerSettings)
    webhooks: WebhookSettings = Field(default_factory=WebhookSettings)
    telemetry: TelemetrySettings = Field(default_factory=TelemetrySettings)
    egress: EgressSettings = Field(default_factory=EgressSettings)
    ingress: IngressSettings = Field(default_factory=IngressSettings)

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
        for key, value in self.leaves():
            source, origin = self.source_of(key)
            values.append(EffectiveValue(key, mask(key, value), source, origin))
        return values

    def leaves(self) -> Iterator[tuple[str, Any]]:
        """Every key with its value, secrets included."""
        for section in type(self).model_fields:
            yield from _leaves(section, getattr(self, section))

    # -- paths below the data directory -------------------------------------------------------------

    @property
    def control_dir(self) -> Path:
        """Database and keys; belongs to the API's user."""
        return self.server.data_dir / "control"

    @property
    def uploads_dir(self) -> Path:
        """Archives of workers until they are built, and what is on its way to be one."""
        return self.control_dir / "uploads"

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

    # -- addresses ----------------------------------------------------------------------------------

    def ingress_listen(self) -> str:
        """`HOST:PORT` of the ingress."""
        if self.ingress.listen is not None:
            return self.ingress.listen
        host, _, port = self.server.listen.rpartition(":")
        return f"{host}:{0 if port == '0' else INGRESS_PORT}"

    def ingress_netloc(self) -> tuple[str, str]:
        """Scheme of the exposed ports' URLs, and what follows their first label."""
        if self.ingress.public_url is not None:
            parts = urlsplit(self.ingress.public_url)
            return parts.scheme, parts.netloc
        scheme, port = ("https" if self.ingress.https else "http"), self.ingress_listen().rpartition(":")[2]
        usual = {"https": "443", "http": "80"}[scheme] == port
        return scheme, self.ingress.domain if usual else f"{self.ingress.domain}:{port}"

    def ingress_url(self) -> str:
        """Where the ingress is reached: by its address where the domain is only this machine's."""
        scheme, netloc = self.ingress_netloc()
        if self.ingress.public_url is None and self.ingress.domain == "localhost":
            netloc = self.ingress_listen().replace("0.0.0.0:", "127.0.0.1:").replace("[::]:", "[::1]:")
        return f"{scheme}://{netloc}"

    def ingress_webhook_url(self) -> str:
        """The base of webhooks' addresses at the ingress: a name of their own where there are names."""
        scheme, netloc = self.ingress_netloc()
        return self.ingress_url() if self.ingress.domain == "localhost" else f"{scheme}://{WEBHOOK_LABEL}.{netloc}"

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
    if key in HOST_SECRETS | API_SECRETS and value:
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
        for name, leaf in _flattened(section, key, value, origin):
            _put(merged.setdefault(section, {}), name.split("."), leaf)
            sources[f"{section}.{name}"] = (source, origin)

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
            put(section.lower(), key.lower().replace("__", "."), text, Source.ENVIRONMENT, variable)
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
    section = _as_section(Settings.model_fields[name].annotation)
    assert section is not None
    return section


def _as_section(annotation: Any) -> type[Section] | None:
    """A field's kind where it is a section; None for a value."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def _leaves(prefix: str, section: Section) -> Iterator[tuple[str, Any]]:
    """Each key of a section and of those inside it, with its value."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from _leaves(f"{prefix}.{name}", value)
        else:
            yield f"{prefix}.{name}", value


def _flattened(section: str, key: str, value: object, origin: str) -> Iterator[tuple[str, object]]:
    """The keys and values that a value means: its own, or those of a section inside `section`. Raises `SettingsError`."""
    if _check_known(section, key, origin) is None:
        yield key, value
        return
    if not isinstance(value, dict):
        raise SettingsError(f"{origin}: `{section}.{key}` must be a section [{section}.{key}], not a value.")
    for name, inner in value.items():
        yield from _flattened(section, f"{key}.{name}", inner, origin)


def _put(place: dict[str, object], path: Sequence[str], value: object) -> None:
    for part in path[:-1]:
        inside = place.setdefault(part, {})
        assert isinstance(inside, dict)
        place = inside
    place[path[-1]] = value


def _check_known(section: str, key: str, origin: str) -> type[Section] | None:
    """The kind of section that a key names; None where it names a value. Raises `SettingsError` where it names nothing."""
    if section not in Settings.model_fields:
        allowed = ", ".join(Settings.model_fields)
        raise SettingsError(f"{origin}: there is no section `{section}`; the sections are {allowed}.")
    at, where = _section(section), section
    found: type[Section] | None = at
    for part in key.split(".") if key else ():
        if found is None or part not in at.model_fields:
            allowed = ", ".join(at.model_fields)
            raise SettingsError(f"{origin}: there is no key `{section}.{key}`; the keys of `{where}` are {allowed}.")
        found = _as_section(at.model_fields[part].annotation)
        if found is not None:
            at, where = found, f"{where}.{part}"
    return found


def _explain(error: ValidationError, sources: Mapping[str, tuple[Source, str]]) -> str:
    sentences = []
    for problem in error.errors(include_url=False):
        key = _key_of(problem["loc"])
        origin = sources.get(key, (Source.DEFAULT, ""))[1] or "default"
        value = mask(key, problem["input"])
        reason = problem["msg"].removeprefix("Value error, ")
        sentences.append(f"{origin}: `{key}` is {value!r}, but {_lower_first(reason)}.")
    return " ".join(sentences)


def _key_of(place: Sequence[int | str]) -> str:
    """The key that a place in the settings belongs to, which may lie inside its value."""
    found: type[BaseModel] | None = Settings
    parts: list[str] = []
    for part in place:
        if found is None:
            break
        parts.append(str(part))
        field = found.model_fields.get(str(part))
        found = _as_section(field.annotation) if field is not None else None
    return ".".join(parts)


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
