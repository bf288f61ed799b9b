"""Facts about the machine, and readings of its memory and CPU."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

from hutch import __version__
from hutch.host.cgroups import Cgroups
from hutch.images import ImageStore
from hutch.settings import load

MIB = 1024 * 1024


def facts() -> dict[str, Any]:
    """What one must know to compare two results."""
    settings = load()
    runsc = subprocess.run([str(settings.isolation.runsc_path()), "--version"], capture_output=True, text=True, check=True).stdout
    cpu = next((line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "unknown")
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_mib": _meminfo("MemTotal") // MIB,
        "kernel": platform.release().partition("-")[0],
        "load_before": round(os.getloadavg()[0], 1),
        "virtual": any("hypervisor" in line for line in _lines("/proc/cpuinfo") if line.startswith("flags")),
        "cgroup_version": Cgroups.detect().version,
        "backend": "gvisor (systrap)",
        "runsc": runsc.splitlines()[0].removeprefix("runsc version ").strip(),
        "hutch": __version__,
        "python": platform.python_version(),
        "image_bytes": {
            image.name: sum(layer.size for layer in image.layers) for image in ImageStore(settings.image_dir()).list()
        },
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()


def _meminfo(key: str) -> int:
    return next(int(line.split()[1]) * 1024 for line in _lines("/proc/meminfo") if line.startswith(f"{key}:"))


def available_bytes() -> int:
    """Memory that could be used without swapping."""
    return _meminfo("MemAvailable")


def busy_cpu_s() -> float:
    """CPU seconds that the machine has spent on anything since it booted."""
    user, nice, system, _, _, irq, soft, steal = (int(value) for value in _lines("/proc/stat")[0].split()[1:9])
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def pss_bytes(pids: set[int]) -> int:
    """Memory of processes, what they share divided among those who share it."""
    total = 0
    for pid in pids:
        try:
            total += sum(int(line.split()[1]) * 1024 for line in _lines(f"/proc/{pid}/smaps_rollup") if line.startswith("Pss:"))
        except OSError:
            continue
    return total


def descendants(pid: int) -> set[int]:
    """A process and everything below it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parent = int((entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, queue = set(), [pid]
    while queue:
        current = queue.pop()
        found.add(current)
        queue += children.get(current, [])
    return found


def resident_bytes(pids: set[int]) -> int:
    """Resident memory of processes, added up."""
    total = 0
    for pid in pids:
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            continue
    return total
