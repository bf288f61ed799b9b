"""One child process: started, started again when it dies, stopped."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import time
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

from hutch.serving import kernel
from hutch.settings import ENVIRONMENT_PREFIX, Settings, Source

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(32 * 1024 * 1024), "MALLOC_TRIM_THRESHOLD_": str(64 * 1024 * 1024)}
"""Buffers of a stream come from memory that is kept: given back to the kernel after each, its pages would be half of the cost."""
STEADY_S = 30.0
"""A child that ran this long was well; the next restart is quick again."""


def child_environment(
    settings: Settings, environment: Mapping[str, str], changed: Mapping[str, str], without: Collection[str] = ()
) -> dict[str, str]:
    """`environment` in which `hutch.settings.load` finds these settings, with `changed` (`section.key` → text) over them, and
    `without` some keys."""
    result = {name: value for name, value in environment.items() if not (name.startswith(ENVIRONMENT_PREFIX) and "__" in name)}
    result["HUTCH_CONFIG"] = os.devnull
    result |= MALLOC
    for dotted, value in settings.leaves():
        if settings.source_of(dotted)[0] is not Source.DEFAULT and value is not None and dotted not in without:
            result[_variable(dotted)] = json.dumps(value, default=dict) if isinstance(value, tuple) else str(value)
    return result | {_variable(key): value for key, value in changed.items()}


def _variable(key: str) -> str:
    return ENVIRONMENT_PREFIX + key.replace(".", "__").upper()


def _prepare_child() -> None:
    """Between fork and exec. The kernel ends the child with us, whatever happens to us."""
    kernel.die_with_parent(signal.SIGKILL)


def _prepare_patient_child() -> None:
    """The same for a child that must not end by a signal that it does not listen to yet: it waits until it does."""
    _prepare_child()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


class Child:
    """A child that should be running. `started` counts its starts. A `patient` one has SIGTERM blocked until it listens to it."""

    def __init__(self, name: str, argv: Sequence[str], environment: Mapping[str, str], *, patient: bool = False) -> None:
        self.name = name
        self._patient = patient
        self._argv = tuple(argv)
        self._environment = dict(environment)
        self.process: Process | None = None
        self.started = 0
        self.quick_deaths = 0
        """Deaths in a row that came soon after a start."""
        self._stopping = asyncio.Event()
        self._starting = asyncio.Lock()

    async def start(self, *, extra: Sequence[str] = (), descriptors: Sequence[int] = ()) -> Process:
        """Start it, with more arguments and inherited descriptors."""
        async with self._starting:
            process = await asyncio.create_subprocess_exec(
                *self._argv,
                *extra,
                stdin=asyncio.subprocess.DEVNULL,
                env=self._environment,
                cwd="/",
                pass_fds=tuple(descriptors),
                # Its own process group: Ctrl-C on our terminal is for us alone, and stopping has an order.
                process_group=0,
                preexec_fn=_prepare_patient_child if self._patient else _prepare_child,
            )
            self.process = process
        self.started += 1
        log.info("%s started, pid %d", self.name, process.pid)
        return process

    async def keep(self, start: StartChild) -> None:
        """Run it until `stop`: start it with `start`, wait for its death, pause, start it again."""
        pause = FIRST_PAUSE_S
        while True:
            began = time.monotonic()
            try:
                process = await start(self)
            except OSError as error:
                # As on a machine that has no room for one more process just now.
                log.error("%s could not be started (%s); again in %.1f s", self.name, error, pause)
                await asyncio.sleep(pause)
                if self._stopping.is_set():
                    return
                pause = min(pause * 2, LONGEST_PAUSE_S)
                continue
            code = await process.wait()
            if self._stopping.is_set():
                return
            if time.monotonic() - began > STEADY_S:
                pause, self.quick_deaths = FIRST_PAUSE_S, 0
            self.quick_deaths += 1
            log.error("%s ended with %s; starting it again in %.1f s", self.name, _cause(code), pause)
            await asyncio.sleep(pause)
            if self._stopping.is_set():
                return
            pause = min(pause * 2, LONGEST_PAUSE_S)

    async def stop(self, grace_s: float, start: StartChild | None = None) -> bool:
        """SIGTERM, and SIGKILL after `grace_s` seconds. False when it had to be killed, or could not end cleanly. One that has
        died is started once more with `start`: it has something to end."""
        self._stopping.set()
        async with self._starting:
            process = self.process
        if process is not None and process.returncode is not None and start is not None:
            process = await start(self)
        if process is None or process.returncode is not None:
            return True
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), grace_s)
        except TimeoutError:
            log.error("%s did not end within %.0f s of SIGTERM; killing it", self.name, grace_s)
            process.kill()
            await process.wait()
            return False
        # By the signal itself, before it listens to it or after it has done what it had to.
        clean = process.returncode in (0, -signal.SIGTERM)
        if not clean:
            log.error("%s ended with %s when it was stopped", self.name, _cause(process.returncode or 0))
        return clean


StartChild = Callable[[Child], Awaitable[Process]]


def _cause(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
