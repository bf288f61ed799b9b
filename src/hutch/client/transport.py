"""HTTP: one connection pool, query and token on every request, error answers as `hutch.errors`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import httpx
import msgspec

from hutch import __version__
from hutch.client.places import Server
from hutch.errors import HutchError, InternalError, UnavailableError, from_wire

T = TypeVar("T")
MAX_ERROR_BODY_BYTES = 64 * 1024
TIMEOUT_S = 60.0


class Http:
    """Requests to one server. `transport` is for tests; every method raises `HutchError` for an answer above 399."""

    def __init__(self, server: Server, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.server = server
        headers = {"authorization": f"Bearer {server.token}", "user-agent": f"hutch/{__version__}"}
        timeout = httpx.Timeout(TIMEOUT_S, pool=None)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        # A proxy from the environment would see the token, and the server is usually on this machine.
        self._client = httpx.AsyncClient(
            base_url=f"{server.url}/api", headers=headers, timeout=timeout, limits=limits, transport=transport, trust_env=False
        )

    def project(self) -> dict[str, str]:
        """The query that names the server's project, for what belongs to one."""
        return {"projectId": self.server.project_id} if self.server.project_id else {}

    async def close(self) -> None:
        await self._client.aclose()

    async def call(
        self,
        method: str,
        path: str,
        kind: type[T],
        *,
        body: object | None = None,
        headers: Sequence[tuple[bytes, bytes]] = (),
        query: Mapping[str, str] | None = None,
        timeout_s: float | None = TIMEOUT_S,
        scoped: bool = True,
    ) -> T:
        """A JSON request and its answer as `kind`. Without `scoped` it names no team."""
        async with self.open(
            method, path, body=body, headers=headers, query=query, timeout_s=timeout_s, scoped=scoped
        ) as response:
            return decode(await response.aread(), kind)

    @asynccontextmanager
    async def open(
        self,
        method: str,
        path: str,
        *,
        body: object | None = None,
        content: AsyncIterable[bytes] | None = None,
        headers: Sequence[tuple[bytes, bytes]] = (),
        query: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        scoped: bool = True,
    ) -> AsyncIterator[httpx.Response]:
        """A request whose answer the caller reads; `timeout_s` None waits for ever between two bytes."""
        sent = list(headers)
        data: bytes | AsyncIterable[bytes] | None = content
        if body is not None:
            data = msgspec.json.encode(body)
            sent.append((b"content-type", b"application/json"))
        team = {"teamId": self.server.team_id} if scoped and self.server.team_id else {}
        parameters = {**team, **(query or {})}
        request = self._client.build_request(
            method, path, content=data, headers=sent, params=parameters, timeout=httpx.Timeout(timeout_s, connect=10.0, pool=None)
        )
        try:
            response = await self._client.send(request, stream=True)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        try:
            if response.status_code >= 400:
                raise await self._error(response)
            yield response
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        finally:
            await response.aclose()

    async def _error(self, response: httpx.Response) -> HutchError:
        """The error that an answer reports, also when it is not one of ours (a proxy's page, say)."""
        raw = b""
        async for chunk in response.aiter_bytes():
            raw += chunk
            if len(raw) > MAX_ERROR_BODY_BYTES:
                break
        fallback = f"The server answered {response.status_code} {response.reason_phrase} without saying why."
        try:
            reported: Any = json.loads(raw)["error"]
            code, message = reported["code"], reported["message"]
            details = {key: value for key, value in reported.items() if key not in ("code", "message")}
        except (ValueError, KeyError, TypeError, RecursionError):
            return from_wire(response.status_code, "unexpected_answer", fallback)
        if not isinstance(code, str) or not isinstance(message, str):
            return from_wire(response.status_code, "unexpected_answer", fallback)
        return from_wire(response.status_code, code, message, details)

    def _unreachable(self, error: httpx.HTTPError) -> UnavailableError:
        reason = str(error) or type(error).__name__
        return UnavailableError("server_unreachable", f"The server at {self.server.url} does not answer: {reason}.")


def decode(raw: bytes, kind: type[T]) -> T:
    """JSON bytes as `kind`. Raises `InternalError` for an answer that this client does not understand."""
    try:
        return msgspec.json.decode(raw or b"{}", type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InternalError("unexpected_answer", f"The server's answer is not understood: {error}.") from error
