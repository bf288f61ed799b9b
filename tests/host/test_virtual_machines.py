"""Sandboxes that are virtual machines, through a real host: what is special about them, and what they do not do.

Machines are emulated here, and a start takes some seconds, so each test asks one sandbox many things. That they do all that other
sandboxes do is shown by the other tests of the host, run with `HUTCH_ISOLATION=qemu` (docs/isolation.md).
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import io
import os
import re
import signal
import ssl
import subprocess
import tarfile
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from hutch.errors import ConflictError, GoneError, HutchError, UnavailableError
from hutch.host.authority import GUEST_ALIASES, GUEST_AUTHORITY, GUEST_BUNDLE, GUEST_JAVA_STORE
from hutch.host.conversion import names_of
from hutch.host.protocol import (
    CopyState,
    ImageBuild,
    SessionRecord,
    SessionStatus,
    SnapshotExport,
    SnapshotRequest,
    StopRequest,
)
from hutch.host.service import Service
from hutch.images import MAX_LAYERS, Layer
from hutch.isolation import qemu_memory, qemu_template
from hutch.isolation.qemu import DISK, GUEST_CGROUP, Qemu
from hutch.isolation.qemu_template import Template
from tests.host.guest import Guest, finished, guest, over, real_host, spec
from tests.host.process import HostProcess
from tests.host.test_drives import at, drive
from tests.host.test_supervisor import until_it_passes

pytestmark = [pytest.mark.root, pytest.mark.sandbox, pytest.mark.timeout(300)]
MIB = 1024 * 1024
EMULATED = {"isolation__backend": "qemu", "isolation__qemu_accelerator": "tcg"}
END_S = 30.0


@asynccontextmanager
async def host_of_machines(data_dir: Path, *, end_all: bool = True, **flags: object) -> AsyncIterator[Service]:
    async with real_host(data_dir, end_all=end_all, **EMULATED, **flags) as service:
        yield service


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


def own_mib(pid: int) -> int:
    """What of its template a machine has pages of its own for."""
    found = 0
    of_template = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match("[0-9a-f]+-[0-9a-f]+ ", line):
            of_template = "memfd:hutch-template" in line
        elif of_template and line.startswith("Anonymous:"):
            found += int(line.split()[1])
    return found // 1024


async def test_memory_that_a_guest_frees_goes_back_to_the_host(no_leaks: Path) -> None:
    program = "import os\nos.mkfifo('go')\nx = b'x' * (100 << 20)\nprint(len(x), flush=True)\nopen('go').read()"
    async with host_of_machines(no_leaks) as host:
        box = await guest(host, memory_mb=512)
        machine = box.session.machine
        assert machine is not None
        assert isinstance(machine.isolation, Qemu)
        assert machine.isolation.templates is not None
        [place] = machine.isolation.templates._places.values()
        assert place.template is not None

        def template() -> bytes:
            assert place.template is not None
            return hashlib.sha256(os.pread(place.template.memory, 512 * MIB, 0)).digest()

        before = template()
        kept = await box.start("sh", "-c", "head -c 1000000 /dev/urandom > /dev/shm/kept; sha256sum /dev/shm/kept; sleep 1000")
        running = await box.start("python3", "-c", program)
        async with asyncio.timeout(60):
            while own_mib(machine.process.pid) < 100:
                await asyncio.sleep(0.1)
        assert (await box.shell("echo > go")).exit_code == 0
        assert (await finished(running)).stdout == b"104857600\n"
        async with asyncio.timeout(60):
            while own_mib(machine.process.pid) > 70:
                await asyncio.sleep(0.1)
        # What others begin with is as it was, and so is what is in use.
        assert template() == before
        other = await guest(host, memory_mb=512)
        assert (await other.shell("echo here")).stdout == b"here\n"
        request = SnapshotRequest(session_id=box.session_id, keep_running=True, memory=True)
        snapshot = (await host.supervisor.snapshot(request)).snapshot
        child = await guest(host, memory_mb=512, source_snapshot=snapshot.snapshot_id)
        sums = [(await each.shell("sha256sum /dev/shm/kept")).stdout.split()[0] for each in (box, child)]
        assert sums[0] == sums[1]
        assert sums[0] in kept.output.path.read_bytes()
        # QEMU had nothing to complain of.
        assert "discard" not in (machine.directory / "console.log").read_text()


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
        # Not synced: a snapshot of what runs has it all the same.
        assert (await box.shell("echo live > live")).exit_code == 0
        live = (await host.supervisor.snapshot(SnapshotRequest(session_id=box.session_id, keep_running=True))).snapshot
        assert box.record.status is SessionStatus.RUNNING
        copied = await guest(host, source_snapshot=live.snapshot_id, with_memory=False)
        assert (await copied.shell("cat live")).stdout == b"live\n"
        await copied.stop()
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


IDENTITY = """
cat /proc/sys/kernel/random/boot_id; head -c 8 /dev/urandom | od -An -tx8
ip -o -4 addr show dev eth0 | tr -s ' ' | cut -d ' ' -f 4
cat /etc/resolv.conf | head -1; date +%s; hostname
"""
COUNTER = """
import os, time
n = 0
while True:
    n += 1
    print(n, os.urandom(8).hex(), time.time(), flush=True)
    time.sleep(0.05)
