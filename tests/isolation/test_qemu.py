"""Real virtual machines, emulated: they boot to the agent; every way to fail is an error with a reason and leaves nothing."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hutch.host.binaries import guest_path
from hutch.host.cgroups import Cgroups
from hutch.host.debug_qemu import run
from hutch.isolation import qemu_probe, tsc
from hutch.isolation.protocol import BootFailed
from hutch.isolation.qemu import GUEST_CGROUP, Guest, Qemu, last_words, monitor
from hutch.isolation.qemu_command import MIB, Accelerator
from hutch.isolation.qemu_probe import Booted, boots, with_machine

pytestmark = [pytest.mark.root]
DEADLINE_S = 60.0
CGROUP = "/hutch-test-qemu"
ECHO = r"""
#include <stdio.h>
#include <unistd.h>
int main(int count, char **words) { printf("%s %d\n", words[1], getuid()); return 7; }
"""


def processes() -> set[str]:
    """Ours: other tests may run machines at the same time."""
    ours = ["pgrep", "-P", str(os.getpid()), "-f", "qemu-system-x86_64 -name hutch"]
    listed = subprocess.run(ours, capture_output=True, text=True, check=False)
    return set(listed.stdout.split())


@pytest.fixture
def qemu(tmp_path: Path) -> Iterator[Qemu]:
    guest = Guest(guest_path())
    guest.require()
    before = processes()
    made = Qemu(guest, tmp_path / "state", Cgroups.detect(), Accelerator.TCG, disk_bytes=64 * MIB)
    yield made
    assert processes() <= before
    assert made.machines() == set()
    assert not list(tmp_path.glob("hutch-vm-*"))
    assert not any(directory.exists() for directory in made.cgroups.directories(CGROUP))
    made.close()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image with one static program, `/echo`."""
    directory = tmp_path_factory.mktemp("image")
    (directory / "tree").mkdir()
    (directory / "echo.c").write_text(ECHO)
    subprocess.run(["cc", "-static", "-O1", "-o", directory / "tree/echo", directory / "echo.c"], check=True)
    subprocess.run(["mkfs.erofs", "-Enoinline_data", directory / "image", directory / "tree"], check=True, capture_output=True)
    return directory / "image"


def boot(qemu: Qemu, parent: Path, lowers: tuple[Path, ...], line: str | None = None, deadline_s: float = DEADLINE_S) -> None:
    async def nothing(_: Booted) -> None:
        pytest.fail("its agent answered")

    asyncio.run(with_machine(qemu, lowers, nothing, deadline_s=deadline_s, parent=parent, kernel_line=line))


def line(**changed: str) -> str:
    words = {"console": "ttyS0", "quiet": "", "panic": "-1", "reboot": "t", "tsc_early_khz": str(tsc.frequency_khz())}
    words |= {"tsc": "reliable", "hutch.vm": "1", "hutch.layers": "1"} | changed
    return " ".join(f"{name}={value}" if value else name for name, value in words.items())


