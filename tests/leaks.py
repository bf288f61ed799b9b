"""What a Hutch instance leaves behind in the kernel: processes, mounts, namespaces, links, tables, cgroups, loop devices.

`snapshot` before and after, `new` for the difference. With the data directory of an instance only its things count, so that
tests that run beside each other do not see each other's; without, everything that could be Hutch's.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from hutch.host.names import NAMESPACE_DIR, Names, is_machine_id
from hutch.host.network import BLOCKS, BLOCKS_DIR, MARK

IMAGES = ("/host/images/", "/host/pulled/")
"""Where a host mounts what its sandboxes share, and keeps images of registries, below its data directory."""
SETTLED_LOOKS = 10
SPARE_NETWORKS = 5
"""Networks that a host keeps ready, and one more while a machine starts."""
PROGRAMS = frozenset({"hutch-net", "runsc", "runsc-sandbox", "runsc-gofer", "hutch", "hutch-agent"})


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Names of things, by kind."""

    things: dict[str, frozenset[str]]

    def count(self, kind: str) -> int:
        return len(self.things[kind])


def snapshot(data_dir: Path | None = None) -> Snapshot:
    """Everything there is now. Needs root, or it sees less."""
    names = Names.of(data_dir) if data_dir is not None else None
    mark = str(data_dir.resolve()) if data_dir is not None else "hutch"
    return Snapshot(
        {
            "process": frozenset(_processes(names, mark)),
            "mount": frozenset(_mounts(mark)),
            "namespace": frozenset(_namespaces(names)),
            "link": frozenset(_links(names)),
            "table": frozenset(_tables(names)),
            "rule": frozenset(_routing_rules(names)),
            "cgroup": frozenset(_cgroups(names)),
            "loop": frozenset(_loops(mark)),
        }
    )


def settled(data_dir: Path, pause_s: float) -> Snapshot:
    """Everything there is once nothing comes or goes for a while: a machine of the pool has its cgroup before its process."""
    found = snapshot(data_dir)
    for _ in range(SETTLED_LOOKS):
        # Nothing tells when a pool is whole: who looks too early takes its machines for a leak.
        time.sleep(pause_s)
        before, found = found, snapshot(data_dir)
        if all(before.count(kind) == found.count(kind) for kind in found.things):
            break
    return found


def new(before: Snapshot, after: Snapshot) -> list[str]:
    """What is there after and was not before, as `kind: name`."""
    nothing: frozenset[str] = frozenset()
    return [
        f"{kind}: {name}" for kind, found in after.things.items() for name in sorted(found - before.things.get(kind, nothing))
    ]


def grown(before: Snapshot, after: Snapshot) -> list[str]:
    """What a server holds beyond what it held when it was idle, by kind.

    Its pool replaces its machines, so numbers are compared, not names. Networks are kept ready beside the pool, and images stay
    mounted once they were used: neither belongs to a sandbox.
    """
    lines = []
    for kind, everything in after.things.items():
        found = {name for name in everything if not any(place in name for place in IMAGES)}
        old = {name for name in before.things.get(kind, frozenset()) if not any(place in name for place in IMAGES)}
        spare = SPARE_NETWORKS if kind in ("namespace", "link") else 0
        if len(found) > len(old) + spare:
            lines.append(f"{len(found)} instead of {len(old)} {kind}: {', '.join(sorted(found - old))}")
    return lines


def machines(data_dir: Path) -> set[str]:
    """Ids of the machines that an instance has, pooled ones included, by their cgroups."""
    return {name for path in _cgroups(Names.of(data_dir)) if is_machine_id(name := Path(path).name)}


def _processes(names: Names | None, mark: str) -> Iterator[str]:
    group = names.cgroup_parent if names is not None else "/hutch"
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            argv = (entry / "cmdline").read_bytes().decode("utf-8", "replace").rstrip("\0").split("\0")
            cgroups = (entry / "cgroup").read_text()
            state, started = _stat(entry)
        except OSError:
            continue
        if state == "Z":
            # Dead; it holds nothing but its number until its parent asks.
            continue
        inside = any(line.partition(":")[2].partition(":")[2].startswith(f"{group}/") for line in cgroups.splitlines())
        if inside or _is_ours(argv, mark, names is not None):
            yield f"{entry.name} (started {started}) {' '.join(argv)[:200]}"


