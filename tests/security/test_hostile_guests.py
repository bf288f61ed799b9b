"""Guests that mean harm, on real gVisor, and with `HUTCH_ISOLATION=qemu` on virtual machines. Their sandbox may suffer; the host,
its memory and the other sandboxes may not."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from hutch.errors import HutchError
from hutch.host.protocol import SessionStatus
from hutch.host.service import Service
from tests.host.guest import ON_MACHINES, Guest, finished, guest
from tests.host.test_supervisor import until_ended

pytestmark = [pytest.mark.root, pytest.mark.sandbox]

MIB = 1024 * 1024
GIB = 1024 * MIB


def own_memory() -> int:
    """Resident bytes of this process, which is the host here."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def still_serves(neighbour: Guest) -> None:
    """The neighbour answers and so does the host."""
    began = time.monotonic()
    assert (await neighbour.run("echo", "here")).stdout == b"here\n"
    assert time.monotonic() - began < 30


async def died_or_lives(box: Guest) -> bool:
    """Whether the guest still answers; if not, its session must have failed with a reason within 10 seconds."""
    try:
        await asyncio.wait_for(box.run("true"), 20)
    except (HutchError, TimeoutError):
        await until_ended(box)
        assert box.record.status is SessionStatus.FAILED
        assert box.record.stop_reason
        return False
    return True


@pytest.mark.campaign
async def test_gigabytes_of_output(box: Guest, host: Service, full_campaign: bool) -> None:
    size = (10 if full_campaign else 2) * GIB
    neighbour = await guest(host)
    before = own_memory()
    command = await box.start("dd", "if=/dev/zero", "bs=1M", f"count={size // MIB}", "status=none")
    await still_serves(neighbour)
    record = await asyncio.wait_for(command.finished, 100)
    assert record.exit_code == 0
    assert command.output.end == size
    assert command.output.path.stat().st_size <= host._settings.sandbox.log_bytes
    assert own_memory() - before < 64 * MIB


async def test_output_that_nobody_reads_fast_enough_waits(box: Guest) -> None:
    command = await box.start("dd", "if=/dev/zero", "bs=1M", "count=300", "status=none")
    reader = command.output.reader()
    before = own_memory()
    taken = 0
    while (piece := await reader.next()) is not None:
        taken += len(piece[1])
        await asyncio.sleep(0)
    reader.close()
    assert taken == 300 * MIB
    assert own_memory() - before < 64 * MIB


async def test_a_fork_bomb(box: Guest, host: Service) -> None:
    neighbour = await guest(host)
    bomb = await box.start("bash", "-c", "bomb() { bomb | bomb & }; bomb; sleep 1000")
    for _ in range(5):
        await still_serves(neighbour)
    await died_or_lives(box)
    if box.session.live:
        await box.stop()
    with pytest.raises(HutchError):
        await bomb.finished
    await still_serves(neighbour)


async def test_a_memory_hog(host: Service) -> None:
    box, neighbour = await guest(host, memory_mb=512), await guest(host)
    script = "import os\nhoard = []\nwhile True: hoard.append(os.urandom(1 << 20) * 16)"
    hog = await box.start("python3", "-c", script)
    try:
        record = await asyncio.wait_for(hog.finished, 60)
        assert record.exit_code not in (0, None)
    except HutchError:
        assert not await died_or_lives(box)
        assert "memory limit" in (box.record.stop_reason or "")
    await still_serves(neighbour)


async def test_shared_memory_is_bounded(box: Guest) -> None:
    ran = await box.shell("dd if=/dev/zero of=/dev/shm/fill bs=1M count=512; stat -c %s /dev/shm/fill")
    assert b"No space left" in ran.stderr
    assert int(ran.stdout) <= 64 * MIB
    assert await died_or_lives(box)


async def test_a_descriptor_hog(box: Guest, host: Service) -> None:
    neighbour = await guest(host)
    hoard = (
        "import os\nhoard = []\ntry:\n while True: hoard.append(os.open('/dev/null', 0))\n"
        "except OSError as error: print(error.errno)"
    )
    for _ in range(3):
        await box.start("python3", "-c", hoard + "\nimport time; time.sleep(100)")
    assert (await box.run("python3", "-c", hoard)).stdout in (b"24\n", b"23\n")
    await still_serves(neighbour)


async def test_a_disk_filler_gets_an_error_inside(host: Service) -> None:
    box, neighbour = await guest(host, disk_bytes=64 * MIB), await guest(host)
    ran = await box.shell("dd if=/dev/urandom of=/vercel/fill bs=1M count=1024 conv=fsync")
    assert ran.exit_code != 0
    assert b"quota" in ran.stderr.lower() or b"No space left" in ran.stderr
    assert (await box.shell("rm -f /vercel/fill; sync; echo fine > /vercel/small; cat /vercel/small")).stdout == b"fine\n"
    await still_serves(neighbour)
    assert (await neighbour.shell("dd if=/dev/zero of=/vercel/file bs=1M count=100")).exit_code == 0


async def test_inodes_run_out_inside_too(host: Service) -> None:
    box = await guest(host, disk_bytes=16 * MIB)
    script = (
        "import os\nos.mkdir('/vercel/many')\ncount = 0\ntry:\n"
        " for count in range(100000): open(f'/vercel/many/{count:0200d}', 'w').close()\n"
        "except OSError as error: print(error.errno)\n"
    )
    ran = await asyncio.wait_for(box.run("python3", "-c", script), 100)
    assert ran.stdout.strip() in (b"", b"122", b"28")
    assert await died_or_lives(box)