"""
CLOCK_S = 2.0


async def identity(box: Guest) -> list[str]:
    """What no two machines may have in common, and its clock checked."""
    before = time.time()
    told = (await box.shell(IDENTITY)).stdout.decode().split("\n")
    boot, random, address, server, clock, hostname = (line.strip() for line in told[:6])
    assert before - CLOCK_S <= int(clock) <= time.time() + CLOCK_S
    assert box.session.machine is not None
    network = box.session.machine.network
    assert address == f"{network.guest_address}/30"
    assert server == f"nameserver {network.host_address}"
    return [boot, random, address, hostname]


async def counted(box: Guest, command_id: str, count: int) -> list[list[str]]:
    """What a counter printed, at least so many lines."""
    reader, text = box.commands.get(command_id).output.reader(), b""
    try:
        async with asyncio.timeout(60):
            while text.count(b"\n") < count:
                piece = await reader.next()
                assert piece is not None, text
                text += piece[1]
    finally:
        reader.close()
    return [line.split() for line in text.decode().splitlines()[:count]]


def digests(directory: Path) -> dict[str, str]:
    found = {}
    for entry in directory.iterdir():
        with entry.open("rb") as file:
            found[entry.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


async def test_machines_of_one_template_and_of_one_memory_are_different(no_leaks: Path, caplog: pytest.LogCaptureFixture) -> None:
    small = {"memory_mb": 512}
    async with host_of_machines(no_leaks, end_all=False) as host:
        qemu = host._supervisor._machines.backends.default
        assert isinstance(qemu, Qemu)
        assert qemu.traits.memory
        assert qemu.traits.live_copies
        assert qemu.templates is not None
        one, two = await guest(host, hostname="one", **small), await guest(host, hostname="two", **small)
        waits, mounted = qemu.templates._places.values()
        place = next(place for place in (waits, mounted) if place.template is not None and place.template.disk is not None)
        found = [await identity(one), await identity(two)]
        counter = await one.start("python3", "-c", COUNTER)
        command_id = counter.record.command_id
        before = await counted(one, command_id, 5)
        assert (await one.shell("echo of the moment > file")).exit_code == 0
        saved = await host.supervisor.snapshot(SnapshotRequest(session_id=one.session_id, keep_running=True, memory=True))
        assert saved.snapshot.memory_bytes > MIB
        forks = [
            await guest(host, source_snapshot=saved.snapshot.snapshot_id, hostname=f"fork-{number}", **small) for number in (1, 2)
        ]
        found += [await identity(fork) for fork in forks]
        found.append(await identity(one))
        boots, randoms, addresses, hostnames = (list(column) for column in zip(*found, strict=True))
        # The first is asked twice.
        assert len(set(boots[:4])) == len(set(addresses[:4])) == len(set(hostnames[:4])) == 4
        assert found[4][0] == found[0][0]
        assert found[4][2:] == found[0][2:]
        assert len(set(randoms)) == 5
        own = [await counted(box, command_id, 60) for box in (one, *forks)]
        assert all([int(line[0]) for line in printed] == list(range(1, 61)) for printed in own)
        assert all(printed[:5] == before for printed in own)
        # After the moment in which it was saved, their random numbers are their own.
        assert len({printed[-1][1] for printed in own}) == 3
        for fork in forks:
            assert (await fork.shell("cat file")).stdout == b"of the moment\n"
        # One that goes on from memory is saved by its own pages too, and changes nothing of what it went on from.
        memory = host.supervisor.snapshots.memory
        state = memory.load(saved.snapshot.snapshot_id)
        assert state is not None
        whole = digests(state.image)
        assert set(whole) == {qemu_memory.MEMORY, qemu_memory.DEVICES}
        assert (state.image / qemu_memory.MEMORY).stat().st_size == 512 * MIB
        again = await host.supervisor.snapshot(SnapshotRequest(session_id=forks[1].session_id, keep_running=True, memory=True))
        theirs = memory.load(again.snapshot.snapshot_id)
        assert theirs is not None
        assert {file.name for file in theirs.image.iterdir()} == set(whole)
        last = await guest(host, source_snapshot=again.snapshot.snapshot_id, hostname="last", **small)
        printed = await counted(last, command_id, len(await counted(forks[1], command_id, 60)) + 20)
        assert [int(line[0]) for line in printed] == list(range(1, len(printed) + 1))
        assert digests(state.image) == whole
        await host.supervisor.snapshots.remove(again.snapshot.snapshot_id)
        assert (await last.shell("cat file")).stdout == b"of the moment\n"
        # Files that are none start nothing, and leave nothing.
        machines = host._supervisor._machines.left_behind()
        devices = (state.image / qemu_memory.DEVICES).read_bytes()
        for name, broken, size in (
            (qemu_memory.DEVICES, devices[: len(devices) // 2], None),
            (qemu_memory.DEVICES, b"", None),
            (qemu_memory.DEVICES, b"nonsense" * 1000, None),
            (qemu_memory.DEVICES, devices, 1200 * MIB),
            (qemu_memory.MEMORY, b"", 511 * MIB),
        ):
            file = state.image / name
            file.rename(state.image / "aside")
            file.write_bytes(broken)
            if size is not None:
                os.truncate(file, size)
            with pytest.raises(UnavailableError, match="could not be started: The virtual machine did not start"):
                await guest(host, source_snapshot=saved.snapshot.snapshot_id, **small)
            (state.image / "aside").rename(file)
            assert host._supervisor._machines.left_behind() == machines
        # So does a template's: it is made again, once told, and the machine begins with another one.
        caplog.clear()
        assert place.template is not None
        useless = Template(os.dup(place.template.memory), qemu_template.file("broken"), qemu_template.file("disk", 15 * MIB))
        before_template, place.template = place.template, useless
        os.write(useless.devices, b"QEVM nonsense")
        before_template.close()
        three = await guest(host, **small)
        assert (await three.shell("echo boots")).stdout == b"boots\n"
        [warned] = [record.getMessage() for record in caplog.records if "template" in record.getMessage()]
        assert warned.startswith("a template did not work, and is made again: ")
        left = [bool(kind.disk_bytes) for kind, one_of in qemu.templates._places.items() if one_of.template is not None]
        assert left == [False]
        # What has begun needs neither.
        fork_id = forks[0].session_id
    async with host_of_machines(no_leaks) as host:
        adopted = Guest(host.supervisor, fork_id)
        assert adopted.record.status is SessionStatus.RUNNING
        assert adopted.commands.get(command_id).running
        assert (await adopted.shell("hostname")).stdout == b"fork-1\n"
        # And is saved by another host as it is by its own.
        later = await host.supervisor.snapshot(SnapshotRequest(session_id=fork_id, keep_running=True, memory=True))
        theirs = host.supervisor.snapshots.memory.load(later.snapshot.snapshot_id)
        assert theirs is not None
        assert (theirs.image / qemu_memory.MEMORY).exists()


async def read(box: Guest, path: str) -> bytes:
    return (await box.run("cat", path)).stdout


REBOUND = """
card=$(basename $(readlink /sys/class/net/eth0/device))
echo $card > /sys/bus/virtio/drivers/virtio_net/unbind && echo $card > /sys/bus/virtio/drivers/virtio_net/bind
test $(cat /sys/class/net/eth0/ifindex) -gt 2
"""
"""The card is another one by the same name."""
OTHER_ROUTES = """
ip addr add 192.0.2.9/24 dev eth0 && ip link set eth0 arp off && ip link set lo down
ip route replace blackhole default && ip route add 198.51.100.0/24 via 192.0.2.1
"""
RENAMED = "ip link set eth0 down && ip link set eth0 name lan0 && ip link set lan0 up"


@pytest.mark.parametrize("change", ["true", OTHER_ROUTES, RENAMED, REBOUND], ids=["nothing", "routes", "name", "card"])
async def test_a_fork_has_its_own_network_whatever_root_made_of_the_other(no_leaks: Path, change: str) -> None:
    async with host_of_machines(no_leaks) as host:
        qemu = host._supervisor._machines.backends.default
        assert isinstance(qemu, Qemu)
        # It boots by itself, and is told the address that it has.
        qemu.templates = None
        box = await guest(host, memory_mb=512)
        await has_its_network(box, "eth0")
        changed = await box.shell(change, sudo=True)
        assert changed.exit_code == 0, changed
        saved = await host.supervisor.snapshot(SnapshotRequest(session_id=box.session_id, keep_running=True, memory=True))
        fork = await guest(host, source_snapshot=saved.snapshot.snapshot_id, memory_mb=512)
        await has_its_network(fork, "lan0" if change == RENAMED else "eth0")


async def has_its_network(box: Guest, card: str) -> None:
    machine = box.session.machine
    assert machine is not None
    told = await box.shell(f"ip -4 -o addr show dev {card}; ip -o route show default | head -n 1; ip -6 -o addr show dev {card}")
    own, route = told.stdout.decode().splitlines()
    assert own.split()[1:6] == [card, "inet", f"{machine.network.guest_address}/30", "brd", own.split()[5]]
    assert route.split()[:5] == ["default", "via", machine.network.host_address, "dev", card]
    await until_it_passes(box)


async def test_the_second_of_an_image_begins_with_it_mounted(no_leaks: Path) -> None:
    async with host_of_machines(no_leaks) as host:
        machines = host._supervisor._machines
        qemu = machines.backends.default
        assert isinstance(qemu, Qemu)
        assert qemu.templates is not None
        boxes = []
        for number, kinds in enumerate(([False], [False, True], [False, True]), 1):
            box = await guest(host, memory_mb=512)
            assert sorted(bool(kind.disk_bytes) for kind in qemu.templates._places) == kinds
            assert (await box.shell(f"echo {number} > number")).exit_code == 0
            boxes.append(box)
        authorities = []
        for box in boxes:
            own = await read(box, GUEST_AUTHORITY)
            assert own.startswith(b"-----BEGIN CERTIFICATE-----")
            assert all([await read(box, alias) == own for alias in GUEST_ALIASES])
            assert await read(box, GUEST_BUNDLE) == machines._trust.pem + own
            store = machines._trust._java
            assert await read(box, GUEST_JAVA_STORE) == store.head + store.ending(ssl.PEM_cert_to_DER_cert(own.decode()))
            hostname = (await box.shell("hostname")).stdout.decode().strip()
            assert f"127.0.1.1 {hostname}\n" in (await read(box, "/etc/hosts")).decode()
            authorities.append(own)
        assert len(set(authorities)) == len(boxes)
        # Other memory, other disks: none of them wrote to another's or to the template's.
        assert [await read(box, "number") for box in boxes] == [b"1\n", b"2\n", b"3\n"]
        taken = await host.supervisor.snapshot(SnapshotRequest(session_id=boxes[2].session_id))
        again = await guest(host, memory_mb=512, source_snapshot=taken.snapshot.snapshot_id)
        assert await read(again, "number") == b"3\n"
        assert await read(again, GUEST_AUTHORITY) not in authorities


async def test_an_image_may_have_as_many_layers_as_elsewhere(
    no_leaks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with host_of_machines(no_leaks) as host:
        images = host.supervisor.images
        image = images.exact("vercel/sandbox/universal:latest")
        layers = list(image.layers)
        for number in range(len(layers), MAX_LAYERS):
            tree, path = tmp_path / f"tree-{number}", tmp_path / f"layer-{number}.erofs"
            tree.mkdir()
            tree.chmod(0o755)
            for name in (f"only-{number}", "highest"):
                (tree / name).write_text(f"{number}\n")
                (tree / name).chmod(0o644)
            subprocess.run(["mkfs.erofs", "-Enoinline_data", path, tree], check=True, capture_output=True)
            layers.append(Layer(path, "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size))
        monkeypatch.setattr(images, "exact", lambda _: dataclasses.replace(image, layers=tuple(layers)))
        drives = [at(f"/drive-{number}", await drive(host, 32 * MIB)) for number in range(4)]
        script = "set -e; cat /highest; ls -d /only-* | wc -l; echo mine > own; cat own; findmnt -no TARGET -t ext4 || true"
        # With drives, then with the template of its kind, then with the one of its image.
        for mounts in (drives, [], []):
            box = await guest(host, memory_mb=512, mounts=mounts)
            told = await box.shell(script)
            assert told.stderr == b""
            highest, only, own, *mounted = told.stdout.decode().splitlines()
            assert (highest, only, own) == (str(MAX_LAYERS - 1), str(MAX_LAYERS - len(image.layers)), "mine")
            assert mounted == [mount.path for mount in mounts]


async def test_a_monitor_that_is_killed_while_its_memory_is_saved_leaves_nothing(
    no_leaks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with host_of_machines(no_leaks) as host:
        box = await guest(host, memory_mb=512)
        machine = box.session.machine
        assert machine is not None
        isolation = host._supervisor._machines.backends.default
        checkpoint = isolation.checkpoint

        def killing(identifier: str, image: Path) -> None:
            timer = threading.Timer(0.02, machine.process.kill)
            timer.start()
            try:
                checkpoint(identifier, image)
                pytest.fail("it was saved before it was killed")
            finally:
                timer.join()

        monkeypatch.setattr(isolation, "checkpoint", killing)
        with pytest.raises((ConflictError, GoneError)):
            await host.supervisor.snapshot(SnapshotRequest(session_id=box.session_id, keep_running=True, memory=True))
        assert (await over(box)).status is SessionStatus.FAILED
        assert [entry for entry in (no_leaks / "host" / "memory").iterdir() if entry.is_dir()] == []


async def settled(host: Service, snapshot_id: str) -> int:
    """The size of a snapshot, once it is known."""
    async with asyncio.timeout(END_S):
        while (record := host.supervisor.snapshots.record(snapshot_id)).durable_at is None:
            await asyncio.sleep(0.02)
    return record.size_bytes


WRITE = """
set -e
mkdir -p kept/deep/$(printf 'd%.0s' $(seq 200)); cd kept
echo contents > file; ln file other; ln -s /etc/passwd link
head -c 2000000 /dev/urandom > big; sha256sum big > sum
truncate -s 3G sparse; printf end >> sparse
chmod 640 file; chmod 2755 deep
sudo rm -rf /usr/share/doc /etc/debian_version; sudo mkdir /usr/share/doc; echo mine | sudo tee /usr/share/doc/mine
sudo cp /bin/true suid; sudo chmod 4711 suid; sudo touch -h -d '2001-02-03 04:05:06.789012345' *
"""
LIST = """
cd kept && sha256sum -c sum && cat file && find . -printf '%p %y %m %U %G %n %s %T@ %l\\n' | sort
ls -A /usr/share/doc; ls -d /etc/debian_version; stat -c %b sparse; tail -c 3 sparse
"""


def listed(text: bytes) -> list[bytes]:
    """Blocks and sizes of directories are a file system's own."""
    return [line for line in text.splitlines() if b" d " not in line and not line.isdigit()]


