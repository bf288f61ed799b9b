"""The cgroup of a virtual machine's monitor: made and bounded before its first instruction."""

from __future__ import annotations

from pathlib import Path

from hutch.host.cgroups import Cgroups

PERIOD_US = 100_000
# Joins the cgroups that are named before `--`, then becomes what is named after it.
_JOIN = 'while [ "$1" != -- ]; do echo $$ >"$1" || exit 125; shift; done; shift; exec "$@"'


def bounded(cgroups: Cgroups, cgroup: str, *, memory_bytes: int, vcpus: int, threads: int) -> list[Path]:
    """Make a cgroup with these bounds; the directories that a process has to join. Raises `OSError`."""
    relative = cgroup.lstrip("/")
    if cgroups.version == 1:
        bounds = [
            ("memory", "memory.limit_in_bytes", str(memory_bytes)),
            ("cpu", "cpu.cfs_quota_us", str(vcpus * PERIOD_US)),
            ("pids", "pids.max", str(threads)),
        ]
    else:
        bounds = [
            ("memory", "memory.max", str(memory_bytes)),
            ("cpu", "cpu.max", f"{vcpus * PERIOD_US} {PERIOD_US}"),
            ("pids", "pids.max", str(threads)),
        ]
        above = cgroups.roots["memory"]
        for name in Path(relative).parts:
            (above / "cgroup.subtree_control").write_text("+cpu +memory +pids")
            above = above / name
            above.mkdir(exist_ok=True)
    directories = list(dict.fromkeys(root / relative for root in cgroups.roots.values()))
    for directory in directories:
        directory.mkdir(parents=True, exist_ok=True)
    for controller, name, value in bounds:
        (cgroups.roots[controller] / relative / name).write_text(value)
    return directories


def joining(directories: list[Path]) -> list[str]:
    """Words to put before a command, which then runs in these cgroups as the same process."""
    return ["sh", "-c", _JOIN, "sh", *(str(directory / "cgroup.procs") for directory in directories), "--"]
