"""Index, manifest and configuration of an image: JSON that somebody else wrote, read strictly and within bounds."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from hutch.errors import BadRequestError

MAX_BYTES = 4 * 1024 * 1024
MAX_LAYERS = 256
MAX_CONFIG_BYTES = 8 * 1024 * 1024
MAX_ENV_BYTES = 64 * 1024
MAX_ENV = 1024
MAX_SHOWN_BYTES = 16 * 1024
"""Of labels, of the command and of the entry point, which are only shown: what has more is not."""

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
INDEXES = (OCI_INDEX, DOCKER_INDEX)
MANIFESTS = (OCI_MANIFEST, DOCKER_MANIFEST)
CONFIGS = ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")
LAYERS = {
    "application/vnd.oci.image.layer.v1.tar": "",
    "application/vnd.oci.image.layer.v1.tar+gzip": "gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd": "zstd",
    "application/vnd.docker.image.rootfs.diff.tar": "",
    "application/vnd.docker.image.rootfs.diff.tar.gzip": "gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd": "zstd",
}
"""Media types of layers, and how each is compressed."""
OS, ARCHITECTURE = "linux", "amd64"

D = TypeVar("D")


class Platform(msgspec.Struct, frozen=True):
    os: str = ""
    architecture: str = ""
    variant: str = ""


class Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    media_type: str
    digest: str
    size: int
    platform: Platform | None = None


class _Index(msgspec.Struct, frozen=True, rename="camel"):
    manifests: list[Descriptor]
    schema_version: int
    media_type: str = ""


class _Manifest(msgspec.Struct, frozen=True, rename="camel"):
    config: Descriptor
    layers: list[Descriptor]
    schema_version: int
    media_type: str = ""


class _RootFs(msgspec.Struct, frozen=True):
    type: str
    diff_ids: list[str]


class _Run(msgspec.Struct, frozen=True):
    """Docker writes null for what an image does not say."""

    User: str | None = None
    Env: list[str] | None = None
    WorkingDir: str | None = None
    Labels: dict[str, str] | None = None
    Cmd: list[str] | None = None
    Entrypoint: list[str] | None = None


class _Config(msgspec.Struct, frozen=True):
    rootfs: _RootFs
    os: str
    architecture: str
    config: _Run | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    config: Descriptor
    layers: tuple[Descriptor, ...]


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """What an image says about itself. `cmd` and `entrypoint` are shown and never run."""

    diff_ids: list[str] = []
    user: str = ""
    env: dict[str, str] = {}
    cwd: str = "/"
    labels: dict[str, str] = {}
    cmd: list[str] = []
    entrypoint: list[str] = []


def invalid(message: str) -> BadRequestError:
    """The error for an image that is refused for what it is."""
    return BadRequestError("image_invalid", f"The image is refused: {message}.")


def _decode(kind: type[D], raw: bytes, what: str) -> D:
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise invalid(f"its {what} can't be read: {error}") from error


def _check_digest(digest: str, what: str) -> None:
    algorithm, _, hexadecimal = digest.partition(":")
    if algorithm != "sha256" or len(hexadecimal) != 64 or set(hexadecimal) - set("0123456789abcdef"):
        raise invalid(f"{what} has the digest {digest[:80]!r}, which is not sha256: and 64 digits")


def _media_type(said: str, told: str, schema_version: int) -> None:
    # Two readers must not take one document for different things (OCI image specification, 1.0.1: manifest confusion).
    if schema_version != 2:
        raise invalid(f"its manifest has the schema version {schema_version}; only 2 is known")
    if said and told != said:
        raise invalid(f"its manifest says that it is {said[:100]!r}, and the registry that it is {told[:100]!r}")


def choose(raw: bytes, media_type: str) -> Descriptor:
    """The manifest of an index that is for this machine. Raises `BadRequestError`."""
    index = _decode(_Index, raw, "index")
    _media_type(index.media_type, media_type, index.schema_version)
    wanted = [
        entry
        for entry in index.manifests
        if entry.platform is not None and (entry.platform.os, entry.platform.architecture) == (OS, ARCHITECTURE)
    ]
    if not wanted:
        there = sorted({f"{entry.platform.os}/{entry.platform.architecture}" for entry in index.manifests if entry.platform})
        raise invalid(f"it has nothing for {OS}/{ARCHITECTURE}, only for {', '.join(there[:20])[:300] or 'nothing'}")
    found = wanted[0]
    if found.media_type not in MANIFESTS:
        raise invalid(f"its index names a manifest of the type {found.media_type[:100]!r}")
    _check_digest(found.digest, "a manifest of its index")
    return found


def manifest(raw: bytes, media_type: str, max_bytes: int) -> Manifest:
    """A manifest whose layers are known, and not larger than `max_bytes` together. Raises `BadRequestError`."""
    read = _decode(_Manifest, raw, "manifest")
    _media_type(read.media_type, media_type, read.schema_version)
    if read.config.media_type not in CONFIGS:
        raise invalid(f"its configuration has the type {read.config.media_type[:100]!r}, so it is no file system")
    if not 0 < read.config.size <= MAX_CONFIG_BYTES:
        raise invalid(f"its configuration has {read.config.size} bytes; at most {MAX_CONFIG_BYTES} are read")
    if not 1 <= len(read.layers) <= MAX_LAYERS:
        raise invalid(f"it has {len(read.layers)} layers; 1 to {MAX_LAYERS} are taken")
    for number, layer in enumerate([read.config, *read.layers]):
        _check_digest(layer.digest, f"layer {number}" if number else "its configuration")
    for number, layer in enumerate(read.layers, start=1):
        if layer.media_type not in LAYERS:
            raise invalid(f"layer {number} has the type {layer.media_type[:100]!r}, which is not known")
        if layer.size <= 0:
            raise invalid(f"layer {number} has {layer.size} bytes")
    if (total := sum(layer.size for layer in read.layers)) > max_bytes:
        raise invalid(f"its layers have {total} bytes together; at most {max_bytes} are taken (image.max_bytes)")
    return Manifest(read.config, tuple(read.layers))


def config(raw: bytes, layers: int) -> Config:
    """The configuration of an image with that many layers. Raises `BadRequestError`."""
    read = _decode(_Config, raw, "configuration")
    if (read.os, read.architecture) != (OS, ARCHITECTURE):
        raise invalid(f"it is for {read.os[:40]}/{read.architecture[:40]}, not for {OS}/{ARCHITECTURE}")
    if read.rootfs.type != "layers" or len(read.rootfs.diff_ids) != layers:
        raise invalid(f"its configuration names {len(read.rootfs.diff_ids)} layers, its manifest {layers}")
    for number, digest in enumerate(read.rootfs.diff_ids, start=1):
        _check_digest(digest, f"layer {number}, unpacked,")
    run = read.config or _Run()
    env = _environment(run.Env or [])
    cwd = run.WorkingDir or "/"
    if "\0" in cwd or len(cwd.encode()) > 4095:
        raise invalid("its working directory is no path")
    # "//" at the start means something else to POSIX, and is kept by `normpath`.
    cwd = "/" + posixpath.normpath("/" + cwd).lstrip("/")
    user = run.User or ""
    if len(user) > 256 or "\0" in user:
        raise invalid("its user is no name")
    return Config(
        diff_ids=read.rootfs.diff_ids,
        user=user,
        env=env,
        cwd=cwd,
        labels=_shown(run.Labels or {}, {}),
        cmd=_shown(run.Cmd or [], []),
        entrypoint=_shown(run.Entrypoint or [], []),
    )


def _shown(value: D, nothing: D) -> D:
    return value if len(msgspec.json.encode(value)) <= MAX_SHOWN_BYTES else nothing


def _environment(lines: list[str]) -> dict[str, str]:
    if len(lines) > MAX_ENV or sum(len(line.encode()) for line in lines) > MAX_ENV_BYTES:
        raise invalid(f"its environment has more than {MAX_ENV} variables or {MAX_ENV_BYTES} bytes")
    env = {}
    for line in lines:
        name, separator, value = line.partition("=")
        if not name or not separator or "\0" in line:
            raise invalid(f"{line[:80]!r} is no variable of an environment")
        env[name] = value
    return env
