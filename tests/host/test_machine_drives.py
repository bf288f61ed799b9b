"""Drives on virtual machines, and of one form that becomes the other: what a machine of its own mounts and converts.

Machines are emulated here, and a start takes some seconds, so each test does many things. What drives do everywhere is in
`test_drives.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hutch.host.drive_storage import name_of
from hutch.host.protocol import DriveMode
from tests.host.guest import Guest, guest, real_host
from tests.host.test_drives import at, drive
from tests.host.test_storage import MIB

pytestmark = [pytest.mark.root, pytest.mark.sandbox, pytest.mark.timeout(300)]

BOTH: dict[str, Any] = {"isolation__backend": "gvisor", "isolation__also": ["qemu"], "isolation__qemu_accelerator": "tcg"}
MACHINE: dict[str, Any] = {"isolation": "qemu", "memory_mb": 512}


async def test_try(no_leaks: Path) -> None:
    async with real_host(no_leaks, **BOTH) as host:
        kept = await drive(host, 64 * MIB)
        box = await guest(host, mounts=[at("/srv/data", kept)], **MACHINE)
        r = await box.shell("ls -la /srv /srv/data; findmnt /srv/data; cat /proc/mounts; echo one > /srv/data/f; ls /sys/block; dmesg | tail -3", sudo=False)
        print(r.stdout.decode(), r.stderr.decode())
        r = await box.shell("df /srv/data; mount; dmesg | tail", sudo=True)
        print(r.stdout.decode(), r.stderr.decode())
        seen = await guest(host, mounts=[at("/seen", kept, DriveMode.SNAPSHOT)], **MACHINE)
        print(await seen.shell("cat /seen/f; touch /seen/x; ls -la /seen"))
        tree = await guest(host, mounts=[at("/seen", kept, DriveMode.SNAPSHOT)])
        print(await tree.shell("cat /seen/f; touch /seen/x; ls -la /seen"))
        print(await box.stop())
        box = await guest(host, mounts=[at("/srv/data", kept)])
        print(await box.shell("cat /srv/data/f; ls -la /srv/data; echo two >> /srv/data/f"))
        print(host.supervisor.drives._store.names())
        seen = await guest(host, mounts=[at("/seen", kept, DriveMode.SNAPSHOT)], **MACHINE)
        print(await seen.shell("cat /seen/f; touch /seen/x; ls -la /seen"))
        await box.stop()
        box = await guest(host, mounts=[at("/srv/data", kept)], **MACHINE)
        print(await box.shell("cat /srv/data/f; ls -la /srv/data; echo two >> /srv/data/f"))
