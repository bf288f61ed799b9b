"""Programs whose cost is known: what a command's receipt says of each, against the kernel's counters read beside it.

Times of the guest's own clocks are no truth: they go on while a busy host lets it wait. What it does to be counted less
(daemons, its kernel's time, clocks that it sets) must not help it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from hutch.errors import NotFoundError
from hutch.host.commands import Command
from hutch.host.protocol import CommandUsage
from hutch.host.service import Service
from tests.host.guest import Guest, cpu_us, differs, finished, guest, real_host

pytestmark = [pytest.mark.root, pytest.mark.sandbox, pytest.mark.timeout(300)]

MIB = 2**20
OWN_US = 10_000
"""What a receipt may be off by, where that is more than 1 %."""
SLOW = "an emulated interpreter takes longer to start than that"
IDLE_US = 250_000
"""Starting and ending a program and its interpreter, at most."""

BUSY = "import time\nend = time.process_time() + {0}\nwhile time.process_time() < end: pass"
FORK_STORM = """
import os
for _ in range({0}):
    pid = os.fork()
    if pid == 0: os._exit(0)
    os.waitpid(pid, 0)
"""
SYSCALLS = """
import mmap, os
for _ in range({0}):
    os.stat("/etc/passwd"); mmap.mmap(-1, 4096).close()
"""
NETWORK_WAIT = """
import socket
listening = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listening.getsockname())
client.settimeout({0})
try: client.recv(1)
except TimeoutError: print("waited")
"""
IO_WAIT = """
import os, select
reading, writing = os.pipe()
assert select.select([reading], [], [], {0}) == ([], [], [])
print("waited")
"""
LIES = """
import time
try: time.clock_settime(time.CLOCK_REALTIME, 0)
except OSError: print("refused")
end = time.monotonic() + {0}
while time.monotonic() < end: pass
"""


@dataclass(frozen=True, slots=True)
class Measured:
    """A command's usage, and what the kernel counted for the sandbox from before it until after it."""

    usage: CommandUsage
    truth_us: int
    output: bytes


async def measured(box: Guest, *argv: str) -> Measured:
    before = cpu_us(box)
    command = await box.start(*argv)
    ran = await finished(command)
    truth = cpu_us(box) - before
    assert ran.exit_code == 0, ran.stderr
    return Measured(await used(box, command), truth, ran.stdout)


async def used(box: Guest, command: Command) -> CommandUsage:
    return await box.supervisor.metered.read_command(box.session_id, command.record.command_id)


def python(program: str, *values: object) -> tuple[str, str, str]:
    return "python3", "-c", program.format(*values)


@pytest.fixture
async def warm(host: Service) -> Guest:
    """A sandbox in which Python has run before."""
    box = await guest(host, vcpus=2, memory_mb=4096)
    await box.run("python3", "-c", "import socket, mmap, select")
    return box


Seconds = Callable[[float, float], float]


@pytest.fixture
def seconds(full_campaign: bool) -> Seconds:
    return lambda short, full: full if full_campaign else short