def _is_ours(argv: list[str], mark: str, exact: bool) -> bool:
    program = Path(argv[0]).name
    module = any(flag == "-m" and name.partition(".")[0] == "hutch" for flag, name in pairwise(argv))
    if not (program in PROGRAMS or module or any(Path(part).name == "hutch" for part in argv[1:2])):
        return False
    return not exact or any(mark in part for part in argv)


def _stat(process: Path) -> tuple[str, str]:
    """State and start time; the command's name before them may hold anything, so they are counted from its end."""
    fields = (process / "stat").read_text(errors="replace").rpartition(")")[2].split()
    return fields[0], fields[19]


def _mounts(mark: str) -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        point = re.sub(r"\\([0-7]{3})", lambda escaped: chr(int(escaped[1], 8)), line.split()[4])
        if mark in point:
            yield point


def _namespaces(names: Names | None) -> Iterator[str]:
    prefix = names.namespace_prefix if names is not None else "hutch-"
    if NAMESPACE_DIR.is_dir():
        yield from (entry.name for entry in NAMESPACE_DIR.iterdir() if entry.name.startswith(prefix))


def _links(names: Names | None) -> Iterator[str]:
    prefix = names.link_prefix if names is not None else "h"
    for entry in Path("/sys/class/net").iterdir():
        if entry.name.startswith(prefix) and not (entry / "device").exists():
            yield entry.name


def _tables(names: Names | None) -> Iterator[str]:
    if os.geteuid() != 0:
        return
    listed = subprocess.run(["nft", "-j", "list", "tables"], capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        return
    for item in json.loads(listed.stdout)["nftables"]:
        table = item.get("table", {}).get("name", "")
        if table == names.table if names is not None else table.startswith("hutch"):
            yield table


def _routing_rules(names: Names | None) -> Iterator[str]:
    """Rules that hand packets to a gateway: those of this instance, and those whose instance has let go of its block."""
    listed = subprocess.run(["ip", "rule", "show"], capture_output=True, text=True, check=False)
    for line in listed.stdout.splitlines():
        mark = re.search(r" fwmark (0x[0-9a-f]+)", line)
        block = int(mark[1], 16) - MARK if mark else -1
        if not 0 <= block < BLOCKS:
            continue
        file = BLOCKS_DIR / str(block)
        owner = file.read_text().strip() if file.exists() else ""
        if names is None or owner in ("", names.tag):
            yield line


def _cgroups(names: Names | None) -> Iterator[str]:
    parent = names.cgroup_parent.lstrip("/") if names is not None else "hutch"
    seen: set[Path] = set()
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if not fields[fields.index("-") + 1].startswith("cgroup"):
            continue
        root = Path(fields[4]) / parent
        real = root.resolve()
        if real in seen or not root.is_dir():
            continue
        seen.add(real)
        # The directory that all instances share may stay; what is below it belongs to one.
        if names is not None:
            yield str(root)
        for directory, children, _ in os.walk(root):
            yield from (str(Path(directory) / child) for child in children)


def _loops(mark: str) -> Iterator[str]:
    """Those that are mounted here, or that would stay. One that goes with its last mount, and has none here, is held by a copy of
    our mounts that somebody else made meanwhile: tests that run beside each other do, in mount namespaces of their own."""
    mounted = {
        line.split(" - ", 1)[1].split()[1] for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    }
    for entry in Path("/sys/block").glob("loop*"):
        try:
            backing = (entry / "loop" / "backing_file").read_text().strip()
            goes = (entry / "loop" / "autoclear").read_text().strip() == "1"
        except OSError:
            continue
        if mark in backing and not (goes and f"/dev/{entry.name}" not in mounted):
            yield f"{entry.name} {backing}"
