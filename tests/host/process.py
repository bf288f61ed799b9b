"""A real `hutch host` in a process of its own, that can be killed, and its client."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hutch.errors import HutchError
from hutch.host.cgroups import Cgroups
from hutch.host.client import HostClient
from hutch.host.conversion import CONVERTING
from hutch.host.names import Names
from hutch.host.protocol import HostInfo

START_S = 60.0
CONVERTS_S = 60.0


class HostProcess:
    """`hutch host` on one data directory, started and killed any number of times."""

    def __init__(self, data_dir: Path, **settings: str) -> None:
        self.data_dir = data_dir
        self.log = data_dir.parent / "host.log"
        # `auto` would have other sandboxes on other machines.
        self._settings = {"HUTCH_ISOLATION__BACKEND": os.environ.get("HUTCH_ISOLATION", "gvisor")}
        self._settings |= {f"HUTCH_{key.upper()}": value for key, value in settings.items()}
        self._process: subprocess.Popen[bytes] | None = None
        self.client = HostClient(data_dir / "run" / "host.sock")

    async def start(self) -> None:
        """Start, and wait until it answers."""
        own = {key: value for key, value in os.environ.items() if not key.startswith("HUTCH_") or key == "HUTCH_CACHE_DIR"}
        command = [sys.executable, "-m", "hutch", "host", "--data-dir", str(self.data_dir)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=own | self._settings)
        async with asyncio.timeout(START_S):
            while True:
                if self._process.poll() is not None:
                    pytest.fail(f"hutch host ended with {self._process.returncode}:\n{self.log.read_text()[-4000:]}")
                try:
                    await self.client.call("host.info", {}, HostInfo)
                except HutchError:
                    await asyncio.sleep(0.02)
                else:
                    return

    async def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        await asyncio.to_thread(self._process.wait)
        await self.client.close()

    def converting(self) -> list[str]:
        """The machines that make a disk of a tree, or a tree of a disk, now; also those that a dead host left."""
        parent = Names.of(self.data_dir).cgroup_parent
        return [name for name in Cgroups.detect().children(parent) if name.startswith(CONVERTING)]

    async def kill_while_it_converts(self) -> None:
        """SIGKILL as soon as one of them is there."""
        async with asyncio.timeout(CONVERTS_S):
            while not self.converting():
                await asyncio.sleep(0.01)
        await self.kill()

    async def stop(self) -> None:
        """SIGTERM; it must end cleanly."""
        assert self._process is not None
        self._process.terminate()
        await self.client.close()
        code = await asyncio.to_thread(self._process.wait, 60)
        assert code == 0, self.log.read_text()[-4000:]
