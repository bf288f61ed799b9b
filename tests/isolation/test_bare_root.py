"""Roots as Firecracker's guests have them, on a real kernel, emulated: an image whose only file is the agent, an initramfs alone,
and disks without serial numbers."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest

from hutch.errors import BadRequestError, InternalError
from hutch.host import kernel
from hutch.host.binaries import guest_path
from hutch.host.cgroups import Cgroups
from hutch.host.debug_firecracker import execute
from hutch.isolation import tsc
from hutch.isolation.protocol import PlannedMount
from hutch.isolation.qemu import INITRAMFS, KERNEL, PROBE_ROOT, Guest, Qemu, make_disk
from hutch.isolation.qemu_command import MIB, Accelerator
from hutch.isolation.qemu_probe import Booted, with_machine
from hutch.wire.connection import Data
from scripts.setup import initramfs
from tests.wire.agent import agent_binary

pytestmark = [pytest.mark.root]
DEADLINE_S = 90.0
# What a kernel with all drivers built in does by itself for `root=/dev/vda init=/init`.
STAGE = r"""
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(void) {
    char name[256], path[300];
    FILE *order = fopen("/modules/order", "r");
    while (order && fgets(name, sizeof name, order)) {
        name[strcspn(name, "\n")] = 0;
        snprintf(path, sizeof path, "/modules/%s", name);
        int file = open(path, O_RDONLY);
        syscall(SYS_finit_module, file, "", 0);
        close(file);
    }
    mount("devtmpfs", "/dev", "devtmpfs", 0, "");
    mkdir("/new", 0755);
    for (int tries = 0; mount("/dev/vda", "/new", "erofs", MS_RDONLY, "") && tries < 1000; tries++) usleep(5000);
    if (chdir("/new") || mount(".", "/", 0, MS_MOVE, 0) || chroot(".") || chdir("/")) { perror("switch"); return 1; }
    char *words[] = {"/init", "nomodule", 0};
    execv("/init", words);
    perror("exec");
    return 1;
}
"""


@pytest.fixture(scope="module")
def qemu(tmp_path_factory: pytest.TempPathFactory) -> Qemu:
    made = tmp_path_factory.mktemp("bare")
    (made / "stage.c").write_text(STAGE)
    subprocess.run(["cc", "-static", "-O1", "-o", made / "stage", made / "stage.c"], check=True)
    guest = Guest(guest_path())
    guest.require()
    directory = made / "guest"
    directory.mkdir()
    for name in (KERNEL, PROBE_ROOT):
        (directory / name).symlink_to((guest.directory / name).resolve())
    # A later archive's files replace those of an earlier one.
    stage = initramfs.pack([initramfs.file("init", (made / "stage").read_bytes(), 0o755)])
    first = guest.initramfs.read_bytes()
    (directory / INITRAMFS).write_bytes(first + bytes(-len(first) % 512) + stage)
    return Qemu(Guest(directory), made / "state", Cgroups.detect(), Accelerator.TCG, disk_bytes=64 * MIB)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("image")
    (directory / "tree").mkdir()
    (directory / "tree" / "init").write_bytes(agent_binary().read_bytes())
    (directory / "tree" / "init").chmod(0o755)
    subprocess.run(["mkfs.erofs", "-Enoinline_data", directory / "image", directory / "tree"], check=True, capture_output=True)
    return directory / "image"


def test_the_agent_alone_is_root_enough(qemu: Qemu, image: Path, tmp_path: Path) -> None:
    line = f"console=ttyS0 quiet panic=-1 reboot=t tsc_early_khz={tsc.frequency_khz()} tsc=reliable hutch.vm=1 hutch.layers=0"

    async def use(booted: Booted) -> tuple[int, dict[str, str]]:
        return await execute(booted.connection, ["/init", "--version"], forward=False)

    code, said = asyncio.run(
        with_machine(qemu, (image,), use, deadline_s=DEADLINE_S, parent=tmp_path, memory_bytes=256 * MIB, kernel_line=line)
    )
    assert code == 0
    assert said["stdout"].startswith("hutch-agent ")
    assert said["stderr"] == ""


def test_the_agent_stays_in_its_initramfs(tmp_path: Path) -> None:
    """As `hutch debug firecracker --initrd` has it: no images, no disk."""
    guest = Guest(guest_path())
    alone = Qemu(guest, tmp_path / "state", Cgroups.detect(), Accelerator.TCG, disk_bytes=64 * MIB)
    line = f"console=ttyS0 quiet panic=-1 reboot=t tsc_early_khz={tsc.frequency_khz()} tsc=reliable hutch.vm=1 hutch.layers=0"

    async def use(booted: Booted) -> tuple[int, dict[str, str]]:
        return await execute(booted.connection, ["/init", "--version"], forward=False)

    booting = with_machine(alone, (guest.probe_root,), use, deadline_s=DEADLINE_S, parent=tmp_path, kernel_line=line)
    assert asyncio.run(booting)[0] == 0


def test_disks_without_serial_numbers_are_told_by_their_order(tmp_path: Path) -> None:
    guest = Guest(guest_path())
    qemu = Qemu(guest, tmp_path / "state", Cgroups.detect(), Accelerator.TCG, disk_bytes=64 * MIB)
    words = f"console=ttyS0 quiet panic=-1 reboot=t tsc_early_khz={tsc.frequency_khz()} tsc=reliable"

    drives = tuple(PlannedMount(path, tmp_path / path[1:2], read_only=path == "/run/b") for path in ("/a/deep", "/run/b"))
    for drive in drives:
        make_disk(drive.source, 16 * MIB)
    # One that is read has been written to.
    kernel.run(["debugfs", "-w", "-R", "mkdir u", str(drives[1].source)])

    async def mounts(booted: Booted) -> bytes:
        call = booted.connection.call
        told = [{"path": drive.path.encode(), "read_only": drive.read_only, "owner": [1, 2]} for drive in drives]
        for path in (b"relative", b"/", b"/../etc", b"/srv/./b", b"/proc/self/fd", b"/dev/stdin/x", b"/run/\xff" + b"n" * 300):
            with pytest.raises((BadRequestError, InternalError), match="can be mounted at"):
                await call("drives.mount", {"mounts": [told[0] | {"path": path}]})
        assert await call("drives.mount", {"mounts": told}) == {}
        # Only once, and no more than there are.
        for again in (told, told * 2):
            with pytest.raises(InternalError, match="drive of /a/deep can't be mounted"):
                await call("drives.mount", {"mounts": again})
        owned = await call("file.stat", {"path": b"/a/deep", "user": "root"})
        assert (owned["uid"], owned["gid"], owned["mode"] & 0o7777) == (1, 2, 0o755)
        stream = booted.connection.open("file.read", {"path": b"/proc/mounts", "user": "root"})
        stream.send_end()
        await stream.reply()
        return b"".join([item.data async for item in stream if isinstance(item, Data)])

    line = f"{words} hutch.vm=1 hutch.layers=1 hutch.disks=order"
    found = asyncio.run(
        with_machine(qemu, (guest.probe_root,), mounts, deadline_s=DEADLINE_S, parent=tmp_path, kernel_line=line, mounts=drives)
    )
    assert b"\n/dev/vdc /a/deep ext4 rw,nosuid,nodev,relatime,discard" in found
    assert b"\n/dev/vdd /run/b ext4 ro,nosuid,nodev,relatime" in found
    assert b"overlay / overlay rw" in found
    assert b"lowerdir=/layers/0,upperdir=/disk/u" in found