def test_a_machine_boots_and_runs_a_program(qemu: Qemu, image: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async def use(booted: Booted) -> int:
        with monitor(booted.plan.directory) as asked:
            assert asked.status() == "running"
        status = Path(f"/proc/{booted.process.pid}/status").read_text()
        assert qemu.cgroups.pids(CGROUP) == [booted.process.pid]
        # What the threads that run the guest use is counted apart, too.
        whole, of_guest = qemu.cgroups.cpu_us(CGROUP), qemu.cgroups.cpu_us(f"{CGROUP}/{GUEST_CGROUP}")
        assert whole is not None
        assert of_guest is not None
        assert 0 < of_guest < whole
        # Nobody, without any capability, and under a filter of system calls.
        assert "Uid:\t0" not in status
        assert "CapEff:\t0000000000000000" in status
        assert "Seccomp:\t2" in status
        # No file becomes larger than its disk and its memory.
        limits = Path(f"/proc/{booted.process.pid}/limits").read_text()
        largest = max(64 * MIB, booted.plan.memory_bytes)
        assert re.search(rf"^Max file size +{largest} +{largest} ", limits, re.MULTILINE)
        # In a jail: nothing of the host but its read-only programs, no process but itself, no network.
        own = Path(f"/proc/{booted.process.pid}")
        mounts = [line.split() for line in (own / "mountinfo").read_text().splitlines()]
        assert sorted(fields[4] for fields in mounts) == ["/", "/proc", "/usr"]
        assert all(fields[5].startswith("ro,") for fields in mounts if fields[4] != "/proc")
        assert sorted(entry.name for entry in (own / "root").iterdir() if not entry.is_symlink()) == ["proc", "usr"]
        assert [line.split()[-1] for line in status.splitlines() if line.startswith("NSpid:")] == ["1"]
        for namespace in ("ipc", "mnt", "net", "pid"):
            assert (own / "ns" / namespace).readlink() != Path("/proc/self/ns", namespace).readlink()
        opened = [str(descriptor.readlink()) for descriptor in (own / "fd").iterdir()]
        assert [name for name in opened if "cgroup" in name or name.endswith(".sock")] == []
        return await run(booted, ["/echo", "hello"])

    lowers = (qemu.guest.probe_root, image)
    code = asyncio.run(with_machine(qemu, lowers, use, deadline_s=DEADLINE_S, parent=tmp_path, cgroup=CGROUP))
    assert (code, capfd.readouterr().out) == (7, "hello 0\n")


def test_what_is_known_of_kvm_is_asked_again_where_it_did_not_work(
    qemu: Qemu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_kvm, tries, now = qemu.using(Accelerator.KVM), 0, time.time()

    def busy(_: Qemu) -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise BootFailed("No agent answered within 5 s")

    monkeypatch.setattr(qemu_probe, "boots", busy)
    found = []
    for after_s in (0, 1, qemu_probe.REFUSAL_KEPT_S - 1, qemu_probe.REFUSAL_KEPT_S + 1, 3 * qemu_probe.REFUSAL_KEPT_S, 10**6):
        monkeypatch.setattr("hutch.isolation.qemu_probe.time.time", lambda at=now + after_s: at)
        found.append((qemu_probe.verdict(with_kvm, tmp_path / "verdicts").usable, tries))
    assert found == [(False, 1), (False, 1), (False, 1), (False, 2), (True, 3), (True, 3)]


def test_a_corrupt_image_is_told(qemu: Qemu, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(bytes(64 * 1024))
    with pytest.raises(BootFailed, match="layer0|can't be mounted as erofs"):
        boot(qemu, tmp_path, (broken,))


def test_a_missing_disk_is_told(qemu: Qemu, tmp_path: Path) -> None:
    with pytest.raises(BootFailed, match="there is no disk with the serial number layer1"):
        boot(qemu, tmp_path, (qemu.guest.probe_root,), line(**{"hutch.layers": "2"}))


def test_a_kernel_panic_is_told(qemu: Qemu, tmp_path: Path) -> None:
    with pytest.raises(BootFailed, match="(?s)ended before its agent answered.*Kernel panic"):
        boot(qemu, tmp_path, (qemu.guest.probe_root,), line(rdinit="/nothing"))


def test_a_guest_that_hangs_has_a_deadline(qemu: Qemu) -> None:
    # No kernel comes to its agent in this time.
    with pytest.raises(BootFailed, match=r"No agent answered within 0\.3 s"):
        boots(qemu, 0.3)


def test_a_killed_monitor_is_told(qemu: Qemu, tmp_path: Path) -> None:
    async def kill() -> None:
        booting = asyncio.ensure_future(asyncio.to_thread(boot, qemu, tmp_path, (qemu.guest.probe_root,)))
        while not (machines := qemu.machines()):
            assert not booting.done()
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.2)
        process = qemu.recorded(machines.pop())
        assert process is not None
        qemu.kill(process)
        await booting

    with pytest.raises(BootFailed, match="ended before its agent answered|did not start"):
        asyncio.run(kill())


def test_what_is_missing_is_named(qemu: Qemu, tmp_path: Path) -> None:
    with pytest.raises(BootFailed, match="no-such-qemu is not installed"):
        boot(Qemu(qemu.guest, tmp_path / "state", qemu.cgroups, Accelerator.TCG, "no-such-qemu"), tmp_path, (tmp_path / "x",))
    with pytest.raises(BootFailed, match="there is no .*vmlinuz"):
        boot(Qemu(Guest(tmp_path), tmp_path / "state", qemu.cgroups, Accelerator.TCG), tmp_path, (tmp_path / "x",))
    assert last_words(tmp_path) == ""


def test_a_call_that_is_ended_leaves_nothing(image: Path, tmp_path: Path) -> None:
    words = [
        sys.executable,
        "-m",
        "hutch",
        "debug",
        "qemu",
        "exec",
        "--accel",
        "tcg",
        "--layer",
        str(image),
        "--",
        "/echo",
        "told",
    ]
    # Its machine boots while it is ended.
    process = subprocess.Popen(words, env={**os.environ, "TMPDIR": str(tmp_path)}, stderr=subprocess.PIPE, text=True)
    deadline, machines = time.monotonic() + DEADLINE_S, ["pgrep", "-P", str(process.pid), "-f", "qemu-system-x86_64 -name hutch"]
    while not (machine := subprocess.run(machines, capture_output=True, text=True, check=False).stdout.strip()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        # Nobody is told when a process of another one begins.
        time.sleep(0.05)
    process.terminate()
    _, said = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 143, said
    assert not Path("/proc", machine).exists()
    assert not list(tmp_path.iterdir())
