"""How right usage is, and what it costs: `meter.error`, `meter.cost`."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from bench.machine import descendants
from bench.measure import Result, Series, at_most
from bench.server import serving
from hutch.client import AsyncClient, AsyncSandbox, SandboxResources
from hutch.host.cgroups import Cgroups

PROGRAMS = {
    "busy": ["python3", "-c", "import time\nend = time.time() + 5\nwhile time.time() < end: pass"],
    "busy on two": [
        "python3",
        "-c",
        "import os, time\nos.fork()\nend = time.time() + 5\nwhile time.time() < end: pass",
    ],
    "sleep": ["sleep", "5"],
    "files": ["sh", "-c", "for n in $(seq 40); do dd if=/dev/zero of=f bs=1M count=8 conv=fsync 2>/dev/null; done"],
    "forks": ["sh", "-c", "for n in $(seq 400); do /bin/true; done"],
}
IDLE = 100
WATCH_S = 20.0


async def meter_error(quick: bool) -> list[Result]:
    """What a program is billed, against what its cgroup counted, read from outside at the same moments."""
    cgroups, results = Cgroups.detect(), []
    with serving(1) as server:
        async with AsyncClient(server.where) as client:
            for name, command in PROGRAMS.items():
                errors, billed = [], []
                for _ in range(1 if quick else 3):
                    sandbox = await client.create_sandbox(resources=SandboxResources(vcpus=2), persistent=False)
                    cgroup = (await client.sandboxes.get(sandbox.name)).sandbox.cgroup or ""
                    true_before, used_before = await _both(cgroups, cgroup, sandbox)
                    await sandbox.run_command(command[0], command[1:])
                    true_after, used_after = await _both(cgroups, cgroup, sandbox)
                    errors.append(abs((used_after - used_before) - (true_after - true_before)) / 1000)
                    billed.append((used_after - used_before) / 1000)
                    await sandbox.destroy()
                ours = Series.of(errors)
                share = 100 * max(errors) / max(*billed, 1)
                facts = {"billed_ms": [round(one, 1) for one in billed], "worst_percent": round(share, 3)}
                targets = [at_most("ms, or 1 %", 0 if share <= 1 else ours.max, 10)]
                results.append(Result("meter.error", f"{name}: billed against counted", ours, targets=targets, facts=facts))
    return results


async def _both(cgroups: Cgroups, cgroup: str, sandbox: AsyncSandbox) -> tuple[int, int]:
    """The kernel's counter and the billed one, in microseconds, as close together as a request allows."""
    used = (await sandbox.usage()).active_cpu_us
    return cgroups.cpu_us(cgroup) or 0, used


async def meter_cost(quick: bool) -> list[Result]:
    """CPU time of the host's process while idle sandboxes are metered, in parts of a core."""
    count, watch_s = (10, 5.0) if quick else (IDLE, WATCH_S)
    with serving(0) as server:
        async with AsyncClient(server.where) as client:
            host = next(pid for pid in descendants(server.pid) if _is_host(pid))
            await asyncio.sleep(2)
            idle = await _share(host, watch_s)
            boxes = [await client.create_sandbox(resources=SandboxResources(vcpus=1), persistent=False) for _ in range(count)]
            await asyncio.sleep(2)
            metered = await _share(host, watch_s)
            for box in boxes:
                await box.destroy()
    ours = Series.of([100 * max(0.0, metered - idle)], "% of a core")
    facts = {"sandboxes": count, "without": round(100 * idle, 2), "with": round(100 * metered, 2)}
    targets = [at_most("% of a core", ours.p50, 1)]
    return [Result("meter.cost", f"{count} idle sandboxes, all that the host does", ours, targets=targets, facts=facts)]


def _is_host(pid: int) -> bool:
    try:
        return b"\0host\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


async def _share(pid: int, watch_s: float) -> float:
    before, began = _cpu_s(pid), time.monotonic()
    await asyncio.sleep(watch_s)
    return (_cpu_s(pid) - before) / (time.monotonic() - began)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
