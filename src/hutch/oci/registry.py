"""The pull side of a registry (OCI distribution specification 1.1): manifests and blobs, bounded, and checked by digest while
they are read.

Redirects are followed by hand: each host is looked up and vetted (`hutch.oci.addresses`), connected to by the address that was
vetted, and credentials go to the registry and to the token server that it names, never along a redirect.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urljoin, urlsplit

import httpx
import msgspec

from hutch import __version__
from hutch.errors import BadRequestError, ForbiddenError, HutchError, NotFoundError, UnavailableError
from hutch.oci import documents
from hutch.oci.addresses import Addresses
from hutch.oci.reference import Reference

MAX_REDIRECTS = 5
MAX_TOKEN_BYTES = 64 * 1024
CONNECT_S = 10.0
READ_S = 60.0
"""Between two bytes; a pull as a whole has a bound of its own."""
CHUNK = 1024 * 1024
_ACCEPT = ", ".join((*documents.MANIFESTS, *documents.INDEXES))
_CHALLENGE = re.compile(r'([a-zA-Z]+)="([^"]*)"')


@dataclass(frozen=True, slots=True)
class Login:
    username: str
    password: str

    @property
    def basic(self) -> str:
        """As `Authorization` has it."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


@dataclass(frozen=True, slots=True)
class Access:
    """How registries are reached: `insecure` ones by HTTP without TLS, all others verified with `trust`."""

    addresses: Addresses
    insecure: frozenset[str]
    trust: ssl.SSLContext


@dataclass(frozen=True, slots=True)
class Document:
    """A manifest or an index, as the registry sent it."""

    raw: bytes
    media_type: str
    digest: str


class _Token(msgspec.Struct, frozen=True):
    token: str = ""
    access_token: str = ""


