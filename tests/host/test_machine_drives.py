"""Drives on virtual machines, and those of one form that become the other.

Machines are emulated here, and a start takes some seconds, so each test does many things. What drives do everywhere is in
`test_drives.py`, which `HUTCH_ISOLATION=qemu` runs on virtual machines too.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest

from hutch import ids
from hutch.errors import BadRequestError, ConflictError, HutchError, UnavailableError
from hutch.host import kernel
from hutch.host.drive_storage import name_of
from hutch.host.protocol import (
    DriveMode,
    DriveRecord,
    DriveSpec,
    SessionRecord,
    SessionStatus,
    SnapshotRequest,
    StopRequest,
)
from hutch.isolation.qemu import make_disk
from tests.host.guest import Guest, guest, over, real_host, spec
from tests.host.process import HostProcess
from tests.host.test_drives import at, drive
from tests.host.test_storage import MIB

pytestmark = [pytest.mark.root, pytest.mark.sandbox, pytest.mark.timeout(300)]

BOTH: dict[str, Any] = {"isolation__backend": "gvisor", "isolation__also": ["qemu"], "isolation__qemu_accelerator": "tcg"}
MACHINE: dict[str, Any] = {"isolation": "qemu", "memory_mb": 512}
WRITE = """
set -e; cd /data; mkdir -p deep/er; echo contents > file; ln file deep/other; ln -s ../../etc/passwd deep/link
head -c 1500000 /dev/urandom > big; sha256sum big > sum; truncate -s 2G sparse; printf end >> sparse; mkdir lost+found
chmod 2750 deep; sudo chown 7:8 deep/er; touch -h -d '2001-02-03 04:05:06.789012345' file deep/link; chmod 775 .
"""
LIST = """
cd /data && sha256sum -c sum && tail -c 3 sparse && find . -printf '%p %y %m %U %G %n %T@ %l\\n' | grep -v ' d ' | sort
find . -type d -printf '%p %m %U %G\\n' | sort
"""


async def test_a_drive_is_written_to_and_read_by_both_kinds_of_sandboxes(no_leaks: Path) -> None:
    async with real_host(no_leaks, **BOTH) as host:
        kept = await drive(host, 256 * MIB)
        drives = host.supervisor.drives
        box = await guest(host, mounts=[at("/data", kept)])
        done = await box.shell(WRITE)
        assert (done.exit_code, done.stderr) == (0, b"")
        listed = (await box.shell(LIST)).stdout
        assert b"big: OK" in listed
        await box.stop()
        # A machine writes: the drive is a disk now, and nothing else.
        box = await guest(host, mounts=[at("/data", kept)], **MACHINE)
        assert drives._store.names() == {name_of(kept, disk=True)}
        assert (await box.shell(LIST)).stdout == listed
        told = (await box.shell("findmnt -no FSTYPE,OPTIONS /data; echo more > /data/more; mkdir /data/of-machine")).stdout
        assert told.startswith(b"ext4 rw,nosuid,nodev")
        listed = (await box.shell(LIST)).stdout
        # Beside it another machine reads, and one that is none. What it has not written down yet is there too.
        readers = [await guest(host, mounts=[at("/data", kept, DriveMode.SNAPSHOT)], **kind) for kind in (MACHINE, {})]
        assert (await box.shell("echo later > /data/more")).exit_code == 0
        for seen in readers:
            assert (await seen.shell(LIST)).stdout == listed
            looked = await seen.shell("cat /data/more; touch /data/x")
            assert looked.stdout == b"more\n"
            assert b"Read-only" in looked.stderr
        listed = (await box.shell(LIST)).stdout
        with pytest.raises(ConflictError, match=box.session_id):
            await guest(host, mounts=[at("/data", kept)])
        # Its memory can't be saved, as nowhere that there are drives.
        with pytest.raises(ConflictError, match="has drives mounted"):
            await host.supervisor.snapshot(SnapshotRequest(session_id=box.session_id, keep_running=True, memory=True))
        await asyncio.gather(box.stop(), *(seen.stop() for seen in readers))
        # Back.
        box = await guest(host, mounts=[at("/data", kept)])
        assert drives._store.names() == {kept}
        assert (await box.shell(LIST)).stdout == listed
        assert (await box.shell("echo two > /data/more; cat /data/more")).stdout == b"two\n"
        await box.stop()
        await asyncio.gather(*host.supervisor.ends.removals)
        assert drives.viewers() == set()


async def test_a_machine_s_drives_are_its_own_and_outlive_it(no_leaks: Path) -> None:
    async with real_host(no_leaks, end_all=False, **BOTH) as host:
        drives = host.supervisor.drives
        kept, other = await drive(host, 24 * MIB), await drive(host, 64 * MIB)
        box = await guest(host, persistent=True, mounts=[at("/srv/deep/data", kept), at("/opt", other)], **MACHINE)
        # Each at its place, new, and of the user that commands run as.
        assert (await box.shell("ls -A /srv/deep/data /opt; stat -c %U:%a /srv/deep/data /opt /srv")).stdout.split() == [
            b"/opt:", b"/srv/deep/data:", b"ubuntu:755", b"ubuntu:755", b"root:755",
        ]  # fmt: skip
        full = await box.shell("head -c 40M /dev/urandom > /srv/deep/data/large; rm /srv/deep/data/large; echo more > /opt/f")
        assert b"No space left" in full.stderr
        setuid = "cp /usr/bin/id /opt/id; chown root /opt/id; chmod 4755 /opt/id; mknod /opt/null c 1 3"
        assert (await box.shell(setuid, sudo=True)).exit_code == 0
        assert (await box.shell("/opt/id -un; echo x > /opt/null || echo no")).stdout == b"ubuntu\nno\n"
        # Not synced: whoever copies it has it written down first.
        fork = await drive(host, 64 * MIB, source=other)
        await box.shell("echo later > /opt/f")
        assert (await drives.usage(kept)).used_bytes < 24 * MIB
        with pytest.raises(ConflictError, match="mounted"):
            await drives.remove(other)
        session_id = box.session_id
    # Another host process finds it with what it has.
    async with real_host(no_leaks, **BOTH) as host:
        drives = host.supervisor.drives
        box = Guest(host.supervisor, session_id)
        assert (await box.shell("cat /opt/f && ln -s /etc /srv/link && echo x > /srv/file", sudo=True)).stdout == b"later\n"
        with pytest.raises(ConflictError, match=session_id):
            await guest(host, mounts=[at("/opt", other)], **MACHINE)
        # A monitor that is killed leaves a journal, which whoever mounts it next replays.
        assert (await box.shell("echo synced > /opt/f; sync; echo lost > /opt/g; ls /opt/lost+found")).exit_code != 0
        machine = box.session.machine
        assert machine is not None
        machine.process.kill()
        left = (await over(box)).snapshot
        assert left is not None
        seen = await guest(host, mounts=[at("/a", other, DriveMode.SNAPSHOT), at("/b", fork, DriveMode.SNAPSHOT)], **MACHINE)
        assert (await seen.shell("cat /a/f /b/f; touch /a/x /b/x || true; ls /a/x /b/x")).stdout == b"synced\nmore\n"
        # What the sandbox left where drives are to be is not followed, and nothing of the host's is kept from others.
        for path in ("/srv/link/data", "/srv/file"):
            with pytest.raises(BadRequestError, match="links are not followed") as refused:
                await guest(host, mounts=[at("/a", other), at(path, kept)], source_snapshot=left.snapshot_id, **MACHINE)
            assert refused.value.code == "invalid_mount_path"
        # A disk that is none, or whose directory leads elsewhere, is mounted nowhere.
        disk = await drives.attach(drives.claim("none", [at("/data", kept)])[0], disk=True)
        await drives.release("none")
        disk.unlink()
        for break_it in (["true"], ["debugfs", "-w", "-R", "symlink u /etc", str(disk)]):
            make_disk(disk, 24 * MIB)
            if break_it == ["true"]:
                with disk.open("r+b") as file:
                    file.write(bytes(1 * MIB))
            kernel.run(break_it)
            with pytest.raises(UnavailableError, match="drive of /data can't be mounted"):
                await guest(host, mounts=[at("/opt", other), at("/data", kept)], **MACHINE)
            disk.unlink()
        for drive_id in (kept, fork):
            with pytest.raises(ConflictError) if drive_id == fork else contextlib.nullcontext():
                await drives.remove(drive_id)
        assert drives._store.names() == {name_of(drive_id, disk=True) for drive_id in (other, fork)}


async def test_a_host_that_is_killed_while_it_converts_a_drive_leaves_it_whole(no_leaks: Path) -> None:
    host = HostProcess(no_leaks, pool__size="0", isolation__backend="gvisor", isolation__also='["qemu"]')
    await host.start()
    made = DriveSpec(drive_id=ids.drive_id(), size_bytes=64 * MIB)
    await host.client.call("drive.create", made, DriveRecord)
    first = spec(mounts=[at("/data", made.drive_id)])
    await host.client.call("session.create", first, SessionRecord)
    await host.client.call("session.stop", StopRequest(first.session_id), SessionRecord)
    second = spec(mounts=[at("/data", made.drive_id)], **MACHINE)
    creating = asyncio.ensure_future(host.client.call("session.create", second, SessionRecord))
    await host.kill_while_it_converts()
    with pytest.raises(HutchError):
        await creating
    await host.start()
    assert not host.converting()
    store = no_leaks / "host" / "layers" / "btrfs" / "mnt"
    assert [entry.name for entry in (store / "drives").iterdir()] == [made.drive_id]
    assert list((store / "views").iterdir()) == []
    # It is free, and what was written to it is there.
    third = spec(mounts=[at("/data", made.drive_id)])
    assert (await host.client.call("session.create", third, SessionRecord)).status is SessionStatus.RUNNING
    await host.stop()