async def test_a_snapshot_starts_under_the_other_backend_and_back(no_leaks: Path) -> None:
    both: dict[str, Any] = {"isolation__backend": "gvisor", "isolation__also": ["qemu"], "isolation__qemu_accelerator": "tcg"}
    async with real_host(no_leaks, **both, blobs__url="local") as host:
        snapshots = host.supervisor.snapshots
        box = await guest(host, persistent=True)
        done = await box.shell(WRITE)
        assert (done.exit_code, done.stderr) == (0, b"")
        before = await box.shell(LIST)
        assert b"big: OK" in before.stdout
        assert b"mine" in before.stdout.splitlines()
        first = (await box.stop()).snapshot
        assert first is not None
        assert not first.disk
        box = await guest(host, persistent=True, isolation="qemu", source_snapshot=first.snapshot_id, memory_mb=512)
        inside = await box.shell(LIST)
        assert listed(inside.stdout) == listed(before.stdout)
        assert (await box.shell("cd kept && rm other link && echo more >> file && sudo rm /usr/share/doc/mine")).exit_code == 0
        changed = await box.shell(LIST)
        second = (await box.stop()).snapshot
        assert second is not None
        assert second.disk
        await settled(host, second.snapshot_id)
        # Somebody wants it, and the blob store does: it becomes a tree once.
        pieces: list[bytes] = []

        async def keep(piece: bytes) -> None:
            pieces.append(piece)

        await snapshots.export(SnapshotExport(snapshot_id=second.snapshot_id, max_bytes=64 * MIB), keep)
        with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as archive:
            names = {name.removeprefix("./") for name in archive.getnames()}
        assert {"usr/share/doc/.wh..wh..opq", "etc/.wh.debian_version"} <= names
        assert any(name.endswith("/kept/file") for name in names)
        async with asyncio.timeout(120):
            while snapshots.record(second.snapshot_id).copy is not CopyState.STORED:
                await asyncio.sleep(0.05)
        assert (await snapshots.verify(second.snapshot_id)).compared
        box = await guest(host, source_snapshot=second.snapshot_id, isolation="gvisor")
        assert listed((await box.shell(LIST)).stdout) == listed(changed.stdout)
        await box.stop()
        await host.supervisor.build_image(ImageBuild(snapshot_id=second.snapshot_id, name="machine", project_id="prj"))
        box = await guest(host, image=host.supervisor.images.resolve("machine", "prj").pinned, isolation="gvisor")
        assert listed((await box.shell(LIST)).stdout) == listed(changed.stdout)
        await box.stop()
        # What is lost here comes back as a tree, and is a disk again.
        layers = host._supervisor._machines._layers
        await asyncio.gather(*host.supervisor.ends.removals)
        for name in names_of(second.snapshot_id):
            layers.remove_snapshot(name)
        assert (await snapshots.source(second.snapshot_id, disk=True)).snapshot == second.snapshot_id
        assert layers.snapshots() >= {second.snapshot_id, f"{second.snapshot_id}.tree"}
        for snapshot_id in (first.snapshot_id, second.snapshot_id):
            await host.supervisor.remove_snapshot(snapshot_id)
        assert layers.snapshots() == set()


async def test_a_host_that_dies_while_it_converts_leaves_nothing(no_leaks: Path) -> None:
    host = HostProcess(no_leaks, pool__size="0", isolation__backend="gvisor", isolation__also='["qemu"]')
    await host.start()
    first = spec(persistent=True)
    await host.client.call("session.create", first, SessionRecord)
    ended = await host.client.call("session.stop", StopRequest(first.session_id), SessionRecord)
    assert ended.snapshot is not None
    second = spec(source_snapshot=ended.snapshot.snapshot_id, isolation="qemu", memory_mb=512)
    creating = asyncio.ensure_future(host.client.call("session.create", second, SessionRecord))
    await host.kill_while_it_converts()
    with pytest.raises(HutchError):
        await creating
    assert host.converting()
    await host.start()
    assert not host.converting()
    assert list((no_leaks / "host" / "conversions").glob("hutch-vm-*")) == []
    # What was begun is begun again, by whoever asks again.
    assert (await host.client.call("session.create", second, SessionRecord)).status is SessionStatus.RUNNING
    await host.stop()
