"""Usage while processes are killed: the windows of a session add up to the kernel's own total, to the microsecond."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from pathlib import Path

import pytest

from hutch.client import Client, Server
from hutch.client.models import Usage
from hutch.errors import HutchError
from hutch.host.cgroups import Cgroups
from hutch.metering import receipts
from tests.chaos.test_server_kills import children, gone
from tests.conftest import start_server, stop_server, wait_until

pytestmark = [pytest.mark.root, pytest.mark.sandbox, pytest.mark.campaign]

BURN = "while :; do i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 0.05; done"


def named(pid: int, name: str) -> bool:
    try:
        return name.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def host_of(process: subprocess.Popen[bytes]) -> int | None:
    """The host that runs now."""
    return next((pid for pid in children(process.pid) if named(pid, "host") and not gone(pid)), None)


def final(where: Server, name: str) -> Usage | None:
    """What a sandbox used, once that is final; nothing while a part of the server is away."""
    try:
        with Client(where) as client:
            used = client.usage.of(name)
            return used if used.final else None
    except HutchError:
        return None


def until_final(where: Server, name: str) -> Usage:
    wait_until(lambda: final(where, name) is not None, 60, "its final usage")
    used = final(where, name)
    assert used is not None
    return used


def settled(cgroups: Cgroups, path: str) -> int:
    """The total of a cgroup whose last process is dead: it stands still for a while."""
    seen: list[int | None] = []

    def still() -> bool:
        seen.append(cgroups.cpu_us(path))
        return len(seen) > 20 and len(set(seen[-20:])) == 1

    wait_until(still, 10, "a total that stands still")
    assert seen[-1] is not None
    return seen[-1]


def kill_one(process: subprocess.Popen[bytes], chance: random.Random) -> None:
    victim = chance.choice(sorted(children(process.pid)))
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: gone(victim) and len(children(process.pid)) == 2, 30, "a new child")


@pytest.mark.timeout(1800)
def test_windows_are_the_kernels_total_whatever_is_killed(no_leaks: Path, full_campaign: bool) -> None:
    """The last process of a sandbox is killed while the host stands still, so that its cgroup's total is final when it is read;
    then the host is killed too, and its successor has to find that very total."""
    no_leaks.mkdir()
    log = no_leaks.parent / "serve.log"
    chance = random.Random(11)
    cgroups = Cgroups.detect()
    process, where = start_server(no_leaks, log, environment={"HUTCH_BILLING__WINDOW_S": "1"})
    rounds, kills, total_us = (25 if full_campaign else 2), 0, 0
    for number in range(rounds):
        name = f"burning-{number}"
        with Client(where) as client:
            box = client.create_sandbox(name=name, persistent=False)
            box.create_command("sh", ["-c", BURN])
            cgroup = client.sandboxes.get(name).sandbox.cgroup
            assert cgroup, "administrators see it"
        for _ in range(chance.randrange(1, 4)):
            kill_one(process, chance)
            kills += 1
        wait_until(lambda: host_of(process) is not None, 30, "a host")
        host = host_of(process)
        assert host is not None
        os.kill(host, signal.SIGSTOP)
        cgroups.kill_all(cgroup, 10)
        assert not cgroups.pids(cgroup)
        truth = settled(cgroups, cgroup)
        os.kill(host, signal.SIGKILL)
        used = until_final(where, name)
        assert used.active_cpu_us + used.startup_cpu_us == truth
        assert used.creations == 1
        total_us += used.active_cpu_us
        with Client(where) as client:
            receipt = client.usage.receipt(name)
            receipts.verify(receipt, client.usage.receipt_keys())
            assert receipt["usage"]["active_cpu_us"] == used.active_cpu_us
            client.sandboxes.delete(name)
    print(
        f"{rounds} sessions (seed 11), {kills + rounds} kills: {total_us} us in windows, the kernel's totals to the microsecond"
    )
    stop_server(process, log)
