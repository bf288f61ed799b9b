"""What the tests of real clients show: which public members of an SDK a test calls itself, and which endpoints it asks.

`make compatibility` runs the client suites with HUTCH_SHOWN naming a file; what passed is written there, one line per test, and
docs/compatibility.md is made of it. Rows are named `js:CLASS.MEMBER`, `py:CLASS.MEMBER` (the synchronous ones with their own
class names), `http:METHOD PATH`, and whatever `pytest.mark.shows` says.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import httpx2
import vercel.sandbox
import vercel.sandbox.sync

HERE = str(Path(__file__).parent)
MODULES = (vercel.sandbox, vercel.sandbox.sync)
VALUES = (
    "Query Source Policy Credentials Options Status Signal Retention Expiration Filter Resources DriveHandle DriveMount".split()
)
"""Classes whose names have one of these are values that are passed, not handles that are called."""
PROTOCOLS = ("Operation", "Operations", "Execution", "TextReader")
"""What tests meet as other classes. `SandboxTextReader` is a handle."""

CLI_ALIASES = {"ls": "list", "copy": "cp", "remove": "rm", "ssh": "connect"}

used: set[str] = set()
"""By the test that runs."""


def classes() -> Iterator[type]:
    """The handles of the Python SDK, asynchronous and synchronous."""
    seen: set[type] = set()
    for module in MODULES:
        for name in module.__all__:
            found = getattr(module, name)
            if not inspect.isclass(found) or found in seen or issubclass(found, BaseException):
                continue
            if any(part in name for part in VALUES) or (name.endswith(PROTOCOLS) and "SandboxText" not in name):
                continue
            if members(found):
                seen.add(found)
                yield found


def members(kind: type) -> dict[str, tuple[type, Any]]:
    """Public methods and properties that the SDK itself defines → where, and what."""
    found: dict[str, tuple[type, Any]] = {}
    for owner in kind.__mro__:
        if not owner.__module__.startswith("vercel."):
            continue
        for name, value in vars(owner).items():
            is_member = isinstance(value, (property, classmethod, staticmethod)) or inspect.isfunction(value)
            if is_member and not name.startswith("_"):
                found.setdefault(name, (owner, value))
    return found


def functions() -> list[str]:
    """The functions of the modules themselves, `create_sandbox` and others."""
    return sorted(
        f"{'sync' if module is vercel.sandbox.sync else 'sandbox'}.{name}"
        for module in MODULES
        for name in module.__all__
        if inspect.isfunction(getattr(module, name))
    )


def python_surface() -> set[str]:
    """Every row that the Python SDK needs."""
    own = {f"py:{kind.__name__}.{name}" for kind in classes() for name in members(kind)}
    return own | {f"py:{name}" for name in functions()}


def watch() -> None:
    """Note from now on what test files call."""
    # All of them before the first is replaced: what is inherited would be noted for its owner too.
    found = [(kind, name, value) for kind in classes() for name, (_, value) in members(kind).items()]
    for kind, name, value in found:
        setattr(kind, name, _noting(f"py:{kind.__name__}.{name}", value))
    for module in MODULES:
        prefix = "sync" if module is vercel.sandbox.sync else "sandbox"
        for name in module.__all__:
            if inspect.isfunction(value := getattr(module, name)):
                setattr(module, name, _noting(f"py:{prefix}.{name}", value))
    for client in (httpx.AsyncClient, httpx.Client, httpx2.AsyncClient, httpx2.Client):
        _watch_requests(client)
    _watch_programs()


def _watch_programs() -> None:
    """The vendor's command line: its command, and that of a group."""
    start = subprocess.Popen.__init__

    @functools.wraps(start)
    def noting(self: Any, args: Any, *arguments: Any, **named: Any) -> None:
        words = [str(word) for word in args] if isinstance(args, (list, tuple)) else []
        for place, word in enumerate(words[:-1]):
            if word.endswith("sandbox.mjs"):
                command = words[place + 1 : place + 3]
                used.update((f"cli:{CLI_ALIASES.get(command[0], command[0])}", f"cli:{' '.join(command)}"))
        start(self, args, *arguments, **named)

    subprocess.Popen.__init__ = noting  # type: ignore[method-assign]


def _noting(row: str, value: Any) -> Any:
    def noted(call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def wrapper(*arguments: Any, **named: Any) -> Any:
            if sys._getframe(1).f_code.co_filename.startswith(HERE):
                used.add(row)
            return call(*arguments, **named)

        return wrapper

    if isinstance(value, property):
        return property(noted(value.fget) if value.fget is not None else None, value.fset, value.fdel, value.__doc__)
    if isinstance(value, (classmethod, staticmethod)):
        return type(value)(noted(value.__func__))
    return noted(value)


def _watch_requests(client: Any) -> None:
    send = client.send

    @functools.wraps(send)
    def noting(self: Any, request: httpx.Request, *arguments: Any, **named: Any) -> Any:
        used.add(f"http:{request.method} {request.url.path}")
        return send(self, request, *arguments, **named)

    client.send = noting


def passed(test: str, shown: set[str]) -> None:
    """Write down what a test showed."""
    path = os.environ.get("HUTCH_SHOWN")
    if path and shown:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"test": test, "shown": sorted(shown)}) + "\n")