@pytest.mark.parametrize("how", ["KILL", "TERM", "STOP", "SEGV"])
async def test_a_guest_that_attacks_its_agent(box: Guest, host: Service, how: str) -> None:
    neighbour = await guest(host)
    began = time.monotonic()
    attack = await box.start("sh", "-c", f"kill -{how} 1", sudo=True)
    await asyncio.wait({attack.finished}, timeout=1)
    alive = await died_or_lives(box)
    assert alive or time.monotonic() - began < 25
    await still_serves(neighbour)


async def test_nobody_else_can_be_the_agent(box: Guest) -> None:
    script = (
        "import glob, socket\n"
        "print(sorted(glob.glob('/run/hutch/*')))\n"
        "probe = socket.socket(socket.AF_UNIX)\n"
        "try: probe.connect('/run/hutch/host.sock'); print('connected')\n"
        "except OSError as error: print(type(error).__name__)\n"
    )
    if ON_MACHINES:
        # Its port is open, once for all.
        script = (
            "import glob\n"
            "for port in glob.glob('/dev/vport*'):\n"
            " try: open(port, 'r+b', 0); print('opened')\n"
            " except OSError as error: print(error.errno)\n"
        )
        ran = await box.run("python3", "-c", script)
        assert (ran.stdout, (await box.run("python3", "-c", script, sudo=True)).stdout) == (b"13\n", b"16\n")
        return
    for sudo in (False, True):
        ran = await box.run("python3", "-c", script, sudo=sudo)
        assert ran.stdout in (
            b"['/run/hutch/agent']\nFileNotFoundError\n",
            b"['/run/hutch/agent', '/run/hutch/host.sock']\nConnectionRefusedError\n",
            b"['/run/hutch/agent']\nConnectionRefusedError\n",
        ), ran


async def test_the_agents_secrets_are_not_readable(box: Guest) -> None:
    assert box.session.machine is not None
    token = box.session.machine.token
    script = (
        "import re\nfor line in open('/proc/1/maps'):\n"
        " low, high = (int(part, 16) for part in line.split()[0].split('-'))\n"
        " try:\n  memory = open('/proc/1/mem', 'rb'); memory.seek(low)\n"
        f"  print({token[:16]!r} + {token[16:]!r} in memory.read(high - low).decode('latin-1'))\n"
        " except (OSError, OverflowError, ValueError): pass\n"
    )
    ran = await box.run("python3", "-c", script)
    assert b"True" not in ran.stdout


async def test_nothing_of_the_host_is_in_reach(box: Guest) -> None:
    script = """
    mknod /tmp/disk b 253 0 && head -c 1 /tmp/disk
    mount -t proc proc /mnt
    cat /proc/1/root/etc/hostname
    ls /dev
    cat /sys/fs/cgroup/*/hutch/*/cgroup.procs
    echo 1 > /proc/sysrq-trigger
    touch /run/hutch/new
    """
    ran = await box.shell(script, sudo=True)
    assert b"loop" not in ran.stdout
    assert b"kvm" not in ran.stdout
    if ON_MACHINES:
        # Disks of its own, and a kernel that root may do anything to.
        disks = await box.shell("ls /sys/block; cat /sys/block/*/serial")
        assert disks.stdout == b"vda\nvdb\nlayer0disk"
    else:
        assert b"vda" not in ran.stdout
        assert ran.exit_code != 0
    kernel = (await box.run("uname", "-r")).stdout
    assert kernel.strip() != Path("/proc/sys/kernel/osrelease").read_bytes().strip()


async def test_nobody_is_reached_that_no_policy_opens(box: Guest) -> None:
    """A fresh sandbox may reach every public address, and nothing of this machine, its network or its cloud."""
    script = (
        "import socket, time\n"
        "for target in ('169.254.169.254', '10.0.0.1', '100.64.0.1', '127.0.0.2', '192.168.1.1'):\n"
        " probe = socket.socket(); probe.settimeout(5); began = time.monotonic()\n"
        " try: probe.connect((target, 80)); print('came', probe.recv(1))\n"
        " except OSError as error: print(isinstance(error, ConnectionError), time.monotonic() - began < 2)\n"
    )
    ran = await box.run("python3", "-c", script)
    assert ran.stdout.decode().splitlines() == ["True True"] * 5, ran


async def test_programs_and_arguments_of_any_bytes(box: Guest) -> None:
    assert (await box.run("printf", "%s", b"\xff\xfe\n")).stdout == b"\xff\xfe\n"
    assert (await box.run("sh", "-c", "printf '\\377\\000x' >&2")).stderr == b"\xff\x00x"
    for argv in ([""], ["/vercel"], ["../../bin/nothing"], ["x" * 5000]):
        with pytest.raises(HutchError) as refused:
            await box.run(*argv)
        assert refused.value.status == 400


async def test_a_process_that_outlives_its_command_does_not_hold_it(box: Guest) -> None:
    began = time.monotonic()
    ran = await box.shell("sleep 100 & echo started")
    assert ran.stdout == b"started\n"
    assert time.monotonic() - began < 20


async def test_many_processes_that_never_end_are_gone_with_their_sandbox(box: Guest) -> None:
    await box.shell("for n in $(seq 200); do setsid nohup sleep 1000 > /dev/null 2>&1 & done")
    record = await box.stop()
    assert record.status is SessionStatus.STOPPED


async def test_commands_that_flood_with_tiny_writes(box: Guest) -> None:
    before = own_memory()
    flood = await box.start("python3", "-u", "-c", "import os\nfor _ in range(200000): os.write(1, b'x'); os.write(2, b'y')")
    ran = await asyncio.wait_for(finished(flood), 100)
    assert (len(ran.stdout), len(ran.stderr)) == (200_000, 200_000)
    assert own_memory() - before < 128 * MIB
