"""A host in a process of its own that does one thing and ends with SIGKILL at one step of it.

Its processes are forked off one that has imported everything: they are many, and that is most of what they would do.

Actions: `create DRIVE`, `copy DRIVE FROM`, `remove DRIVE`, `mount SESSION DRIVE MODE`, `stop SESSION`.
"""

from __future__ import annotations

import asyncio
import fcntl
import functools
import importlib
import inspect
import multiprocessing
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

import pytest

from hutch.host.protocol import DriveMode, DriveMount, DriveSpec
from hutch.host.supervisor import Supervisor
from tests.conftest import wait_until
from tests.host.guest import Guest, real_host, spec

SIZE = 256 * 1024 * 1024
TIMEOUT_S = 60
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.host.dying"])


def die_at(data_dir: Path, when: str, step: str, *action: str) -> None:
    """Run such a host to its death at a step: `before` or `after` it, named as MODULE:CLASS.METHOD."""
    with tempfile.NamedTemporaryFile() as said:
        process = PROCESSES.Process(target=_run, args=(said.name, data_dir, when, step, *action))
        process.start()
        process.join(TIMEOUT_S)
        if process.exitcode is None:
            process.kill()
            process.join()
            pytest.fail(f"it did not end within {TIMEOUT_S} s: {said.read().decode()[-4000:]}")
        assert process.exitcode == -signal.SIGKILL, f"it ended with {process.exitcode}: {said.read().decode()[-4000:]}"
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


def _run(said: str, data_dir: Path, when: str, step: str, *action: str) -> None:
    with open(said, "wb", buffering=0) as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    asyncio.run(_live(data_dir, when, step, *action))


async def _live(data_dir: Path, when: str, step: str, *action: str) -> None:
    async with real_host(data_dir, end_all=False) as service:
        _arm(when, step)
        await _act(service.supervisor, *action)
    raise AssertionError(f"{step} was not reached")
