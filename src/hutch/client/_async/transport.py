"""HTTP: one connection pool, query and token on every request, error answers as `hutch.errors`, retries."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import httpx
import msgspec

from hutch import __version__
from hutch.client._async.waiting import sleep
from hutch.client.models import Paged
from hutch.client.places import Server
from hutch.client.retries import SAFE_METHODS, UNSENT, Retry, retry_after_s
from hutch.client.wire import MAX_ANSWER_BYTES, MAX_ERROR_BYTES, decode, error_of
from hutch.errors import HutchError, InternalError, UnavailableError

PROBES = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6}
"""Waits have no end of their own; a machine that is gone is noticed after these seconds and probes."""
KEEP_ALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *((socket.IPPROTO_TCP, getattr(socket, name), value) for name, value in PROBES.items() if hasattr(socket, name)),
]

Query = Mapping[str, str | list[str]]
"""Parameters; one that is there several times has a list."""
T = TypeVar("T")
P = TypeVar("P", bound=Paged)
TIMEOUT_S = 60.0
CONNECT_TIMEOUT_S = 10.0
MAX_IDLE_CONNECTIONS = 64


class Http:
    """Requests to one server. Every method raises `HutchError` for an answer that is none of success."""

    def __init__(
        self,
        server: Server,
        transport: httpx.AsyncBaseTransport | None = None,
        *,
        retry: Retry | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.server = server
        self.timeout_s = timeout_s
        self._retry = retry or Retry()
        headers = {"user-agent": f"hutch/{__version__}"}
        if server.token:
            headers["authorization"] = f"Bearer {server.token}"
        # A proxy from the environment would see the token, and the server is usually on this machine. Redirects are not followed
        # for the same reason.
        self._client = httpx.AsyncClient(
            base_url=f"{server.url}/api",
            headers=headers,
            transport=transport or _own(server.url),
            trust_env=False,
            follow_redirects=False,
        )

    def project(self) -> dict[str, str]:
        """The query that names the server's project, for what belongs to one."""
        return {"projectId": self.server.project_id} if self.server.project_id else {}

    async def aclose(self) -> None:
        await self._client.aclose()

    async def call(
        self,
        method: str,
        path: str,
        kind: type[T],
        *,
        body: object | None = None,
        headers: Sequence[tuple[bytes, bytes]] = (),
        query: Query | None = None,
        timeout_s: float | None = 0.0,
        scoped: bool = True,
        safe: bool | None = None,
    ) -> T:
        """A JSON request and its answer as `kind`. Without `scoped` it names no team; `timeout_s` 0 is the client's, None none;
        `safe` says whether it may arrive twice (default: by its method)."""
        call = self._request(method, path, body, None, headers, query, timeout_s or self._default(timeout_s), scoped)
        _, raw = await self._send(call, safe=method in SAFE_METHODS if safe is None else safe, replayable=True, whole=True)
        return decode(raw, kind)

    async def pages(self, path: str, kind: type[P], query: Mapping[str, str]) -> AsyncGenerator[P, None]:
        """The pages of a list, each asked for when it is needed. Raises `InternalError` for a list that leads back to itself."""
        query = dict(query)
        while True:
            page = await self.call("GET", path, kind, query=query)
            yield page
            following = page.pagination.next
            if following is None:
                return
            if following == query.get("cursor"):
                raise InternalError("unexpected_answer", "The server's list has a page that is followed by itself.")
            query["cursor"] = following

    @asynccontextmanager
    async def open(
        self,
        method: str,
        path: str,
        *,
        body: object | None = None,
        content: AsyncIterable[bytes] | bytes | None = None,
        headers: Sequence[tuple[bytes, bytes]] = (),
        query: Query | None = None,
        timeout_s: float | None = None,
        scoped: bool = True,
        safe: bool | None = None,
    ) -> AsyncIterator[httpx.Response]:
        """A request whose answer the caller reads; `timeout_s` None waits for ever between two bytes. Leaving closes the answer,
        also in the middle of it."""
        replayable = content is None or isinstance(content, bytes)
        call = self._request(method, path, body, content, headers, query, timeout_s, scoped)
        response, _ = await self._send(
            call, safe=method in SAFE_METHODS if safe is None else safe, replayable=replayable, whole=False
        )
        try:
            yield response
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        finally:
            await response.aclose()

    def _default(self, timeout_s: float | None) -> float | None:
        return None if timeout_s is None else self.timeout_s

    def _request(
        self,
        method: str,
        path: str,
        body: object | None,
        content: AsyncIterable[bytes] | bytes | None,
        headers: Sequence[tuple[bytes, bytes]],
        query: Query | None,
        timeout_s: float | None,
        scoped: bool,
    ) -> httpx.Request:
        sent = list(headers)
        if body is not None:
            content = msgspec.json.encode(body)
            sent.append((b"content-type", b"application/json"))
        team = {"teamId": self.server.team_id} if scoped and self.server.team_id else {}
        timeout = httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S, pool=None)
        return self._client.build_request(
            method, path, content=content, headers=sent, params={**team, **(query or {})}, timeout=timeout
        )

    async def _send(self, request: httpx.Request, *, safe: bool, replayable: bool, whole: bool) -> tuple[httpx.Response, bytes]:
        """The answer to a request, open, or with `whole` closed and its body read. Sent again as `Retry` decides."""
        attempt, repeated = 0, False
        while True:
            try:
                response = await self._client.send(request, stream=True)
                if response.status_code < 300:
                    return response, await self._whole(response, MAX_ANSWER_BYTES) if whole else b""
                error = await self._error(response)
            except httpx.HTTPError as fault:
                pause = self._retry.after_fault(attempt, fault, safe=safe, replayable=replayable)
                if pause is None:
                    raise self._unreachable(fault) from fault
                repeated = repeated or not isinstance(fault, UNSENT)
            else:
                if repeated and request.method == "DELETE" and error.status == 404:
                    # The first one arrived, and its answer did not.
                    return response, b""
                pause = self._retry.after_answer(
                    attempt, response.status_code, error.retry_after_s, safe=safe, replayable=replayable
                )
                if pause is None:
                    raise error
                repeated = repeated or response.status_code != 429
            await sleep(pause)
            attempt += 1

    async def _error(self, response: httpx.Response) -> HutchError:
        raw = await self._whole(response, MAX_ERROR_BYTES, cut=True)
        error = error_of(response.status_code, response.reason_phrase, raw)
        error.retry_after_s = retry_after_s(response.headers.get("retry-after"))
        return error

    async def _whole(self, response: httpx.Response, most: int, *, cut: bool = False) -> bytes:
        """A body; of one that is larger the beginning, with `cut`, or `InternalError`. Closes the answer."""
        try:
            parts, size = [], 0
            async for chunk in response.aiter_bytes():
                parts.append(chunk)
                size += len(chunk)
                if size > most:
                    if cut:
                        break
                    raise InternalError("unexpected_answer", f"The server's answer has more than {most} bytes.")
            return b"".join(parts)
        finally:
            await response.aclose()

    def _unreachable(self, error: httpx.HTTPError) -> UnavailableError:
        reason = str(error) or type(error).__name__
        return UnavailableError("server_unreachable", f"The server at {self.server.url} does not answer: {reason}.")


def _own(url: str) -> httpx.AsyncHTTPTransport:
    """What carries requests to that server, and to no other."""
    # Reading the trust store takes longer than a request, and without TLS nobody needs it. An empty one trusts nobody.
    verify: ssl.SSLContext | bool = True if url.startswith("https:") else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=MAX_IDLE_CONNECTIONS)
    return httpx.AsyncHTTPTransport(verify=verify, limits=limits, trust_env=False, socket_options=KEEP_ALIVE)
