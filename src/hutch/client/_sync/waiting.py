"""What waiting is in this flavour. The only file here that is written by hand; its twin is `_async/waiting.py`."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from time import sleep
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
V = TypeVar("V")

__all__ = ["Hook", "Lock", "in_thread", "notify", "sleep"]

Hook = Callable[[V], object]
"""A callback of a caller's."""


def in_thread(work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """What blocks; here everything does."""
    return work(*arguments, **options)


def notify(hook: Hook[V] | None, value: V) -> None:
    """Call a callback."""
    if hook is not None:
        hook(value)
