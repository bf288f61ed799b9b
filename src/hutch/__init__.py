"""Hutch runs code that nobody trusts, in sandboxes of its own.

`hutch.Client` and `hutch.AsyncClient` are the client (`hutch.client`), imported when they are first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hutch.client import AsyncClient, Client

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "__version__"]


def __getattr__(name: str) -> object:
    if name in ("AsyncClient", "Client"):
        from hutch import client

        return getattr(client, name)
    raise AttributeError(f"module 'hutch' has no attribute {name!r}")
