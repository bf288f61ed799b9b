"""Requests to Notion's API: paced, repeated where that does no harm, at addresses that were vetted.

429, 529, 409   not done: again after Retry-After, or a pause
5xx, no answer  again, but for a creation: that may be done (`Unreachable.unsure`)
other 4xx       `Refused`
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import SplitResult, urlsplit

import httpx
import msgspec

from hutch import __version__
from hutch.api.services import Services
from hutch.errors import BadRequestError
from hutch.oci.addresses import AddressClosed, Addresses

VERSION = "2025-09-03"
DEFAULT_URL = "https://api.notion.com"
TIMEOUT_S = 20.0
APART_S = 1 / 3
"""Between the beginnings of two requests: Notion takes three a second, on average."""
ATTEMPTS = 5
PAUSE_S = 1.0
"""Before the second attempt, and twice as long before each further one."""
MAX_PAUSE_S = 60.0
"""A `Retry-After` that asks for more ends the pass."""
MAX_ANSWER_BYTES = 8 * 2**20
MAX_MESSAGE = 300
_NOT_DONE = frozenset({409, 429, 529})


class Refused(Exception):
    """Notion said no; its message, without the token."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"Notion answered {status} ({code}): {message}")
        self.status = status
        self.code = code


class Unreachable(Exception):
    """No answer that says anything. `unsure`: what was asked for may be done. `retry_after_s`: when Notion wants to be asked."""

    def __init__(self, reason: str, *, unsure: bool = False, retry_after_s: float = 0) -> None:
        super().__init__(reason)
        self.unsure = unsure
        self.retry_after_s = retry_after_s


class AddressRefused(Exception):
    """The API is at an address that the server does not connect to."""


def base(url: str) -> str:
    """The base URL of an API, as it is kept. Raises `BadRequestError`."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in {"https", "http"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or not url.isascii() or not url.isprintable() or any(sign in url for sign in ' "<>\\^`{|}@?#%'):
        raise BadRequestError("bad_request", "Invalid request: `base_url` should be http(s)://HOST[:PORT], without credentials.")
    return parts._replace(netloc=parts.netloc.lower()).geturl().rstrip("/")


class Notion:
    """The API as a token may use it. `before` is awaited before each attempt."""

    def __init__(
        self, services: Services, base_url: str, token: str, before: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self._services = services
        self._base: SplitResult = urlsplit(base_url)
        self._token = token
        self._before = before
        self._next = 0.0

    async def call(
        self, method: str, path: str, body: Any = None, *, attempts: int = ATTEMPTS, again: bool = True
    ) -> dict[str, Any]:
        """The answer. `again`: whether doing it twice does no harm. Raises `Refused`, `Unreachable`, `AddressRefused`."""
        for attempt in range(attempts):
            last = attempt == attempts - 1
            pause = PAUSE_S * 2**attempt
            try:
                response = await self._once(method, path, body)
            except Unreachable:
                if last or not again:
                    raise
            else:
                status = response.status_code
                if status < 300:
                    return _object(response.content)
                if status < 500 and status not in _NOT_DONE:
                    raise self._refused(response)
                pause = max(pause, _seconds(response.headers.get("retry-after", "")))
                if last or pause > MAX_PAUSE_S or (status not in _NOT_DONE and not again):
                    unsure = status not in _NOT_DONE
                    raise Unreachable(f"Notion answered {status}.", unsure=unsure, retry_after_s=pause)
            await asyncio.sleep(pause)
        raise AssertionError(attempts)

    async def _once(self, method: str, path: str, body: Any) -> httpx.Response:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._next - loop.time())
        self._next = loop.time() + APART_S
        if self._before is not None:
            await self._before()
        parts = self._base
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        known = frozenset(self._services.settings.workers.notion_hosts)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                address = await Addresses.of(known).find(parts.netloc, host, port)
                return await self._sent(method, path, body, address, host, port)
        except AddressClosed as error:
            raise AddressRefused(
                f"{parts.netloc} is at a private address, and the operator does not name it (workers.notion_hosts)."
            ) from error
        except (httpx.HTTPError, TimeoutError, OSError, UnicodeError) as error:
            raise Unreachable(f"{parts.netloc} can't be asked: {type(error).__name__}.", unsure=True) from error

    async def _sent(self, method: str, path: str, body: Any, address: str, host: str, port: int) -> httpx.Response:
        at = f"[{address}]" if ":" in address else address
        headers = {
            "host": self._base.netloc,
            "authorization": f"Bearer {self._token}",
            "notion-version": VERSION,
            "content-type": "application/json",
            "accept-encoding": "identity",
            "user-agent": f"hutch/{__version__}",
        }
        url = f"{self._base.scheme}://{at}:{port}{self._base.path}{path}"
        content = msgspec.json.encode(body) if body is not None else None
        # Neither a proxy nor a .netrc of this machine has a part in this.
        async with (
            httpx.AsyncClient(verify=self._services.trust, timeout=TIMEOUT_S, trust_env=False, follow_redirects=False) as client,
            client.stream(method, url, content=content, headers=headers, extensions={"sni_hostname": host}) as response,
        ):
            read = bytearray()
            async for chunk in response.aiter_raw():
                read += chunk
                if len(read) > MAX_ANSWER_BYTES:
                    raise Unreachable("Notion's answer is too long.", unsure=True)
            return httpx.Response(response.status_code, headers=response.headers, content=bytes(read))

    def _refused(self, response: httpx.Response) -> Refused:
        said = _object(response.content, strict=False)
        code, message = said.get("code"), said.get("message")
        text = message if isinstance(message, str) else "no message"
        shown = "".join(letter if letter.isprintable() else " " for letter in text.replace(self._token, "…"))
        known = isinstance(code, str) and code.isascii() and code.isidentifier()
        return Refused(response.status_code, str(code)[:64] if known else "unknown", shown[:MAX_MESSAGE])


def _object(content: bytes, *, strict: bool = True) -> dict[str, Any]:
    try:
        return msgspec.json.decode(content, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        if strict:
            raise Unreachable("Notion's answer is no JSON object.", unsure=True) from error
        return {}


def _seconds(text: str) -> float:
    return float(text) if text.isascii() and text.isdecimal() and len(text) < 6 else 0.0
