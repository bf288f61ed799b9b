"""A host in a process of its own that does one thing and ends with SIGKILL at one step of it.

    python -m tests.host.dying DATA_DIR before|after MODULE:CLASS.METHOD ACTION [ARGUMENT …]

Actions: `create DRIVE`, `copy DRIVE FROM`, `remove DRIVE`, `mount SESSION DRIVE MODE`, `stop SESSION`.
"""

from __future__ import annotations

import asyncio
import fcntl
import functools
import importlib
import inspect
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

from hutch.host.protocol import DriveMode, DriveMount, DriveSpec
from hutch.host.supervisor import Supervisor
from tests.conftest import wait_until
from tests.host.guest import Guest, real_host, spec

SIZE = 256 * 1024 * 1024
TIMEOUT_S = 60


def die_at(data_dir: Path, when: str, step: str, *action: str) -> None:
    """Run such a host to its death."""
    command = [sys.executable, "-m", "tests.host.dying", str(data_dir), when, step, *action]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == -signal.SIGKILL, f"it ended with {done.returncode}: {done.stderr[-4000:]}"
    # A child that it was just starting has its lock until it becomes another program.
    with (data_dir / "host" / "lock").open() as lock:
        wait_until(lambda: _is_free(lock.fileno()), 10, "the lock of the host that died")


def _is_free(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def _arm(when: str, step: str) -> None:
    module, _, path = step.partition(":")
    kind, _, name = path.partition(".")
    owner = getattr(importlib.import_module(module), kind)
    original = getattr(owner, name)

    @functools.wraps(original)
    async def deadly(*arguments: Any, **options: Any) -> Any:
        if when == "after":
            await original(*arguments, **options)
        _die()

    @functools.wraps(original)
    def deadly_at_once(*arguments: Any, **options: Any) -> Any:
        if when == "after":
            original(*arguments, **options)
        _die()

    setattr(owner, name, deadly if inspect.iscoroutinefunction(original) else deadly_at_once)


async def _act(supervisor: Supervisor, action: str, *words: str) -> None:
    if action in ("create", "copy"):
        source = words[1] if action == "copy" else None
        await supervisor.drives.create(DriveSpec(drive_id=words[0], size_bytes=SIZE, source_id=source))
    elif action == "remove":
        await supervisor.drives.remove(words[0])
    elif action == "mount":
        session_id, drive_id, mode = words
        mounts = [DriveMount(path="/data", drive_id=drive_id, mode=DriveMode(mode))]
        await supervisor.create(spec(session_id=session_id, mounts=mounts))
    else:
        await Guest(supervisor, words[0]).stop()


async def main(data_dir: str, when: str, step: str, *action: str) -> None:
    async with real_host(Path(data_dir), end_all=False) as service:
        _arm(when, step)
        await _act(service.supervisor, *action)
    raise AssertionError(f"{step} was not reached")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