@pytest.mark.campaign
@pytest.mark.parametrize("program", ["busy", "busy on two", "fork storm", "syscalls", "lies"])
async def test_work_is_on_the_receipt_of_its_command(warm: Guest, seconds: Seconds, program: str) -> None:
    length = seconds(1, 5)
    argv = {
        "busy": python(BUSY, length),
        "busy on two": ("sh", "-c", f"python3 -c '{BUSY.format(length)}' & python3 -c '{BUSY.format(length)}'; wait"),
        "fork storm": python(FORK_STORM, int(seconds(100, 1000))),
        "syscalls": python(SYSCALLS, int(seconds(5000, 50_000))),
        "lies": python(LIES, length),
    }[program]
    found = await measured(warm, *argv)
    counted = found.usage.quantities.active_cpu_us
    print(f"{program}: {counted} us on the receipt, {found.truth_us} us by the kernel")
    assert found.usage.final
    assert not found.usage.overlapped
    assert abs(counted - found.truth_us) <= max(OWN_US, found.truth_us // 100)
    assert counted > {"fork storm": 0.02, "syscalls": 0.02}.get(program, 0.3) * 10**6 * length


@pytest.mark.campaign
@pytest.mark.parametrize(
    "program", ["sleep", pytest.param("input", marks=differs(SLOW)), pytest.param("network", marks=differs(SLOW))]
)
async def test_waiting_costs_nothing(warm: Guest, seconds: Seconds, program: str) -> None:
    length = seconds(2, 10)
    argv = {"sleep": ("sleep", str(length)), "input": python(IO_WAIT, length), "network": python(NETWORK_WAIT, length)}[program]
    found = await measured(warm, *argv)
    quantities = found.usage.quantities
    print(f"{program}: {quantities.active_cpu_us} us in {quantities.wall_us} us")
    assert quantities.wall_us >= length * 10**6
    assert quantities.active_cpu_us < IDLE_US
    assert abs(quantities.active_cpu_us - found.truth_us) <= max(OWN_US, found.truth_us // 100)


@differs("what a guest has freed goes back to the host some time later")
async def test_memory_is_what_was_held_while_it_was_held(warm: Guest) -> None:
    """Grown in steps: 400 MiB in the end, half of that on average."""
    ramp = "import time\nheld = []\nfor _ in range(20):\n    held.append(b'x' * (20 * 2**20)); time.sleep(0.1)"
    # Readings are two seconds apart where nobody asks; here somebody does.
    command = await warm.start(*python(ramp.replace("{", "{{").replace("}", "}}")))
    until = asyncio.ensure_future(finished(command))
    while not until.done():
        await warm.supervisor.metered.read(warm.session_id)
        await asyncio.sleep(0.05)
    assert (await until).exit_code == 0
    idle = await measured(warm, "sleep", "1")
    quantities = (await used(warm, command)).quantities
    base = idle.usage.quantities.memory_byte_seconds * 10**6 // idle.usage.quantities.wall_us
    held = quantities.memory_byte_seconds - base * quantities.wall_us // 10**6
    mean = held * 10**6 // quantities.wall_us
    print(f"{mean // MIB} MiB held on average, {quantities.memory_peak_bytes // MIB} MiB at most, {held // MIB} MiB-seconds")
    # 20, 40, … 400 MiB for a tenth of a second each make 420 MiB-seconds, and more where a step takes longer.
    assert held > 300 * MIB
    assert mean < 350 * MIB
    assert 400 * MIB <= quantities.memory_peak_bytes < 400 * MIB + base + 200 * MIB
    assert base < 200 * MIB, "what was held is given back"


@differs("a guest's page cache is memory that it holds")
async def test_files_that_nobody_reads_any_more_are_not_held_memory(warm: Guest) -> None:
    before = (await warm.supervisor.metered.read(warm.session_id)).quantities
    found = await measured(warm, "dd", "if=/dev/zero", "of=big", "bs=1M", "count=400", "conv=fsync")
    idle = await measured(warm, "sleep", "1")
    held = idle.usage.quantities.memory_byte_seconds * 10**6 // idle.usage.quantities.wall_us
    print(f"{held // MIB} MiB held after 400 MiB were written; CPU {found.usage.quantities.active_cpu_us} us")
    assert held < before.memory_peak_bytes + 200 * MIB


async def test_a_daemon_that_outlives_its_command_is_on_the_sessions_bill(warm: Guest) -> None:
    before = await used(warm, await started(warm, "true"))
    hides = await measured(warm, "sh", "-c", f"setsid sh -c 'sleep 0.5; python3 -c \"{BUSY.format(1)}\"' >/dev/null 2>&1 &")
    assert hides.usage.quantities.active_cpu_us < 300_000, "its work has not begun when its command is over"
    before_first, session, after_first = cpu_us(warm), await warm.supervisor.metered.read(warm.session_id), cpu_us(warm)
    await asyncio.sleep(3)
    before_last, last, after_last = cpu_us(warm), await warm.supervisor.metered.read(warm.session_id), cpu_us(warm)
    grown = last.quantities.active_cpu_us - session.quantities.active_cpu_us
    # It may work while it is read.
    assert before_last - after_first - OWN_US <= grown <= after_last - before_first + OWN_US
    assert grown > 300_000
    assert before.final


async def started(box: Guest, *argv: str) -> Command:
    command = await box.start(*argv)
    await finished(command)
    return command


async def test_commands_that_run_at_once_say_so(warm: Guest) -> None:
    first = await warm.start("sleep", "0.5")
    second = await warm.start("true")
    await finished(second)
    running = await used(warm, first)
    assert (running.final, running.overlapped) == (False, True)
    await finished(first)
    alone = await started(warm, "true")
    found = [await used(warm, command) for command in (first, second, alone)]
    assert [(usage.final, usage.overlapped) for usage in found] == [(True, True), (True, True), (True, False)]


async def test_receipts_of_commands_are_there_when_the_host_was_not_and_when_the_session_is_over(no_leaks: Path) -> None:
    async with real_host(no_leaks, end_all=False) as first:
        box = await guest(first)
        done = await box.start(*python(BUSY, 0.5))
        await finished(done)
        before = await used(box, done)
        running = await box.start("sh", "-c", f"python3 -c '{BUSY.format(0.5)}'; sleep 4")
        cut = await box.start("sleep", "100")
        await asyncio.sleep(1)
    async with real_host(no_leaks) as second:
        box = Guest(second.supervisor, box.session_id)
        assert await used(box, done) == before
        again = box.commands.get(running.record.command_id)
        await finished(again)
        usage = await used(box, again)
        assert (usage.final, usage.overlapped) == (True, True)
        assert usage.quantities.active_cpu_us >= 150_000
        assert usage.quantities.wall_us >= 4_000_000
        record = await box.stop()
        ended = await used(box, cut)
        assert ended.final, "its session ended, so nothing more will come"
        assert record.active_cpu_us is not None
        assert before.quantities.active_cpu_us + usage.quantities.active_cpu_us <= record.active_cpu_us
        with pytest.raises(NotFoundError):
            await box.supervisor.metered.read_command(box.session_id, "cmd_none")
        with pytest.raises(NotFoundError):
            await box.supervisor.metered.read_command("sbx_none", done.record.command_id)
