"""References of images: `REGISTRY/REPOSITORY[:TAG][@sha256:DIGEST]`.

The registry is the part before the first slash, where that has a dot or a port or is `localhost`; what has none is a name of this
server.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from hutch.errors import BadRequestError
from hutch.images import REGISTRY_PREFIX

MAX_LENGTH = 255
DEFAULT_TAG = "latest"
# Docker Hub answers at another name than the one that its images have.
_SERVED_AT = {"docker.io": "registry-1.docker.io", "index.docker.io": "registry-1.docker.io"}

_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*")
_REGISTRY = re.compile(
    r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?(?::[1-9][0-9]{0,4})?|\[[0-9a-f:]{2,39}\](?::[1-9][0-9]{0,4})?"
)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Reference:
    """An image in a registry. `tag` is "" where a digest is named without one."""

    registry: str
    repository: str
    tag: str
    digest: str

    @property
    def host(self) -> str:
        """Where the registry answers: `HOST[:PORT]`."""
        return served_at(self.registry)

    @property
    def name(self) -> str:
        """Registry and repository."""
        return f"{self.registry}/{self.repository}"

    def __str__(self) -> str:
        return self.name + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def served_at(registry: str) -> str:
    """Where a registry answers: `HOST[:PORT]`."""
    return _SERVED_AT.get(registry, registry)


def names_registry(text: str) -> bool:
    """Whether `text` begins with a registry. The vendor's is none here: its names are those of this server's own images."""
    if text.startswith(REGISTRY_PREFIX):
        return False
    first, slash, _ = text.partition("/")
    return bool(slash) and ("." in first or ":" in first or first == "localhost")


def parse(text: str) -> Reference:
    """A reference with a registry. Raises `BadRequestError` (`image_reference_invalid`)."""
    if len(text) > MAX_LENGTH:
        raise _invalid(text, f"it is longer than {MAX_LENGTH} characters")
    if not names_registry(text):
        raise _invalid(text, "it names no registry, such as docker.io/library/busybox")
    registry, _, rest = text.partition("/")
    rest, at, digest = rest.partition("@")
    if at and _DIGEST.fullmatch(digest) is None:
        raise _invalid(text, "what follows `@` is not sha256: and 64 digits from 0 to f")
    repository, colon, tag = rest.partition(":")
    if colon and _TAG.fullmatch(tag) is None:
        raise _invalid(text, "its tag has other characters than letters, digits, `.`, `_` and `-`")
    if _REGISTRY.fullmatch(registry) is None:
        raise _invalid(text, "its registry is no host name")
    if _REPOSITORY.fullmatch(repository) is None:
        raise _invalid(text, "its repository is not made of lower-case letters and digits, with `.`, `_`, `-` and `/` between")
    if registry in _SERVED_AT:
        registry = "docker.io"
        repository = repository if "/" in repository else f"library/{repository}"
    return Reference(registry, repository, tag or ("" if digest else DEFAULT_TAG), digest)


def _invalid(text: str, reason: str) -> BadRequestError:
    return BadRequestError("image_reference_invalid", f"{text[:MAX_LENGTH]!r} is no reference of an image: {reason}.")
