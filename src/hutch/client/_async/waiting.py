"""What waiting is in this flavour. The only file whose twin (`_sync/waiting.py`) is written by hand."""

from __future__ import annotations

import asyncio
import inspect
from asyncio import Lock, sleep
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
V = TypeVar("V")

__all__ = ["Hook", "Lock", "in_thread", "notify", "sleep"]

Hook = Callable[[V], Awaitable[object] | object]
"""A callback of a caller's: a function, or one that answers with an awaitable."""


async def in_thread(work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """What blocks, such as a local file, kept off the event loop."""
    return await asyncio.to_thread(work, *arguments, **options)


async def notify(hook: Hook[V] | None, value: V) -> None:
    """Call a callback, and wait for it when it is a coroutine."""
    if hook is not None:
        answer = hook(value)
        if inspect.isawaitable(answer):
            await answer
