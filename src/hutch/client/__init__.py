"""The client of the sandbox API: what programs, the command line and the tests use. Public names are those in `__all__`, and
`hutch.errors`.

    Client, AsyncClient
                  `_async/client.py`; objects with methods beside it (`sandbox.py`, `command.py`, `filesystem.py`, …) and, one
                  level down, the API call by call (`sandboxes.py`, `commands.py`, `files.py`, …)
    _async/, _sync/
                  one source: scripts/write_sync_client.py writes the blocking flavour from the asynchronous one, and a test says
                  when it is stale. Only `waiting.py` is there twice by hand. Neither has a thread or an event loop of its own, so
                  both work in a notebook.
    transport.py  (of a flavour) one connection pool, error answers as `hutch.errors`; the only file there that sends anything

What needs no connection is there once, as values in and values out:

    places.py     which server is meant, and with which token
    paths.py      where things are; what can't be a name never becomes part of a URL
    inputs.py     what callers say, and the bodies that it becomes
    models.py     what the API answers: frozen structs
    wire.py       what answers mean; hostile ones are errors
    retries.py    which requests are sent again
    results.py    commands that have ended, entries of directories; the small scripts that find them out
    archives.py   archives on their way in and out
    policies.py   what a network policy would do to a request
    display.py    objects in notebooks
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from hutch.client import models
from hutch.client.inputs import (
    DriveMount,
    Duration,
    GitSource,
    NetworkPolicy,
    SandboxResources,
    SnapshotRetention,
    SnapshotSource,
    TarballSource,
)
from hutch.client.places import Server, find_server, server_file
from hutch.client.results import CommandFailedError, CompletedCommand, DirectoryEntry, FileStat
from hutch.client.retries import Retry
from hutch.client.wire import Finished, Output, Started

if TYPE_CHECKING:
    from hutch.client._async.client import AsyncClient
    from hutch.client._async.command import AsyncCommand
    from hutch.client._async.drive import AsyncDrive
    from hutch.client._async.filesystem import AsyncFilesystem
    from hutch.client._async.image import AsyncImage
    from hutch.client._async.sandbox import AsyncSandbox
    from hutch.client._async.session import AsyncSession
    from hutch.client._async.snapshot import AsyncSnapshot
    from hutch.client._async.terminal import AsyncInteractiveSession
    from hutch.client._sync.client import Client
    from hutch.client._sync.command import Command
    from hutch.client._sync.drive import Drive
    from hutch.client._sync.filesystem import Filesystem
    from hutch.client._sync.image import Image
    from hutch.client._sync.sandbox import Sandbox
    from hutch.client._sync.session import Session
    from hutch.client._sync.snapshot import Snapshot
    from hutch.client._sync.terminal import InteractiveSession

_FLAVOURS = {
    "AsyncClient": "_async.client",
    "AsyncCommand": "_async.command",
    "AsyncDrive": "_async.drive",
    "AsyncFilesystem": "_async.filesystem",
    "AsyncImage": "_async.image",
    "AsyncSandbox": "_async.sandbox",
    "AsyncSession": "_async.session",
    "AsyncSnapshot": "_async.snapshot",
    "AsyncInteractiveSession": "_async.terminal",
    "Client": "_sync.client",
    "Command": "_sync.command",
    "Drive": "_sync.drive",
    "Filesystem": "_sync.filesystem",
    "Image": "_sync.image",
    "Sandbox": "_sync.sandbox",
    "Session": "_sync.session",
    "Snapshot": "_sync.snapshot",
    "InteractiveSession": "_sync.terminal",
}
"""Where the classes of the two flavours are. A program needs one of them, and imports only that."""

__all__ = [
    "AsyncClient",
    "AsyncCommand",
    "AsyncDrive",
    "AsyncFilesystem",
    "AsyncImage",
    "AsyncInteractiveSession",
    "AsyncSandbox",
    "AsyncSession",
    "AsyncSnapshot",
    "Client",
    "Command",
    "CommandFailedError",
    "CompletedCommand",
    "DirectoryEntry",
    "Drive",
    "DriveMount",
    "Duration",
    "FileStat",
    "Filesystem",
    "Finished",
    "GitSource",
    "Image",
    "InteractiveSession",
    "NetworkPolicy",
    "Output",
    "Retry",
    "Sandbox",
    "SandboxResources",
    "Server",
    "Session",
    "Snapshot",
    "SnapshotRetention",
    "SnapshotSource",
    "Started",
    "TarballSource",
    "find_server",
    "models",
    "server_file",
]


def __getattr__(name: str) -> object:
    if name not in _FLAVOURS:
        raise AttributeError(f"module 'hutch.client' has no attribute {name!r}")
    found: object = getattr(importlib.import_module(f"hutch.client.{_FLAVOURS[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
