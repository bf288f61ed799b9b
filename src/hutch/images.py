"""The images that sandboxes start from.

An image is a stack of read-only EROFS files (its layers) and a configuration: who runs commands, where, with which
environment. An image store is a directory:

    index.json                     {"schema", "images": [{"name", "aliases", "manifest"}]}, the default image first
    manifests/<hex>.json           layers, configuration and package versions; named by its SHA-256
    blobs/sha256/<hex>.erofs       one layer; named by its SHA-256

`make setup` builds one (`scripts/setup/pack.py`, `docs/images.md`). A manifest is small and hashed whenever it is read;
layers are hundreds of megabytes and hashed only by `verify`.

The API process reads a store of which it may not open the directory any more once it has given up root: a store keeps
what it has read, and looks again only where `index.json` has visibly changed.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, TypeAlias, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from hutch.errors import InternalError, NotFoundError

REGISTRY_PREFIX = "vcr.vercel.com/"
DEFAULT_TAG = "latest"
# Far beyond what any image needs; a file that claims more is broken, and reading it would cost memory.
MAX_DOCUMENT_BYTES = 4 * 1024 * 1024
# overlayfs takes 500 lower layers, and the mount's options, which have 20 bytes for each, have to fit one page.
MAX_LAYERS = 32

# Integrations pin older clients, which name what they called runtimes by the vendor's images.
_VENDORS_NAMES = {
    "vercel/sandbox/node:al-22": "node22",
    "vercel/sandbox/node:al-24": "node24",
    "vercel/sandbox/python:al-3.13.1": "python3.13",
}

_HEX = re.compile(r"[0-9a-f]{64}")
_NAME = r"^[a-z0-9][a-z0-9._-]*(/[a-z0-9][a-z0-9._-]*)*(:[A-Za-z0-9_][A-Za-z0-9._-]*)?$"


@dataclass(frozen=True, slots=True)
class Layer:
    """One EROFS file. `digest` is "sha256:…" of it, `size` its bytes."""

    path: Path
    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """How commands run: `user` with its ids, supplementary `groups` and `home`; `cwd` and `env` where a command names none."""

    user: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    cwd: str
    env: dict[str, str] = field(hash=False)


@dataclass(frozen=True, slots=True)
class Image:
    """One image. `digest` is "sha256:…" of its manifest and names it for ever; `layers` has the bottom one first."""

    name: str
    aliases: tuple[str, ...]
    digest: str
    layers: tuple[Layer, ...]
    config: ImageConfig

    @property
    def size_bytes(self) -> int:
        """Bytes of all its layers; layers that images share count in each."""
        return sum(layer.size for layer in self.layers)

    @property
    def pinned(self) -> str:
        """The reference that means exactly this image, now and later."""
        return f"{self.name}@{self.digest}"


def _absolute(value: str) -> str:
    if not value.startswith("/") or "\0" in value or ".." in value.split("/"):
        raise ValueError("must be an absolute path without `..` and NUL")
    return value


def _environment(value: dict[str, str]) -> dict[str, str]:
    for name, content in value.items():
        if not name or "=" in name or "\0" in name or "\0" in content:
            raise ValueError(f"{name!r} is no environment variable")
    return value


_Digest: TypeAlias = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
_Name: TypeAlias = Annotated[str, StringConstraints(pattern=_NAME, max_length=255)]
_Id: TypeAlias = Annotated[int, Field(ge=0, le=2**32 - 2)]
_Path: TypeAlias = Annotated[str, StringConstraints(max_length=4096), AfterValidator(_absolute)]


class _Document(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    # A later format has another number; guessing at it would start something else than what was built.
    schema_version: Literal[1] = Field(alias="schema")


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class _LayerEntry(_Part):
    digest: _Digest
    size: Annotated[int, Field(gt=0)]


class _ConfigEntry(_Part):
    user: Annotated[str, StringConstraints(pattern=r"^[a-z_][a-z0-9_-]{0,31}$")]
    uid: _Id
    gid: _Id
    groups: Annotated[list[_Id], Field(max_length=64)]
    home: _Path
    cwd: _Path
    env: Annotated[dict[str, str], Field(max_length=256), AfterValidator(_environment)]


class _Manifest(_Document):
    name: _Name
    layers: Annotated[list[_LayerEntry], Field(min_length=1, max_length=MAX_LAYERS)]
    config: _ConfigEntry


class _IndexEntry(_Part):
    name: _Name
    aliases: Annotated[list[_Name], Field(max_length=64)]
    manifest: _Digest


class _Index(_Document):
    images: Annotated[list[_IndexEntry], Field(max_length=1024)]


_Shape = TypeVar("_Shape", bound=_Document)


@dataclass(frozen=True, slots=True)
class _Reference:
    """A parsed reference: `digest` is empty where it names none."""

    name: str
    digest: str


def _parse_reference(reference: str) -> _Reference:
    text = reference.removeprefix(REGISTRY_PREFIX)
    name, _, digest = text.partition("@")
    return _Reference(name, digest)


def _damaged(path: Path, reason: str) -> InternalError:
    return InternalError("image_damaged", f"The image file {path} is damaged: {reason}. Run `make setup` to build it again.")


class ImageStore:
    """The images in `directory`. What exists at the time is read at once; a missing directory is an empty store."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._stamp: tuple[int, int, int] | None = None
        self._images: tuple[Image, ...] = ()
        self._by_name: dict[str, Image] = {}
        self._by_digest: dict[str, Image] = {}
        self._refresh()

    def list(self) -> list[Image]:
        """Every image, the default one first. Raises `InternalError` (`image_damaged`)."""
        self._refresh()
        return list(self._images)

    def resolve(self, reference: str) -> Image:
        """The image that `reference` means: a name or alias (`:latest` when it has no tag), or `name@sha256:…`.

        A digest also finds an image that the index has forgotten. Raises `NotFoundError` (`image_not_found`) and
        `InternalError` (`image_damaged`).
        """
        self._refresh()
        wanted = _parse_reference(reference)
        if wanted.digest:
            image = self._pinned(wanted)
        else:
            name = _VENDORS_NAMES.get(wanted.name, wanted.name)
            image = self._by_name.get(name) or self._by_name.get(f"{name}:{DEFAULT_TAG}")
        if image is None:
            known = ", ".join(image.name for image in self._images) or "none: run `make setup`"
            raise NotFoundError("image_not_found", f"There is no image {reference[:255]!r}. Images here: {known}.")
        return image

    def verify(self, image: Image) -> None:
        """Read every byte of `image` and compare the hashes. Raises `InternalError` (`image_damaged`)."""
        self._read_manifest(image.digest, image.aliases)
        for layer in image.layers:
            digest = hashlib.sha256()
            try:
                with layer.path.open("rb") as file:
                    for block in iter(partial(file.read, 1 << 20), b""):
                        digest.update(block)
            except OSError as error:
                raise _damaged(layer.path, f"it can't be read ({error.strerror})") from error
            if f"sha256:{digest.hexdigest()}" != layer.digest:
                raise _damaged(layer.path, f"its content has the SHA-256 {digest.hexdigest()}")

    def _pinned(self, wanted: _Reference) -> Image | None:
        known = self._by_digest.get(wanted.digest)
        if known is None:
            hexadecimal = wanted.digest.removeprefix("sha256:")
            # Checked before it becomes part of a path.
            if not _HEX.fullmatch(hexadecimal) or not self._manifest_path(wanted.digest).is_file():
                return None
            known = self._read_manifest(wanted.digest, ())
            self._by_digest[wanted.digest] = known
        names = {known.name, *known.aliases}
        return known if wanted.name in names or f"{wanted.name}:{DEFAULT_TAG}" in names else None

    def _refresh(self) -> None:
        index = self.directory / "index.json"
        try:
            status = index.stat()
        except FileNotFoundError:
            return
        except PermissionError:
            if self._stamp is None:
                raise _damaged(index, "this process may not read it") from None
            return
        stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
        if stamp == self._stamp:
            return
        document = self._parse(_Index, index, self._read(index))
        images = tuple(self._listed(entry, index) for entry in document.images)
        by_name: dict[str, Image] = {}
        for image in images:
            for name in (image.name, *image.aliases):
                if by_name.setdefault(name, image) is not image:
                    raise _damaged(index, f"the name {name!r} stands for two images")
        self._images, self._by_name, self._stamp = images, by_name, stamp
        self._by_digest.update({image.digest: image for image in images})

    def _listed(self, entry: _IndexEntry, index: Path) -> Image:
        image = self._read_manifest(entry.manifest, tuple(entry.aliases))
        if image.name != entry.name:
            raise _damaged(index, f"it names {entry.name!r} what its manifest names {image.name!r}")
        return image

    def _manifest_path(self, digest: str) -> Path:
        return self.directory / "manifests" / f"{digest.removeprefix('sha256:')}.json"

    def _read_manifest(self, digest: str, aliases: tuple[str, ...]) -> Image:
        path = self._manifest_path(digest)
        content = self._read(path)
        actual = hashlib.sha256(content).hexdigest()
        if f"sha256:{actual}" != digest:
            raise _damaged(path, f"its content has the SHA-256 {actual}")
        manifest = self._parse(_Manifest, path, content)
        config = manifest.config
        return Image(
            name=manifest.name,
            aliases=aliases,
            digest=digest,
            layers=tuple(self._layer(entry) for entry in manifest.layers),
            config=ImageConfig(
                config.user, config.uid, config.gid, tuple(config.groups), config.home, config.cwd, dict(config.env)
            ),
        )

    def _layer(self, entry: _LayerEntry) -> Layer:
        path = self.directory / "blobs" / "sha256" / f"{entry.digest.removeprefix('sha256:')}.erofs"
        try:
            size = path.stat().st_size
        except OSError as error:
            raise _damaged(path, f"it can't be read ({error.strerror})") from error
        if size != entry.size:
            raise _damaged(path, f"it has {size} bytes, not {entry.size}")
        return Layer(path, entry.digest, entry.size)

    @staticmethod
    def _read(path: Path) -> bytes:
        try:
            with path.open("rb") as file:
                content = file.read(MAX_DOCUMENT_BYTES + 1)
        except OSError as error:
            raise _damaged(path, f"it can't be read ({error.strerror})") from error
        if len(content) > MAX_DOCUMENT_BYTES:
            raise _damaged(path, f"it is larger than {MAX_DOCUMENT_BYTES} bytes")
        return content

    @staticmethod
    def _parse(shape: type[_Shape], path: Path, content: bytes) -> _Shape:
        try:
            return shape.model_validate_json(content)
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in problem["loc"]) or "the document"
            raise _damaged(path, f"{place}: {problem['msg']}") from error
