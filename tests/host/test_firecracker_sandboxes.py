"""Sandboxes on Firecracker, through a real host: how it drives the monitor.

Firecracker and its jailer are the stand-ins of `tests/isolation/fake_firecracker.py`, whose guest is the real agent on the
machine's own disks, but no kernel, and without a network: the real ones are in no registry of packages. Of saved memory it has
what the agent knew itself by; no process goes on from it.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from hutch.errors import ConflictError, UnavailableError
from hutch.host import kernel
from hutch.host.drive_storage import name_of
from hutch.host.machine import SUSPENDED_MARK, Machine, Machines
from hutch.host.protocol import DriveMode, SessionStatus, SnapshotRecord, SnapshotRequest
from hutch.host.service import Service
from hutch.isolation import tap
from hutch.isolation.firecracker_config import MEMORY, STATE
from hutch.isolation.firecracker_process import CONSOLE_LOG
from hutch.isolation.protocol import PlannedMount
from hutch.isolation.qemu import DISK, GUEST_CGROUP
from tests.host.guest import Guest, finished, guest, over, real_host, spec
from tests.host.test_drives import at, drive
from tests.isolation import fake_firecracker, fake_programs

pytestmark = [pytest.mark.root, pytest.mark.sandbox, pytest.mark.timeout(180)]
MIB = 1024 * 1024
PANIC = "[    3.1] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000007"

if not Path("/dev/kvm").exists():
    # Not hidden: the driver itself is tested without it (tests/isolation/test_firecracker.py).
    pytest.skip("Firecracker is not started where there is no /dev/kvm", allow_module_level=True)


@asynccontextmanager
async def host_of_machines(
    data_dir: Path, *, end_all: bool = True, default: str = "firecracker", **behaviour: Any
) -> AsyncIterator[Service]:
    # Beside the data directory, which is the host's.
    base = data_dir.parent / f"{data_dir.name}-firecracker"
    base.mkdir(exist_ok=True)
    binary = base / "static" / "firecracker"
    if not binary.exists():
        fake_programs.compiled(binary.parent, version=behaviour.get("version", fake_firecracker.VERSION))
    (base / "vmlinux").write_bytes(b"\x7fELF a kernel")
    flags = {
        "isolation__backend": default,
        "isolation__also": ["firecracker"],
        "isolation__firecracker": {
            "binary": binary,
            "jailer": fake_programs.script(base / "jailer", "jailer", own_root=True, **behaviour),
            "kernel": base / "vmlinux",
            "boot_timeout_s": 30,
        },
    }
    async with real_host(data_dir, end_all=end_all, **flags) as service:
        yield service


def behave(data_dir: Path, **behaviour: Any) -> None:
    """How machines that begin from now on behave."""
    fake_programs.script(data_dir.parent / f"{data_dir.name}-firecracker" / "jailer", "jailer", own_root=True, **behaviour)


async def test_a_sandbox_runs_is_found_again_and_its_files_outlive_it(no_leaks: Path) -> None:
    async with host_of_machines(no_leaks, end_all=False) as host:
        box = await guest(host, persistent=True, disk_bytes=64 * MIB, vcpus=2, memory_mb=512, env={"GIVEN": "yes"})
        assert box.record.isolation == "firecracker"
        told = await box.shell("hostname; echo $GIVEN; id -un; echo first > file; cat file")
        assert told.stdout.decode().split() == ["box", "yes", "ubuntu", "first"]
        machine = box.session.machine
        assert machine is not None
        # The card is its user's and in the sandbox's namespace, where all packets go past the host's rules.
        inside = ["nsenter", f"--net={machine.network.namespace_path}", "--"]
        links = kernel.run([*inside, "ip", "-details", "-oneline", "link", "show", tap.NAME])
        user = Path(f"/proc/{machine.process.pid}").stat().st_uid
        assert user > 2**16
        assert f"user {user}" in links
        assert "LOWER_UP" in links
        assert tap.HARDWARE in kernel.run([*inside, "nft", "list", "ruleset"])
        # Threads that run the guest are told from all others.
        cgroups = host._supervisor._machines.cgroups
        threads = (cgroups.roots["cpuacct"] / machine.cgroup.lstrip("/") / GUEST_CGROUP / "tasks").read_text().split()
        named = {Path(f"/proc/{machine.process.pid}/task/{thread}/comm").read_text().strip() for thread in threads}
        assert named == {"fc_vcpu 0", "fc_vcpu 1"}
        disk = host._supervisor._machines._layers.path(machine.machine_id) / DISK
        assert disk.stat().st_size <= 64 * MIB
        running = await box.start("sh", "-c", "for n in $(seq 300); do echo $n; sleep 0.1; done")
        session_id, command_id = box.session_id, running.record.command_id
    async with host_of_machines(no_leaks) as host:
        box = Guest(host.supervisor, session_id)
        assert box.record.status is SessionStatus.RUNNING
        assert box.commands.get(command_id).running
        assert (await box.shell("cat file; echo second >> file")).stdout == b"first\n"
        stopped = await box.stop()
        assert (stopped.status, stopped.stop_reason) == (SessionStatus.STOPPED, "stop")
        assert stopped.snapshot is not None
        assert stopped.snapshot.disk
        box = await guest(host, source_snapshot=stopped.snapshot.snapshot_id)
        assert (await box.shell("cat file")).stdout == b"first\nsecond\n"
        machine = box.session.machine
        assert machine is not None
        machine.process.kill()
        record = await over(box)
        assert (record.status, record.stop_reason) == (SessionStatus.FAILED, "The sandbox failed: its sandbox process died.")


async def test_drives_are_disks_that_its_agent_is_told_of(no_leaks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[PlannedMount, ...]] = []

    async def mounted(_: Machines, __: Machine, mounts: tuple[PlannedMount, ...]) -> None:
        # The stand-in's agent has no kernel to mount with.
        told.append(mounts)

    async with host_of_machines(no_leaks, end_all=False) as host:
        drives = host.supervisor.drives
        kept = await drive(host, 64 * MIB)
        # What no agent mounts is no sandbox.
        with pytest.raises(UnavailableError, match="drives could not be mounted: Invalid request: this is no virtual machine"):
            await guest(host, mounts=[at("/data", kept)])
        assert host._supervisor._machines.left_behind() == set()
        monkeypatch.setattr(Machines, "_mount_drives", mounted)
        box = await guest(host, mounts=[at("/data", kept)])
        looking = await guest(host, mounts=[at("/seen", kept, DriveMode.SNAPSHOT)])
        [[writes], [reads]] = told
        assert (writes.path, writes.read_only, reads.path, reads.read_only) == ("/data", False, "/seen", True)
        assert drives._store.names() == {name_of(kept, disk=True)}
        for session, mount in ((box, writes), (looking, reads)):
            machine = session.session.machine
            assert machine is not None
            [placed] = machine.directory.glob("jail/*/*/root/drive0")
            assert placed.stat().st_ino == mount.source.stat().st_ino
            assert mount.source.stat().st_uid == Path(f"/proc/{machine.process.pid}").stat().st_uid
        sessions = box.session_id, looking.session_id
    async with host_of_machines(no_leaks) as host:
        drives = host.supervisor.drives
        with pytest.raises(ConflictError, match=sessions[0]):
            await guest(host, mounts=[at("/data", kept)])
        for session_id in sessions:
            await Guest(host.supervisor, session_id).stop()
        await asyncio.gather(*host.supervisor.ends.removals)
        assert drives.viewers() == set()
        await drives.remove(kept)
        assert drives._store.names() == set()


async def test_a_sandbox_may_name_another_backend_than_its_neighbours(no_leaks: Path) -> None:
    async with host_of_machines(no_leaks, end_all=False, default="gvisor") as host:
        plain, machine = await guest(host, persistent=True), await guest(host, persistent=True, isolation="firecracker")
        assert (plain.record.isolation, machine.record.isolation) == ("gvisor", "firecracker")
        for box in (plain, machine):
            assert (await box.shell("echo kept > file; cat file")).stdout == b"kept\n"
        with pytest.raises(ConflictError, match="under `qemu`: the operator offers it to none"):
            await host.supervisor.create(spec(isolation="qemu"))
        sessions = plain.session_id, machine.session_id
    async with host_of_machines(no_leaks, default="gvisor") as host:
        plain, machine = (Guest(host.supervisor, session_id) for session_id in sessions)
        for box in (plain, machine):
            assert (await box.shell("cat file")).stdout == b"kept\n"
        for box, disk in ((plain, False), (machine, True)):
            taken = await host.supervisor.snapshot(SnapshotRequest(session_id=box.session_id, keep_running=True))
            assert taken.snapshot.disk is disk
        stopped = [(await box.stop()).snapshot for box in (plain, machine)]
        assert [snapshot is not None and snapshot.disk for snapshot in stopped] == [False, True]
        again = await guest(host, isolation="firecracker", source_snapshot=stopped[1] and stopped[1].snapshot_id)
        assert (await again.shell("cat file")).stdout == b"kept\n"
    # A host that no longer offers it ends what runs there, and says so.
    async with host_of_machines(no_leaks, end_all=False, default="gvisor") as host:
        machine = await guest(host, isolation="firecracker")
        session_id = machine.session_id
    async with real_host(no_leaks, isolation__backend="gvisor") as host:
        record = Guest(host.supervisor, session_id).record
        assert record.status is SessionStatus.FAILED
        assert "it runs under firecracker, this host under gvisor" in (record.stop_reason or "")
        assert await asyncio.to_thread(host._supervisor._machines.left_behind) == set()


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        ({"crash_after_start": True, "console": PANIC}, "its kernel panicked"),
        ({"no_filter": True}, "without a filter of system calls"),
        ({"refuses": {"PUT /network-interfaces/eth0": "Open tap device failed"}}, "Open tap device failed"),
        ({"vcpu_thread": "another"}, "1 processors in 0 threads"),
    ],
    ids=["panic", "no-filter", "no-tap", "threads-of-another-name"],
)
async def test_a_machine_that_does_not_start_is_told_and_leaves_nothing(
    no_leaks: Path, behaviour: dict[str, Any], said: str
) -> None:
    async with host_of_machines(no_leaks) as host:
        # The host itself began with one that works.
        behave(no_leaks, **behaviour)
        with pytest.raises(UnavailableError, match=f"could not be started: .*{said}"):
            await host.supervisor.create(spec())
        assert host._supervisor._machines.left_behind() == set()


# -- saved memory ------------------------------------------------------------------------------------

SMALL = {"disk_bytes": 64 * MIB, "memory_mb": 128}


async def saved(box: Guest, *, keep_running: bool = True) -> SnapshotRecord:
    request = SnapshotRequest(session_id=box.session_id, keep_running=keep_running, memory=True)
    return (await box.supervisor.snapshot(request)).snapshot


def console(box: Guest) -> str:
    assert box.session.machine is not None
    return (box.session.machine.directory / CONSOLE_LOG).read_text()


def image_of(host: Service, snapshot: SnapshotRecord) -> Path:
    memory = host.supervisor.snapshots.memory.load(snapshot.snapshot_id)
    assert memory is not None
    return memory.image


def left_in_jails(host: Service) -> list[Path]:
    """What was written for a snapshot and not taken."""
    return list(host._supervisor._machines._directory.glob("*/jail/*/*/root/saved.*"))


async def test_memory_is_saved_while_it_runs_and_others_go_on_from_it(no_leaks: Path) -> None:
    async with host_of_machines(no_leaks) as host:
        box = await guest(host, **SMALL)
        assert "PUT /balloon" in console(box)
        program = "for n in $(seq 40); do echo $n; sleep 0.05; done; echo over > end"
        running = await box.start("sh", "-c", f"echo before > file; {program}")
        while (await box.shell("cat file")).stdout != b"before\n":
            pass
        snapshot = await saved(box)
        # Pages of zeros are holes.
        assert (image_of(host, snapshot) / MEMORY).stat().st_size == 128 * MIB
        assert 0 < snapshot.memory_bytes < MIB
        assert (await box.shell("cat file; echo after > file; cat file")).stdout == b"before\nafter\n"
        assert (await finished(running)).stdout == "".join(f"{n}\n" for n in range(1, 41)).encode()
        assert "the host told clock.set" in console(box)
        # The commands of the snapshot run in no stand-in; here one of when none did.
        again = await saved(box)
        children = [await guest(host, source_snapshot=again.snapshot_id, **SMALL) for _ in range(2)]
        addresses = set()
        for child in (box, *children):
            [told] = re.findall(r"the host told machine.begin: \{'address': '([0-9./]+)'", console(child))
            addresses.add(told)
            assert child.session.machine is not None
            assert told.startswith(child.session.machine.network.guest_address)
        assert len(addresses) == 3
        assert len({child.session.entry.token for child in (box, *children) if child.session.entry}) == 3
        # It maps the memory that its snapshot had, and is saved like any other.
        await host.supervisor.snapshots.remove(again.snapshot_id)
        child = children[0]
        assert (await child.shell("cat file end; echo child > file")).stdout == b"after\nover\n"
        theirs = await saved(child, keep_running=False)
        assert child.record.status is SessionStatus.STOPPED
        last = await guest(host, source_snapshot=theirs.snapshot_id, **SMALL)
        assert (await last.shell("cat file")).stdout == b"child\n"
        files = await guest(host, source_snapshot=theirs.snapshot_id, with_memory=False, **SMALL)
        assert (await files.shell("cat file")).stdout == b"child\n"
        with pytest.raises(ConflictError, match="2 vCPUs|256 MB were asked for") as refused:
            await guest(host, source_snapshot=theirs.snapshot_id, **(SMALL | {"memory_mb": 256}))
        assert refused.value.code == "snapshot_incompatible"
        assert left_in_jails(host) == []


async def test_memory_that_can_not_be_saved_is_told_and_the_sandbox_runs_on(no_leaks: Path) -> None:
    async with host_of_machines(no_leaks) as host:
        for behaviour, said in (
            ({"refuses": {"PUT /snapshot/create": "Create snapshot error: it is not paused"}}, "it is not paused"),
            ({"save_fails": "No space left on device"}, "No space left on device"),
            ({"keeps_memory_open": True}, "keeps saved.memory open"),
            ({"state_link": "/etc/passwd"}, "symbolic links"),
            ({"answers": {"PUT /snapshot/create": ""}}, "ended while it was asked"),
        ):
            behave(no_leaks, **behaviour)
            box = await guest(host, **SMALL)
            for _ in range(2):
                with pytest.raises(ConflictError, match=said) as refused:
                    await saved(box)
                assert refused.value.code == "memory_snapshot_failed"
                assert left_in_jails(host) == []
            assert (await box.shell("echo runs")).stdout == b"runs\n"
            assert list(host.supervisor.snapshots.memory._directory.iterdir()) == []
            await box.stop()


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def of_another(file: Path) -> None:
    file.write_bytes(b"memory of another".ljust(file.stat().st_size, b"\0"))


def a_link(file: Path) -> None:
    file.unlink()
    file.symlink_to("/etc/passwd")


async def test_damaged_memory_starts_nothing_and_leaves_nothing(no_leaks: Path) -> None:
    async with host_of_machines(no_leaks) as host:
        snapshot = await saved(await guest(host, **SMALL), keep_running=False)
        image = image_of(host, snapshot)
        whole = {file.name: file.read_bytes() for file in image.iterdir()}
        for name, damage, said in (
            (STATE, cut, "validation failed"),
            (STATE, lambda file: os.truncate(file, 65 * MIB), "more than a machine's devices"),
            (STATE, Path.unlink, "is not whole"),
            (STATE, a_link, "state is no file"),
            (MEMORY, cut, "the machine has 134217728"),
            (MEMORY, Path.unlink, "is not whole"),
            (MEMORY, of_another, "its kernel panicked"),
        ):
            damage(image / name)
            with pytest.raises(UnavailableError, match=f"could not be started: .*{said}"):
                await guest(host, source_snapshot=snapshot.snapshot_id, **SMALL)
            assert host._supervisor._machines.left_behind() == set()
            (image / name).unlink(missing_ok=True)
            (image / name).write_bytes(whole[name])
        restored = await guest(host, source_snapshot=snapshot.snapshot_id, **SMALL)
        assert (await restored.shell("echo here")).stdout == b"here\n"


async def test_memory_goes_on_with_another_host_but_not_under_another_kernel(no_leaks: Path) -> None:
    # The oldest release can do all of it, but take memory back.
    async with host_of_machines(no_leaks, end_all=False, version="1.8.0") as host:
        box = await guest(host, **SMALL)
        assert "PUT /balloon" not in console(box)
        snapshot = await saved(box)
        machine = box.session.machine
        assert machine is not None
        # As a host leaves it that dies while it saves memory.
        await asyncio.to_thread(machine.isolation.suspend, machine.machine_id)
        (machine.directory / SUSPENDED_MARK).touch()
        [root] = host._supervisor._machines._directory.glob(f"{machine.machine_id}/jail/*/*/root")
        (root / "saved.memory").write_bytes(b"half")
    async with host_of_machines(no_leaks, version="1.8.0") as host:
        box = Guest(host.supervisor, box.session_id)
        assert (await box.shell("echo here")).stdout == b"here\n"
        assert (await saved(box)).memory_bytes > 0
        assert left_in_jails(host) == []
        child = await guest(host, source_snapshot=snapshot.snapshot_id, **SMALL)
        assert (await child.shell("echo here")).stdout == b"here\n"
    async with host_of_machines(no_leaks, version="1.8.0") as host:
        (no_leaks.parent / f"{no_leaks.name}-firecracker" / "vmlinux").write_bytes(b"\x7fELF another kernel")
        with pytest.raises(ConflictError, match="another release of the sandbox's kernel") as refused:
            await guest(host, source_snapshot=snapshot.snapshot_id, **SMALL)
        assert refused.value.code == "snapshot_incompatible"
