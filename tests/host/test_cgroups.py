"""Limits and counters on both versions of cgroups. Version 2 is read from files laid out as the kernel does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hutch.host.cgroups import Cgroups, CgroupsMissing
from hutch.host.kernel import threads
from tests.conftest import wait_until

V2 = "30 23 0:26 / {root} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1 = "\n".join(
    f"{number} 23 0:{number} / {{root}}/{name} rw - cgroup cgroup rw,{name}"
    for number, name in enumerate(("cpu", "cpuacct", "memory", "pids"), 40)
)


def test_version_2_is_found_and_read(tmp_path: Path) -> None:
    cgroups = Cgroups.detect(V2.format(root=tmp_path))
    assert cgroups.version == 2
    group = tmp_path / "hutch" / "a" / "m1"
    group.mkdir(parents=True)
    (group / "cpu.stat").write_text("usage_usec 1234567\nuser_usec 1\nsystem_usec 2\n")
    (group / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    (group / "memory.current").write_text("4096\n")
    (group / "cgroup.procs").write_text("12\n11\n")
    assert cgroups.cpu_us("/hutch/a/m1") == 1234567
    assert cgroups.oom_kills("/hutch/a/m1") == 2
    assert cgroups.memory_bytes("/hutch/a/m1") == 4096
    assert cgroups.pids("/hutch/a/m1") == [11, 12]
    assert cgroups.children("/hutch/a") == {"m1"}
    assert len(cgroups.directories("/hutch/a/m1")) == 1


def test_version_1_is_found_and_read(tmp_path: Path) -> None:
    cgroups = Cgroups.detect(V1.format(root=tmp_path))
    assert cgroups.version == 1
    for name in ("cpu", "cpuacct", "memory", "pids"):
        (tmp_path / name / "hutch" / "m1").mkdir(parents=True)
    (tmp_path / "cpuacct/hutch/m1/cpuacct.usage").write_text("1234567999\n")
    (tmp_path / "memory/hutch/m1/memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
    assert cgroups.cpu_us("/hutch/m1") == 1234567
    assert cgroups.oom_kills("/hutch/m1") == 1
    assert len(cgroups.directories("/hutch/m1")) == 4


def test_a_hybrid_machine_uses_version_1_where_its_controllers_are(tmp_path: Path) -> None:
    both = V1.format(root=tmp_path) + "\n" + V2.format(root=tmp_path / "unified")
    assert Cgroups.detect(both).version == 1


def unified() -> Path | None:
    """Where the kernel has version 2, with or without controllers."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if " - cgroup2 " in line:
            return Path(line.split()[4])
    return None


def hierarchies() -> list[Cgroups]:
    """Every version that this kernel has."""
    found, root = Cgroups.detect(), unified()
    if root is None or found.version == 2:
        return [found]
    return [found, Cgroups(2, dict.fromkeys(("cpu", "cpuacct", "memory", "pids"), root))]


BUSY = "import threading, time; t = threading.Thread(target=lambda: [None for _ in iter(int, 1)]); t.start()"


@pytest.mark.root
@pytest.mark.parametrize("cgroups", hierarchies(), ids=lambda found: f"version-{found.version}")
def test_threads_are_counted_apart_and_everything_is_removed(cgroups: Cgroups) -> None:
    path = f"/hutch-test-apart-{os.getpid()}"
    program = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        for directory in {root / path[1:] for root in cgroups.roots.values()}:
            directory.mkdir()
            (directory / "cgroup.procs").write_text(str(program.pid))
        wait_until(lambda: len(threads(program.pid)) == 2, 10, "it started no thread")
        busy = max(threads(program.pid))
        assert threads(program.pid)[busy] == busy
        cgroups.set_apart(path, "guest", [busy])
        wait_until(lambda: (cgroups.cpu_us(f"{path}/guest") or 0) > 20_000, 30, "nothing was counted")
        assert (cgroups.cpu_us(path) or 0) >= (cgroups.cpu_us(f"{path}/guest") or 0) > 0
        # All of the process are still the cgroup's.
        cgroups.kill_all(path, 10)
    finally:
        program.kill()
        program.wait()
        assert cgroups.remove(path, 10)
    assert cgroups.cpu_us(path) is None


def test_what_is_gone_reads_as_none(tmp_path: Path) -> None:
    cgroups = Cgroups.detect(V2.format(root=tmp_path))
    assert cgroups.cpu_us("/nothing") is None
    assert cgroups.memory_bytes("/nothing") is None
    assert cgroups.final_cpu_us("/nothing") is None
    assert cgroups.held_bytes("/nothing") is None
    assert cgroups.pids("/nothing") == []
    assert cgroups.remove("/nothing")


def test_what_others_may_use_is_left_while_there_is_anything_below_it() -> None:
    cgroups = Cgroups.detect()
    path = f"/hutch-test-{os.getpid()}"
    # One that was made a moment ago for a sandbox of another host: no process is in it yet.
    for directory in cgroups.directories(f"{path}/other/machine"):
        directory.mkdir(parents=True)
    try:
        cgroups.remove_unused(path)
        assert all(directory.is_dir() for directory in cgroups.directories(f"{path}/other/machine"))
        assert cgroups.remove(f"{path}/other")
        cgroups.remove_unused(path)
        assert not any(directory.exists() for directory in cgroups.directories(path))
    finally:
        cgroups.remove(path)


@pytest.mark.parametrize(("version", "name"), [(V1, "total_inactive_file"), (V2, "inactive_file")], ids=["v1", "v2"])
def test_memory_that_is_held_is_without_files_that_nobody_used(tmp_path: Path, version: str, name: str) -> None:
    cgroups = Cgroups.detect(version.format(root=tmp_path))
    directory = cgroups.roots["memory"] / "box"
    directory.mkdir(parents=True)
    used = "memory.usage_in_bytes" if cgroups.version == 1 else "memory.current"
    (directory / used).write_text("5000\n")
    assert cgroups.held_bytes("/box") == 5000
    (directory / "memory.stat").write_text(f"anon 1\n{name} 1200\nactive_file 7\n")
    assert cgroups.held_bytes("/box") == 3800
    (directory / "memory.stat").write_text(f"{name} 9000\n")
    assert cgroups.held_bytes("/box") == 0


@pytest.mark.parametrize("mounts", ["", V1.format(root="/x").splitlines()[0]])
def test_missing_controllers_are_named(mounts: str) -> None:
    with pytest.raises(CgroupsMissing, match="memory"):
        Cgroups.detect(mounts)


def test_everything_in_a_real_cgroup_is_killed_and_counted() -> None:
    cgroups = Cgroups.detect()
    path = f"/hutch-test-{os.getpid()}"
    directories = [root / path.lstrip("/") for root in set(cgroups.roots.values())]
    for directory in directories:
        directory.mkdir()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            for directory in directories:
                (directory / "cgroup.procs").write_text(str(process.pid))
            assert cgroups.pids(path) == [process.pid]
            before = cgroups.cpu_us(path)
            cgroups.kill_all(path, 5)
            assert process.wait(5) == -9
            after = cgroups.cpu_us(path)
            assert before is not None
            assert after is not None
            assert after >= before
        finally:
            process.kill()
    assert cgroups.remove(path)
