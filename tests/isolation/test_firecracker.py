"""The `firecracker` backend as the host would use it: boot, stand still, save, go on, end, against the stand-ins."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hutch.host import channel, doctor, kernel
from hutch.host.cgroups import Cgroups
from hutch.host.kernel import Process
from hutch.host.names import machine_id
from hutch.isolation.firecracker import Firecracker
from hutch.isolation.firecracker_api import FirecrackerFailed
from hutch.isolation.firecracker_binary import NotUsable
from hutch.isolation.firecracker_config import MIB
from hutch.isolation.protocol import BootFailed, Isolation, MachinePlan, PlannedMount
from hutch.settings import Backend, Settings, load
from hutch.wire import Connection
from tests.isolation import fake_programs

pytestmark = [pytest.mark.root]


def settings(base: Path, **behaviour: Any) -> Settings:
    binary = base / "static" / "firecracker"
    if not binary.exists():
        fake_programs.compiled(binary.parent)
    (base / "vmlinux").write_bytes(b"\x7fELF a kernel")
    data_dir = base / "data"
    data_dir.mkdir(exist_ok=True)
    flags = {
        "server.data_dir": data_dir,
        "isolation.firecracker.binary": binary,
        "isolation.firecracker.jailer": fake_programs.script(base / "jailer", "jailer", **behaviour),
        "isolation.firecracker.kernel": base / "vmlinux",
        "isolation.firecracker.boot_timeout_s": 30,
    }
    return load(None, environment={}, flags=flags)


class Host:
    """What a host does around a backend, as far as these tests go."""

    def __init__(self, base: Path, **behaviour: Any) -> None:
        self.base = base
        self.cgroups = Cgroups.detect()
        self.cgroup = f"/hutch-test-fc-{secrets.token_hex(4)}"
        self.backend = Firecracker.configured(settings(base, **behaviour), base / "state", self.cgroups)
        self.plans: list[MachinePlan] = []

    def plan(self, memory: Path | None = None, disk: Path | None = None) -> MachinePlan:
        identifier = machine_id()
        directory = self.base / identifier
        for name in ("layer", "channel"):
            (directory / name).mkdir(parents=True, mode=0o700)
        if disk is not None:
            (directory / "layer" / "disk.ext4").write_bytes(disk.read_bytes())
        layer = self.base / "layer.erofs"
        layer.write_bytes(b"a layer")
        self.plans.append(
            MachinePlan(
                machine_id=identifier,
                directory=directory,
                lowers=(layer,),
                layer=directory / "layer",
                channel_dir=directory / "channel",
                agent=directory,
                namespace=directory,
                nameserver="",
                cgroup=f"{self.cgroup}-{identifier}",
                vcpus=1,
                memory_bytes=64 * MIB,
                memory=memory,
            )
        )
        return self.plans[-1]

    async def boot(self, plan: MachinePlan) -> tuple[Process, Connection]:
        agent = asyncio.ensure_future(channel.accept_agent(plan.channel_dir, "", 30, 30, self.backend.traits.channel_mode))
        try:
            process = await asyncio.to_thread(self.backend.boot, plan)
            return process, await agent
        finally:
            agent.cancel()

    def remove(self, plan: MachinePlan) -> None:
        self.backend.remove(plan.machine_id, plan.directory, None)
        self.cgroups.kill_all(plan.cgroup, 10)
        self.cgroups.remove(plan.cgroup, 10)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    made.backend._disk_bytes = 16 * MIB
    yield made
    for plan in made.plans:
        made.remove(plan)
    assert made.backend.machines() == set()
    assert kernel.mounts_below(tmp_path) == []
    for plan in made.plans:
        assert not any(directory.exists() for directory in made.cgroups.directories(plan.cgroup))
        assert not (plan.directory / "jail").exists()
    made.backend.close()
    assert list((tmp_path / "state").glob("*")) == []


def test_a_machine_boots_stands_still_and_goes_on(host: Host) -> None:
    async def run() -> None:
        plan = host.plan()
        process, connection = await host.boot(plan)
        backend: Isolation = host.backend
        assert backend.machines() == {plan.machine_id}
        assert host.backend.recorded(plan.machine_id) == process
        status = Path(f"/proc/{process.pid}/status").read_text()
        users = {line.split()[1] for line in status.splitlines() if line.startswith(("Uid:", "Gid:"))}
        assert users == {str(host.backend._jail(plan.machine_id, plan.directory).uid)}
        assert "CapEff:\t0000000000000000" in status
        assert "Seccomp:\t2" in status
        # A process table and a network of its own, and nothing of the host's files.
        for kind in ("pid", "net", "mnt", "ipc"):
            assert Path(f"/proc/{process.pid}/ns/{kind}").readlink() != Path(f"/proc/self/ns/{kind}").readlink()
        assert sorted(entry.name for entry in Path(f"/proc/{process.pid}/root").iterdir()) == sorted(
            [*("dev", "disk", "firecracker", "firecracker.pid", "initramfs", "kernel", "layer0", "run", "v")]
        )
        assert process.pid in host.cgroups.pids(plan.cgroup)
        await connection.ping(10)
        await asyncio.to_thread(host.backend.suspend, plan.machine_id)
        with pytest.raises(TimeoutError):
            await connection.ping(0.3)
        await asyncio.to_thread(host.backend.resume, plan.machine_id)
        await connection.ping(10)
        connection.close("done")
        host.backend.kill(process)
        assert not process.alive()

    asyncio.run(run())


def test_a_machine_is_saved_and_two_go_on_from_it(host: Host) -> None:
    async def run() -> None:
        plan = host.plan()
        process, connection = await host.boot(plan)
        image = host.base / "image"
        image.mkdir(mode=0o700)
        await asyncio.to_thread(host.backend.suspend, plan.machine_id)
        await asyncio.to_thread(host.backend.checkpoint, plan.machine_id, image)
        back = asyncio.ensure_future(channel.accept_agent(plan.channel_dir, "", 30, 30, host.backend.traits.channel_mode))
        await connection.closed
        await asyncio.to_thread(host.backend.resume, plan.machine_id)
        returned = await back
        await returned.ping(10)
        returned.close("done")
        assert sorted(file.name for file in image.iterdir()) == ["memory", "state"]
        assert {file.stat().st_uid for file in image.iterdir()} == {0}
        for _ in range(2):
            clone = host.plan(image, plan.layer / "disk.ext4")
            other, theirs = await host.boot(clone)
            assert other != process
            await theirs.ping(10)
            theirs.close("done")
        # One that went on is saved as well.
        again = host.base / "again"
        again.mkdir(mode=0o700)
        await asyncio.to_thread(host.backend.suspend, clone.machine_id)
        await asyncio.to_thread(host.backend.checkpoint, clone.machine_id, again)
        assert (again / "memory").stat().st_size == 64 * MIB

    asyncio.run(run())


def test_another_host_process_finds_its_machines(host: Host) -> None:
    async def run() -> None:
        plan = host.plan()
        process, connection = await host.boot(plan)
        successor = Firecracker.configured(settings(host.base), host.base / "state", host.cgroups)
        assert successor.machines() == {plan.machine_id}
        assert successor.recorded(plan.machine_id) == process
        await asyncio.to_thread(successor.suspend, plan.machine_id)
        await asyncio.to_thread(successor.resume, plan.machine_id)
        await connection.ping(10)
        connection.close("done")
        successor.remove(plan.machine_id, plan.directory, None)
        assert not process.alive()

    asyncio.run(run())


def test_what_does_not_start_says_why(host: Host, tmp_path: Path) -> None:
    plan = host.plan()
    plan.lowers[0].unlink()
    with pytest.raises(BootFailed, match=r"did not start: .*layer\.erofs"):
        host.backend.boot(plan)
    with pytest.raises(FirecrackerFailed, match="There is no machine m123"):
        host.backend.suspend("m123")
    plan = host.plan()
    drive = PlannedMount("/data", tmp_path / "none", read_only=False)
    with pytest.raises(BootFailed, match=r"did not start: .*none"):
        host.backend.boot(replace(plan, mounts=(drive,)))


def test_drives_are_disks_in_their_order_behind_its_own(host: Host, tmp_path: Path) -> None:
    async def run() -> None:
        files = [tmp_path / name for name in ("one", "two")]
        for file in files:
            file.write_bytes(bytes(MIB))
            file.chmod(0o600)
        mounts = (PlannedMount("/data", files[0], read_only=False), PlannedMount("/seen", files[1], read_only=True))
        plan = replace(host.plan(), mounts=mounts)
        machine = host.backend._machine(plan)
        assert [(drive.name, drive.read_only) for drive in machine.drives] == [
            ("layer0", True), ("disk", False), ("drive0", False), ("drive1", False),
        ]  # fmt: skip
        process, connection = await host.boot(plan)
        # The machine's own user has opened them, and nobody else may.
        jail = host.backend._jail(plan.machine_id, plan.directory)
        for number, file in enumerate(files):
            assert (file.stat().st_uid, file.stat().st_mode & 0o777) == (jail.uid, 0o600)
            assert Path(f"/proc/{process.pid}/root/drive{number}").stat().st_ino == file.stat().st_ino
        await connection.ping(10)
        connection.close("done")

    asyncio.run(run())


def test_a_build_without_a_filter_of_system_calls_runs_no_sandbox(host: Host) -> None:
    fake_programs.script(host.base / "jailer", "jailer", no_filter=True)
    plan = host.plan()
    with pytest.raises(BootFailed, match="without a filter of system calls"):
        host.backend.boot(plan)
    process = host.backend.recorded(plan.machine_id)
    assert process is not None
    assert not process.alive()


def test_no_sandbox_runs_without_a_jailer(tmp_path: Path) -> None:
    configured = settings(tmp_path)
    alone = load(None, environment={}, flags={"isolation.firecracker.binary": configured.isolation.firecracker.binary})
    with pytest.raises(NotUsable, match=r"isolation\.firecracker\.jailer names no program"):
        Firecracker.configured(alone, tmp_path, Cgroups.detect())


def test_doctor_says_whether_it_works_and_why_not(tmp_path: Path) -> None:
    def says(**behaviour: Any) -> str:
        return doctor._probed(Backend.FIRECRACKER, settings(tmp_path, **behaviour), tmp_path).reason

    if not Path("/dev/kvm").exists():
        assert "/dev/kvm does not exist" in says()
        return
    assert says() == "a machine booted and its agent answered"
    assert "without a filter of system calls" in says(no_filter=True)
    assert "The memory is too small" in says(refuses={"PUT /machine-config": "The memory is too small"})
    assert "names no program" in doctor._probed(Backend.FIRECRACKER, load(None, environment={}), tmp_path).reason
    assert list((tmp_path / "data").iterdir()) == []


def test_the_fingerprint_changes_with_the_kernel(host: Host) -> None:
    configured = settings(host.base)
    before = host.backend.fingerprint()
    assert Firecracker.configured(configured, host.base / "state", host.cgroups).fingerprint() == before
    (host.base / "vmlinux").write_bytes(b"\x7fELF another kernel")
    assert Firecracker.configured(configured, host.base / "state", host.cgroups).fingerprint() != before
