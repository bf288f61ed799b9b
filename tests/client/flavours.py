"""One test for both flavours: `now` waits for what one of them answers with, `each` reads what it iterates.

The blocking one is called with a loop that runs, as in a notebook.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from hutch.client import AsyncClient, Client, Retry, Server

SERVER = Server("http://127.0.0.1:1", "secret", "team_1", "prj_1")
SESSION, OTHER = "sbx_" + "a" * 28, "sbx_" + "b" * 28
COMMAND = {"id": "cmd_1", "name": "true", "args": [], "cwd": "/", "sessionId": SESSION, "startedAt": 1, "exitCode": None}
AT_ONCE = Retry(first_pause_s=0.0)
Handler = Callable[[httpx.Request], httpx.Response]
Flavour = Callable[..., Any]
both = pytest.mark.parametrize("flavour", [AsyncClient, Client])


def scripted(flavour: Flavour, handler: Handler, **options: Any) -> Any:
    """A client of that flavour whose requests `handler` answers."""
    return flavour(SERVER, transport=httpx.MockTransport(handler), **{"retry": AT_ONCE, **options})


async def now(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


async def each(values: Any) -> list[Any]:
    return [value async for value in values] if hasattr(values, "__aiter__") else list(values)


def chunks(flavour: Flavour, *parts: bytes) -> Any:
    """A stream as that flavour takes one."""

    async def waiting() -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    return waiting() if flavour is AsyncClient else iter(parts)


@asynccontextmanager
async def within(manager: Any) -> AsyncIterator[Any]:
    if hasattr(manager, "__aenter__"):
        async with manager as value:
            yield value
    else:
        with manager as value:
            yield value


def created(session: str = SESSION, *, resumed: bool = False, status: str = "running") -> dict[str, Any]:
    """The answer to a create or get."""
    return {
        "sandbox": {
            "name": "box",
            "currentSessionId": session,
            "status": status,
            "persistent": True,
            "createdAt": 1,
            "updatedAt": 1,
        },
        "session": {
            "id": session,
            "status": status,
            "cwd": "/work",
            "timeout": 1,
            "memory": 1,
            "vcpus": 1,
            "requestedAt": 1,
        },
        "routes": [],
        "resumed": resumed,
    }


def failure(status: int, code: str, **headers: str) -> httpx.Response:
    return httpx.Response(status, json={"error": {"code": code, "message": "Why."}}, headers=headers)