class Registry:
    """One repository of a registry, for one pull. Every method raises `HutchError`."""

    def __init__(self, reference: Reference, access: Access, login: Login | None = None) -> None:
        self._reference = reference
        self._access = access
        self._login = login
        self._authorization: str | None = None
        self._clients: dict[tuple[str, str], httpx.AsyncClient] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for client in self._clients.values():
            await client.aclose()

    async def document(self, digest_or_tag: str) -> Document:
        """A manifest or index. What was asked for by digest has that digest."""
        headers = {"accept": _ACCEPT}
        async with self._get(f"manifests/{digest_or_tag}", headers, f"the image {self._reference}") as response:
            raw = await _bounded(response, documents.MAX_BYTES, "manifest")
            media_type = response.headers.get("content-type", "").partition(";")[0].strip()
        digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
        if digest_or_tag.startswith("sha256:") and digest != digest_or_tag:
            raise documents.invalid(f"the registry sent a manifest with the digest {digest} for {digest_or_tag}")
        if media_type not in (*documents.MANIFESTS, *documents.INDEXES):
            raise documents.invalid(f"it is of the type {media_type[:100]!r}, which is neither a manifest nor an index")
        return Document(raw, media_type, digest)

    async def blob(self, descriptor: documents.Descriptor, into: Path) -> None:
        """A blob as a new file; exactly the bytes that `descriptor` promises."""
        what = f"the blob {descriptor.digest}"
        hashed, size = hashlib.sha256(), 0
        async with self._get(f"blobs/{descriptor.digest}", {}, what) as response:
            with into.open("xb") as file:
                async for data in response.aiter_raw(CHUNK):
                    size += len(data)
                    if size > descriptor.size:
                        raise documents.invalid(f"{what} has more than the {descriptor.size} bytes that its manifest says")
                    hashed.update(data)
                    await asyncio.to_thread(file.write, data)
        if size != descriptor.size:
            raise documents.invalid(f"{what} has {size} bytes, and its manifest says {descriptor.size}")
        if f"sha256:{hashed.hexdigest()}" != descriptor.digest:
            raise documents.invalid(f"{what} came with other content: its digest is sha256:{hashed.hexdigest()}")

    # -- requests ----------------------------------------------------------------------------------

    def _scheme(self, authority: str) -> str:
        return "http" if authority in self._access.insecure else "https"

    @asynccontextmanager
    async def _get(self, path: str, headers: dict[str, str], what: str) -> AsyncIterator[httpx.Response]:
        host = self._reference.host
        url = f"{self._scheme(host)}://{host}/v2/{self._reference.repository}/{path}"
        response = await self._follow(url, headers, self._authorization)
        if response.status_code == 401:
            challenge = response.headers.get("www-authenticate", "")
            await response.aclose()
            self._authorization = await self._answered(challenge)
            response = await self._follow(url, headers, self._authorization)
        try:
            if response.status_code != 200:
                raise self._refused(response.status_code, what)
            yield response
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        finally:
            await response.aclose()

    async def _follow(self, url: str, headers: dict[str, str], authorization: str | None) -> httpx.Response:
        for _ in range(MAX_REDIRECTS + 1):
            sent = headers | ({"authorization": authorization} if authorization is not None else {})
            response = await self._send(url, sent)
            if not response.is_redirect:
                return response
            before = urlsplit(url)
            url = urljoin(url, response.headers.get("location", ""))
            await response.aclose()
            if (urlsplit(url).scheme, urlsplit(url).netloc) != (before.scheme, before.netloc):
                authorization = None
        raise UnavailableError("registry_unreachable", f"{self._reference.registry} redirects more than {MAX_REDIRECTS} times.")

    async def _send(self, url: str, headers: dict[str, str]) -> httpx.Response:
        """One request, to an address that was vetted."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443)
        except ValueError as error:
            raise self._unreachable(error) from error
        authority = parts.netloc.rpartition("@")[2]
        if not host or parts.scheme != self._scheme(authority):
            raise ForbiddenError(
                "registry_not_allowed",
                f"{self._reference.registry} sends to {parts.scheme[:16]}://{authority[:255]}, and only HTTPS is used "
                "(image.insecure_registries).",
            )
        address = await self._access.addresses.resolve(authority, host, port)
        client = self._clients.get((parts.scheme, authority))
        if client is None:
            timeout = httpx.Timeout(READ_S, connect=CONNECT_S)
            # Neither a proxy nor a .netrc of this machine's root has a part in this.
            client = httpx.AsyncClient(verify=self._access.trust, timeout=timeout, trust_env=False, follow_redirects=False)
            self._clients[parts.scheme, authority] = client
        at = f"[{address}]" if ":" in address else address
        target = parts._replace(netloc=f"{at}:{port}", fragment="").geturl()
        sent = {"user-agent": f"hutch/{__version__}", "accept-encoding": "identity", **headers, "host": authority}
        request = client.build_request("GET", target, headers=sent, extensions={"sni_hostname": host})
        try:
            return await client.send(request, stream=True)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    async def _answered(self, challenge: str) -> str:
        """The authorization that a registry asks for: Basic, or a token of the server that it names."""
        kind, _, rest = challenge.partition(" ")
        basic = self._login.basic if self._login is not None else None
        if kind.lower() == "basic":
            if basic is None:
                raise self._refused(401, f"the image {self._reference}")
            return basic
        asked = dict(_CHALLENGE.findall(rest))
        if kind.lower() != "bearer" or "realm" not in asked:
            raise UnavailableError(
                "registry_unreachable", f"{self._reference.registry} asks for an unknown kind of authorization."
            )
        query = httpx.QueryParams({"scope": f"repository:{self._reference.repository}:pull"})
        if "service" in asked:
            query = query.set("service", asked["service"])
        separator = "&" if "?" in asked["realm"] else "?"
        headers = {"accept": "application/json"}
        response = await self._follow(f"{asked['realm']}{separator}{query}", headers, basic)
        try:
            if response.status_code != 200:
                raise self._refused(response.status_code, f"the image {self._reference}")
            token = msgspec.json.decode(await _bounded(response, MAX_TOKEN_BYTES, "token"), type=_Token)
        except (msgspec.DecodeError, httpx.HTTPError) as error:
            raise self._unreachable(error) from error
        finally:
            await response.aclose()
        found = token.token or token.access_token
        if not found or not found.isascii() or not found.isprintable():
            raise UnavailableError("registry_unreachable", f"{self._reference.registry} gave no token that can be used.")
        return f"Bearer {found}"

    # -- errors ------------------------------------------------------------------------------------

    def _refused(self, status: int, what: str) -> HutchError:
        registry = self._reference.registry
        if status in (401, 403):
            return ForbiddenError(
                "registry_denied",
                f"{registry} does not give {what} to {'this login' if self._login else 'those without a login'} ({status}). "
                "It may not exist. See `hutch image login`.",
            )
        if status == 404:
            return NotFoundError("image_not_found", f"{registry} does not have {what}.")
        if status == 429 or status >= 500:
            return UnavailableError("registry_unreachable", f"{registry} answered {status}. Try again later.", retry_after_s=30)
        return BadRequestError("registry_refused", f"{registry} answered {status} when it was asked for {what}.")

    def _unreachable(self, error: Exception) -> UnavailableError:
        reason = str(error) or type(error).__name__
        return UnavailableError(
            "registry_unreachable", f"{self._reference.registry} can't be reached: {reason}.", retry_after_s=5
        )


async def _bounded(response: httpx.Response, most: int, what: str) -> bytes:
    raw = bytearray()
    async for data in response.aiter_raw(65536):
        raw += data
        if len(raw) > most:
            raise documents.invalid(f"its {what} has more than {most} bytes")
    return bytes(raw)


def trust(*files: Any) -> ssl.SSLContext:
    """This machine's roots, and those of further files (PEM)."""
    context = ssl.create_default_context()
    for file in files:
        if file is not None:
            context.load_verify_locations(cafile=file)
    return context
