"""What an idle sandbox costs in memory: `density`."""

from __future__ import annotations

from pathlib import Path

from bench.http import HttpError
from bench.machine import MIB, available_bytes, descendants, pss_bytes
from bench.measure import Result, Series, Target, at_most
from bench.raw import raw_runsc
from bench.sdk import Sdk
from bench.server import serving
from hutch.host.names import Names

SANDBOXES = 100
PEERS = 20


async def density(quick: bool) -> list[Result]:
    """Idle sandboxes that all still answer: the machine's available memory before and after, per sandbox."""
    count = 10 if quick else SANDBOXES
    failures = 0
    with serving(0) as server:
        sdk = Sdk(server.where)
        await sdk.delete(await sdk.create())
        before, pss_before = available_bytes(), pss_bytes(descendants(server.pid))
        sandboxes = [await sdk.create(1) for _ in range(count)]
        for sandbox in sandboxes:
            await sdk.run(sandbox, ["/bin/true"])
        each = (before - available_bytes()) / count / MIB
        own = pss_bytes(descendants(server.pid)) - pss_before
        pss = (pss_bytes(_machine_processes(server.data_dir)) + own) / count / MIB
        for sandbox in sandboxes:
            try:
                code, _ = await sdk.run(sandbox, ["/bin/true"])
            except (HttpError, OSError):
                code = -1
            failures += code != 0
            await sdk.delete(sandbox)
        await sdk.close()
    with raw_runsc() as raw:
        before = available_bytes()
        names = []
        for _ in range(min(PEERS, count)):
            name = raw.prepare(["/usr/bin/sleep", "infinity"])
            raw.mount(name)
            raw.start(name)
            raw.execute(name, ["/bin/true"])
            names.append(name)
        peer = (before - available_bytes()) / len(names) / MIB
    ours = Series.of([each], "MiB", failures)
    targets = [at_most("MiB each", each, 25), Target("all still answer", failures, failures == 0)]
    facts = {"pss_mib_each": round(pss, 1), "sandboxes": count}
    return [
        Result("density", f"{count} idle sandboxes", ours, Series.of([peer], "MiB"), f"{len(names)} × raw runsc", targets, facts)
    ]


def _machine_processes(data_dir: Path) -> set[int]:
    """Processes in the cgroups of an instance's machines."""
    mark = f"{Names.of(data_dir).cgroup_parent}/"
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if mark in (entry / "cgroup").read_text():
                    found.add(int(entry.name))
            except OSError:
                continue
    return found
