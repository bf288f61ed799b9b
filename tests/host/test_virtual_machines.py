"""Sandboxes that are virtual machines, through a real host: what is special about them, and what they do not do.

Machines are emulated here, and a start takes some seconds, so each test asks one sandbox many things. That they do all that other
sandboxes do is shown by the other tests of the host, run with `HUTCH_ISOLATION=qemu` (docs/isolation.md).
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hutch.errors import ConflictError, GoneError, UnavailableError
from hutch.host.protocol import (
    DriveMode,
    DriveMount,
    SessionRecord,
    SessionStatus,
    SnapshotExport,
    SnapshotRequest,
)
from hutch.host.service import Service
from hutch.isolation.qemu import DISK, GUEST_CGROUP
from tests.host.guest import Guest, guest, real_host, spec

pytestmark = [pytest.mark.root, pytest.mark.sandbox, pytest.mark.timeout(300)]
MIB = 1024 * 1024
EMULATED = {"isolation__backend": "qemu", "isolation__qemu_accelerator": "tcg"}
END_S = 30.0


@asynccontextmanager
async def host_of_machines(data_dir: Path, *, end_all: bool = True, **flags: object) -> AsyncIterator[Service]:
    async with real_host(data_dir, end_all=end_all, **EMULATED, **flags) as service:
        yield service


async def over(box: Guest) -> SessionRecord:
    async with asyncio.timeout(END_S):
        while box.session.live:
            await asyncio.sleep(0.02)
    return box.record


async def test_a_sandbox_is_a_virtual_machine(no_leaks: Path) -> None:
    async with host_of_machines(no_leaks) as host:
        box = await guest(host, disk_bytes=64 * MIB, vcpus=2, memory_mb=512, env={"GIVEN": "yes"})
        assert box.record.isolation == "qemu"
        machine = box.session.machine
        assert machine is not None
        # A kernel of its own, which knows its limits and its name, and no process of the host.
        told = await box.shell("uname -r; nproc; hostname; echo $GIVEN; id -un; ls -d /proc/[0-9]* | wc -l")
        release, processors, name, given, user, processes = told.stdout.decode().split()
        assert release != os.uname().release
        assert (processors, name, given, user) == ("2", "box", "yes", "ubuntu")
        assert int(processes) < 150
        # What it does is its own, what the emulator does beside that is not.
        counted = host._supervisor._machines.counters_now(machine)
        whole = host._supervisor._machines.cgroups.cpu_us(machine.cgroup)
        of_guest = host._supervisor._machines.cgroups.cpu_us(f"{machine.cgroup}/{GUEST_CGROUP}")
        assert counted is not None
        assert whole is not None
        assert of_guest is not None
        assert 0 < counted.active_cpu_us <= of_guest < whole
        assert counted.memory_bytes > 64 * MIB
        # A full disk is a guest's own, and it lives on.
        full = await box.shell(
            "dd if=/dev/zero of=big bs=1M count=100 && echo more; rm big && echo removed; echo ok > small; cat small"
        )
        assert b"No space left on device" in full.stderr
        assert full.stdout == b"removed\nok\n"
        disk = host._supervisor._machines._layers.path(machine.machine_id) / DISK
        assert disk.stat().st_size <= 64 * MIB
        # One program too many for its memory ends, not the machine.
        greedy = await box.shell("""python3 -c 'x = []\nwhile True: x.append(b"x" * (8 << 20))'; echo $?""")
        assert greedy.stdout == b"137\n"
        # Time limits and signals.
        slow = await box.start("sleep", "1000", timeout_ms=300)
        assert (await slow.finished).exit_code == 128 + signal.SIGKILL
        ended = await box.stop()
        assert (ended.status, ended.stop_reason) == (SessionStatus.STOPPED, "stop")
        assert (ended.active_cpu_us or 0) >= counted.active_cpu_us
        await asyncio.gather(*host.supervisor.ends.removals)
        assert not disk.exists()


async def test_another_host_process_finds_it_again_and_its_panic_is_told(no_leaks: Path) -> None:
    async with host_of_machines(no_leaks, end_all=False) as host:
        session_id = (box := await guest(host)).session_id
        assert (await box.shell("echo kept > file")).exit_code == 0
        counting = await box.start("sh", "-c", "for n in $(seq 300); do echo $n; sleep 0.1; done")
        command_id = counting.record.command_id
    async with host_of_machines(no_leaks) as host:
        box = Guest(host.supervisor, session_id)
        assert box.record.status is SessionStatus.RUNNING
        assert (await box.shell("cat file")).stdout == b"kept\n"
        assert box.commands.get(command_id).running
        await box.start("sh", "-c", "echo c > /proc/sysrq-trigger", sudo=True)
        record = await over(box)
        assert record.status is SessionStatus.FAILED
        assert record.stop_reason == "The sandbox failed: its kernel panicked (sysrq triggered crash)."


async def test_files_outlive_a_stop_and_a_killed_monitor(no_leaks: Path) -> None:
    async with host_of_machines(no_leaks) as host:
        box = await guest(host, persistent=True, disk_bytes=64 * MIB)
        # Not synced: the stop is what writes it down.
        write = "head -c 3000000 /dev/urandom > file; sha256sum file > sum; head -c 45M /dev/urandom > filler"
        assert (await box.shell(write)).exit_code == 0
        first = (await box.stop()).snapshot
        assert first is not None
        assert first.disk
        sizes = [await settled(host, first.snapshot_id)]
        box = await guest(host, persistent=True, disk_bytes=64 * MIB, source_snapshot=first.snapshot_id)
        # All of a disk may be written again, and is held once.
        again = "head -c 45M /dev/urandom | dd of=filler bs=1M iflag=fullblock conv=notrunc,fsync"
        assert (await box.shell(f"sha256sum -c sum && {again} && echo more > later && sync")).exit_code == 0
        machine = box.session.machine
        assert machine is not None
        machine.process.kill()
        record = await over(box)
        assert (record.status, record.stop_reason) == (SessionStatus.FAILED, "The sandbox failed: its sandbox process died.")
        assert record.snapshot is not None
        sizes.append(await settled(host, record.snapshot.snapshot_id))
        assert all(45 * MIB < size < 64 * MIB for size in sizes)
        box = await guest(host, source_snapshot=record.snapshot.snapshot_id)
        assert (await box.shell("sha256sum -c sum && cat later")).stdout.splitlines()[-1] == b"more"
        await _refused_to_read(host, first.snapshot_id)
        for request in (
            SnapshotRequest(session_id=box.session_id, keep_running=True),
            SnapshotRequest(session_id=box.session_id, memory=True, keep_running=True),
        ):
            with pytest.raises(ConflictError) as refused:
                await host.supervisor.snapshot(request)
            assert refused.value.code == ("isolation_unsupported" if request.memory else "live_snapshot_unsupported")
        assert box.record.status is SessionStatus.RUNNING
        # One that stands still is found out by whoever asks it something.
        machine = box.session.machine
        assert machine is not None
        machine.ping_timeout_s = 0.5
        machine.process.kill(signal.SIGSTOP)
        with pytest.raises(GoneError):
            await box.run("true")
        assert (await over(box)).stop_reason == "The sandbox failed: its agent does not answer."
        # A disk that is none any more starts nothing.
        with (host.supervisor._machines._layers.path("sealed") / first.snapshot_id / DISK).open("r+b") as disk:
            disk.write(bytes(1 * MIB))
        with pytest.raises(UnavailableError, match="could not be started: .*can't be mounted as ext4"):
            await guest(host, source_snapshot=first.snapshot_id)


async def settled(host: Service, snapshot_id: str) -> int:
    """The size of a snapshot, once it is known."""
    async with asyncio.timeout(END_S):
        while (record := host.supervisor.snapshots.record(snapshot_id)).durable_at is None:
            await asyncio.sleep(0.02)
    return record.size_bytes


async def _refused_to_read(host: Service, snapshot_id: str) -> None:
    async def send(_: bytes) -> None:
        pytest.fail("something was exported")

    with pytest.raises(ConflictError, match="in the disk of a virtual machine"):
        await host.supervisor.snapshots.export(SnapshotExport(snapshot_id=snapshot_id, max_bytes=MIB), send)


async def test_what_it_does_not_do_is_refused_before_anything_is_made(no_leaks: Path) -> None:
    async with real_host(no_leaks, isolation__backend="gvisor") as host:
        box = await guest(host, persistent=True)
        other = (await box.stop()).snapshot
        assert other is not None
    async with host_of_machines(no_leaks) as host:
        mount = DriveMount(path="/data", drive_id="drive_1", mode=DriveMode.READ_WRITE)
        for changes in ({"mounts": [mount]}, {"source_snapshot": other.snapshot_id}):
            with pytest.raises(ConflictError) as refused:
                await host.supervisor.create(spec(**changes))
            assert refused.value.code == "isolation_unsupported"
        assert host.supervisor.records()[1:] == []
        assert host._supervisor._machines.left_behind() == set()
