"""Limits and counters of sandboxes, on cgroup version 1, version 2 and the hybrid of both.

`runsc` makes a sandbox's cgroups from its bundle and puts every process of it there before any of them runs; what is read
here are the kernel's own numbers.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

CONTROLLERS = ("cpu", "cpuacct", "memory", "pids")


POLL_S = 0.003
"""The kernel has no event for an empty version 1 cgroup."""
STILL_S, STILL_TIMEOUT_S = 0.001, 0.05


class CgroupsMissing(OSError):
    """The machine lacks a controller that limits or meters sandboxes."""


@dataclass(frozen=True, slots=True)
class Cgroups:
    """Where the hierarchies are mounted. `roots` maps each controller to its hierarchy; on version 2 all to the same.

    `others` are version 1 hierarchies that are not used here; `runsc` makes its cgroups in them all the same.
    """

    version: int
    roots: dict[str, Path]
    others: tuple[Path, ...] = ()

    @classmethod
    def detect(cls, mountinfo: str | None = None) -> Cgroups:
        """What this machine has. Raises `CgroupsMissing` with what is missing."""
        text = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace") if mountinfo is None else mountinfo
        first: dict[str, Path] = {}
        others: list[Path] = []
        unified: Path | None = None
        for line in text.splitlines():
            fields = line.split()
            dash = fields.index("-")
            point, kind, options = Path(fields[4]), fields[dash + 1], fields[dash + 3].split(",")
            if kind == "cgroup":
                used = [controller for controller in CONTROLLERS if controller in options]
                for controller in used:
                    first.setdefault(controller, point)
                if not used:
                    others.append(point)
            elif kind == "cgroup2" and unified is None:
                unified = point
        if len(first) == len(CONTROLLERS):
            return cls(1, first, tuple(others))
        if unified is not None and not first:
            return cls(2, dict.fromkeys(CONTROLLERS, unified))
        missing = ", ".join(controller for controller in CONTROLLERS if controller not in first)
        raise CgroupsMissing(f"No cgroup hierarchy with the controllers {missing} is mounted.")

    def directories(self, path: str) -> list[Path]:
        """The directories of a cgroup, one per hierarchy."""
        relative = path.lstrip("/")
        return list(dict.fromkeys(root / relative for root in (*self.roots.values(), *self.others)))

    def cpu_us(self, path: str) -> int | None:
        """CPU time of all processes that ever were in a cgroup, in microseconds; None when it is gone."""
        relative = path.lstrip("/")
        try:
            if self.version == 1:
                return int((self.roots["cpuacct"] / relative / "cpuacct.usage").read_text()) // 1000
            for line in (self.roots["cpu"] / relative / "cpu.stat").read_text().splitlines():
                if line.startswith("usage_usec "):
                    return int(line.split()[1])
        except (FileNotFoundError, OSError):
            return None
        return None

    def final_cpu_us(self, path: str) -> int | None:
        """The same of a cgroup that nothing runs in any more. What dies leaves the list of processes a little before its last
        moments are counted, so this is read until it stands still. Blocks."""
        before, deadline = self.cpu_us(path), time.monotonic() + STILL_TIMEOUT_S
        while before is not None and time.monotonic() < deadline:
            time.sleep(STILL_S)
            now = self.cpu_us(path)
            if now == before:
                break
            before = now
        return before

    def set_apart(self, path: str, name: str, threads: Iterable[int]) -> None:
        """Have the CPU time of some threads in a cgroup counted below it too, under a name of its own. Raises `OSError`."""
        directory = self.roots["cpuacct"] / path.lstrip("/") / name
        directory.mkdir(exist_ok=True)
        if self.version == 2:
            (directory / "cgroup.type").write_text("threaded")
        members = directory / ("tasks" if self.version == 1 else "cgroup.threads")
        for thread in threads:
            members.write_text(str(thread))

    def memory_bytes(self, path: str) -> int | None:
        """Memory that a cgroup holds now, page cache included; None when it is gone."""
        name = "memory.usage_in_bytes" if self.version == 1 else "memory.current"
        try:
            return int((self.roots["memory"] / path.lstrip("/") / name).read_text())
        except OSError:
            return None

    def held_bytes(self, path: str) -> int | None:
        """Memory that a cgroup holds now without what the kernel would give back at once: files that nobody read for a while.
        None when it is gone."""
        used = self.memory_bytes(path)
        if used is None:
            return None
        name = "total_inactive_file " if self.version == 1 else "inactive_file "
        with contextlib.suppress(OSError):
            for line in (self.roots["memory"] / path.lstrip("/") / "memory.stat").read_text().splitlines():
                if line.startswith(name):
                    return max(0, used - int(line.removeprefix(name)))
        return used

    def pids(self, path: str) -> list[int]:
        """Processes in a cgroup. They are the same in every hierarchy."""
        try:
            listed = (self.roots["pids"] / path.lstrip("/") / "cgroup.procs").read_text()
        except OSError:
            return []
        return sorted(int(line) for line in listed.split())

    def oom_kills(self, path: str) -> int:
        """How often the kernel killed something in a cgroup for lack of memory."""
        name = "memory.oom_control" if self.version == 1 else "memory.events"
        with contextlib.suppress(OSError):
            for line in (self.roots["memory"] / path.lstrip("/") / name).read_text().splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
        return 0

    def kill_all(self, path: str, timeout_s: float) -> None:
        """SIGKILL everything in a cgroup and wait until it is empty, at most `timeout_s`. Blocks."""
        deadline = time.monotonic() + timeout_s
        while pids := self.pids(path):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                return
            time.sleep(POLL_S)

    def remove(self, path: str, timeout_s: float = 0.0) -> bool:
        """Remove an empty cgroup and those below it; whether nothing of it is left. The dead may keep it busy for a moment, which
        is waited for."""
        left = self.directories(path)
        deadline = time.monotonic() + timeout_s
        while left:
            left = [directory for directory in left if not _removed(directory)]
            if left and time.monotonic() >= deadline:
                return False
            if left:
                time.sleep(POLL_S)
        return True

    def remove_unused(self, path: str) -> None:
        """Remove a cgroup that others may use, unless any is below it: one that nothing runs in *yet* is used, too."""
        for directory in self.directories(path):
            with contextlib.suppress(OSError):
                directory.rmdir()

    def children(self, path: str) -> set[str]:
        """Names of the cgroups below one."""
        found: set[str] = set()
        for directory in self.directories(path):
            with contextlib.suppress(OSError):
                found.update(entry.name for entry in directory.iterdir() if entry.is_dir())
        return found


def _removed(directory: Path) -> bool:
    for _ in range(2):
        try:
            directory.rmdir()
        except FileNotFoundError:
            return True
        except OSError:
            with contextlib.suppress(OSError):
                for below in [entry for entry in directory.iterdir() if entry.is_dir()]:
                    _removed(below)
        else:
            return True
    return False
