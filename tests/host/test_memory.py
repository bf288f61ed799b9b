"""Sessions that go on from another one's memory: its processes, its files of the same moment, under an identity of their own."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path

import pytest

from hutch import ids
from hutch.errors import ConflictError, GoneError, UnavailableError
from hutch.host.claims import Claims
from hutch.host.commands import Command, Commands
from hutch.host.machine import Machine, MachineKind
from hutch.host.memory import MemoryImages, MemoryRecord
from hutch.host.protocol import (
    CommandStart,
    CredentialChange,
    NetworkSpec,
    NetworkUpdate,
    SessionRecord,
    SessionSpec,
    SessionStatus,
    SnapshotRecord,
    SnapshotRequest,
)
from hutch.host.service import Service
from hutch.host.snapshots import Snapshots
from hutch.host.storage import Source
from hutch.isolation.gvisor import Gvisor
from tests.host.guest import Guest, Ran, differs, finished, guest, real_host

pytestmark = pytest.mark.root

RULE = {"transform": [{"headers": {"authorization": {"credential": "key", "format": "Bearer {}", "placeholder": "KEY"}}}]}
NAMING = NetworkSpec(policy=json.dumps({"allow": {"api.test": [RULE]}}), credentials={"key": "secret"}, generation=1)

COUNTER = """
import json, os, socket, time
opened = open("held", "w+"); os.unlink("held")
n = 0
while True:
    n += 1
    opened.seek(0); opened.write(str(n)); opened.flush(); opened.seek(0)
    with open("count.new", "w") as file:
        file.write(str(n))
    os.rename("count.new", "count")
    print(json.dumps({"n": n, "held": int(opened.read()), "host": socket.gethostname(), "time": time.time(),
                      "steady": time.monotonic(), "random": os.urandom(8).hex()}), flush=True)
    time.sleep(0.02)
"""


async def saved(box: Guest, *, keep_running: bool = True) -> SnapshotRecord:
    request = SnapshotRequest(session_id=box.session_id, keep_running=keep_running, memory=True)
    return (await box.supervisor.snapshot(request)).snapshot


async def lines(command: Command, count: int) -> list[dict[str, object]]:
    """What a counter printed from its start, at least so many lines."""
    reader, text = command.output.reader(), b""
    try:
        while text.count(b"\n") < count:
            piece = await asyncio.wait_for(reader.next(), 10)
            assert piece is not None, text[-2000:]
            assert piece[0] == 1, piece
            text += piece[1]
    finally:
        reader.close()
    return [json.loads(line) for line in text.splitlines()[:-1]]


async def test_a_process_counts_on_in_three_children_and_its_parent(host: Service) -> None:
    parent = await guest(host, hostname="parent")
    counter = await parent.start("python3", "-c", COUNTER)
    before = await lines(counter, 20)
    snapshot = await saved(parent)
    assert snapshot.memory_bytes > 0
    after = await lines(counter, len(before) + 100)
    children = [await guest(host, source_snapshot=snapshot.snapshot_id, hostname=f"child-{number}") for number in range(3)]
    randoms = {line["random"] for line in after}
    for number, child in enumerate(children):
        [record] = child.commands.newest_first()
        assert (record.command_id, record.session_id) == (counter.record.command_id, child.session_id)
        command = child.commands.get(record.command_id)
        printed: list[dict[str, object]] = []
        own: list[dict[str, object]] = []
        while len(own) <= 50:
            # What the parent said before it was saved comes first, on a busy machine more of it.
            printed = await lines(command, len(printed) + len(before) + 100)
            own = [line for line in printed if line["host"] == f"child-{number}"]
        # Nothing is lost or said twice, and it is the parent's up to that moment.
        assert [line["n"] for line in printed] == list(range(1, len(printed) + 1))
        assert printed[: len(before)] == before
        assert all(line["held"] == line["n"] for line in printed)
        assert not randoms & {line["random"] for line in own}
        randoms |= {line["random"] for line in own}
        count = int((await child.shell("cat count")).stdout)
        assert count >= len(printed) - 1
        assert (await child.shell("cat /etc/hostname /proc/sys/kernel/hostname; hostname")).stdout.endswith(
            f"child-{number}\n".encode()
        )
    assert [line["n"] for line in await lines(counter, len(after) + 10)][: len(after)] == [line["n"] for line in after]
    assert parent.record.status is SessionStatus.RUNNING


async def test_memory_is_kept_at_the_end_of_a_session_and_goes_on(host: Service) -> None:
    box = await guest(host)
    counter = await box.start("python3", "-c", COUNTER)
    await lines(counter, 20)
    snapshot = await saved(box, keep_running=False)
    assert box.record.status is SessionStatus.STOPPED
    again = await guest(host, source_snapshot=snapshot.snapshot_id)
    printed = await lines(again.commands.get(counter.record.command_id), 60)
    assert [line["n"] for line in printed] == list(range(1, len(printed) + 1))
    without = await guest(host, source_snapshot=snapshot.snapshot_id, with_memory=False)
    assert without.commands.newest_first() == []
    assert int((await without.shell("cat count")).stdout) >= 20


@pytest.mark.campaign
@pytest.mark.timeout(600)
async def test_a_restore_of_a_restore(host: Service, full_campaign: bool) -> None:
    box = await guest(host)
    counter = await box.start("python3", "-c", COUNTER)
    await lines(counter, 5)
    for _ in range(100 if full_campaign else 4):
        snapshot = await saved(box, keep_running=False)
        box = await guest(host, source_snapshot=snapshot.snapshot_id)
        await host.supervisor.snapshots.remove(snapshot.snapshot_id)
        command = box.commands.get(counter.record.command_id)
        printed = await lines(command, len(await lines(command, 5)) + 20)
        assert [line["n"] for line in printed] == list(range(1, len(printed) + 1))
    assert (await box.shell("cat count")).exit_code == 0


async def test_output_that_is_on_its_way_is_neither_lost_nor_doubled(host: Service) -> None:
    box = await guest(host)
    program = "import sys\nfor n in range(400000): sys.stdout.write(f'{n:07}\\n')"
    command = await box.start("python3", "-c", program)
    taken = [await saved(box) for _ in range(3)]
    expected = b"".join(b"%07d\n" % n for n in range(400000))
    children = [await guest(host, source_snapshot=snapshot.snapshot_id) for snapshot in taken]
    assert (await finished(command)).stdout == expected
    for child in children:
        for record in child.commands.newest_first():
            assert (await finished(child.commands.get(record.command_id))).stdout == expected


async def test_other_requests_wait_while_memory_is_saved(host: Service) -> None:
    box = await guest(host)
    saving = asyncio.ensure_future(saved(box))
    results = []
    while not saving.done():
        results.append((await box.shell("echo here")).stdout)
    await saving
    assert results
    assert set(results) == {b"here\n"}


async def test_an_open_terminal_is_not_cut(host: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hutch.host.machine.QUIET_TIMEOUT_S", 0.2)
    box = await guest(host)
    machine = box.session.machine
    assert machine is not None
    stream = await machine.open(
        "command.start",
        {"id": "t", "argv": [b"cat"], "cwd": None, "env": {}, "user": "root", "stdin": True, "pty": {"cols": 80, "rows": 24}},
    )
    await stream.reply(dict[str, int])
    with pytest.raises(ConflictError, match="terminal is open"):
        await saved(box)
    assert (await box.shell("echo here")).stdout == b"here\n"
    stream.cancel()
    await machine.call("command.signal", {"id": "t", "signal": 9, "group": True})


async def test_memory_of_another_kernel_or_processor_is_refused(host: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    box = await guest(host)
    snapshot = await saved(box)
    with pytest.raises(ConflictError, match="2 and 4096 MB were asked for"):
        await guest(host, source_snapshot=snapshot.snapshot_id, vcpus=2, memory_mb=4096)
    monkeypatch.setattr(host.supervisor._machines, "fingerprint", lambda _: "another")
    with pytest.raises(ConflictError, match="another model of processor"):
        await guest(host, source_snapshot=snapshot.snapshot_id)
    await (await guest(host, source_snapshot=snapshot.snapshot_id, with_memory=False)).stop()


async def test_memory_is_that_of_the_release_that_runs_it(host: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    box = await guest(host)
    with monkeypatch.context() as upgraded:
        # What is installed has become another one since.
        upgraded.setattr(type(host.supervisor._machines.backends.default), "fingerprint", lambda _: "another")
        snapshot = await saved(box)
        with pytest.raises(ConflictError, match="another release"):
            await guest(host, source_snapshot=snapshot.snapshot_id)
    await guest(host, source_snapshot=snapshot.snapshot_id)


async def test_saved_memory_goes_with_its_snapshot(host: Service) -> None:
    box = await guest(host)
    snapshot = await saved(box)
    directory = host.supervisor.snapshots.memory._directory
    child = await guest(host, source_snapshot=snapshot.snapshot_id)
    await host.supervisor.snapshots.remove(snapshot.snapshot_id)
    assert list(directory.iterdir()) == []
    assert (await child.shell("echo here")).stdout == b"here\n"


async def test_a_snapshot_may_go_while_a_session_begins_with_it(host: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    box = await guest(host)
    counter = await box.start("python3", "-c", COUNTER)
    await lines(counter, 20)
    snapshot, name = await saved(box), Claims.name

    async def name_late(self: Claims, machine: Machine, kind: MachineKind, spec: SessionSpec) -> None:
        await host.supervisor.remove_snapshot(snapshot.snapshot_id)
        await name(self, machine, kind, spec)

    with monkeypatch.context() as late:
        late.setattr(Claims, "name", name_late)
        child = await guest(host, source_snapshot=snapshot.snapshot_id)
    printed = await lines(child.commands.get(counter.record.command_id), 60)
    assert [line["n"] for line in printed] == list(range(1, len(printed) + 1))


async def test_what_can_not_begin_leaves_nothing(host: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    box = await guest(host)
    await box.start("sleep", "100")
    snapshot, source = await saved(box), Snapshots.source

    async def source_and_go(self: Snapshots, snapshot_id: str, *, disk: bool) -> Source:
        found = await source(self, snapshot_id, disk=disk)
        await asyncio.to_thread(self.memory.remove, snapshot_id)
        return found

    monkeypatch.setattr(Snapshots, "source", source_and_go)
    with pytest.raises(GoneError, match="does not exist any more"):
        await guest(host, source_snapshot=snapshot.snapshot_id)
    assert [entry.name for entry in host.supervisor._logs.iterdir()] == [box.session_id]
    assert list(host.supervisor.egress._states) == [box.session_id]


# -- what a copy of a machine must not share, and must know ------------------------------------------

FRESH = {
    "python": [
        "python3",
        "-c",
        "import os, secrets, ssl, uuid; print(os.urandom(9).hex(), uuid.uuid4(), ssl.RAND_bytes(9).hex())",
    ],
    "node": ["node", "-e", "const c = require('crypto'); console.log(c.randomUUID(), c.randomBytes(9).toString('hex'))"],
    "openssl": ["sh", "-c", "openssl rand -hex 9; openssl ecparam -genkey -name prime256v1 -noout | openssl dgst -sha256 -r"],
    "kernel": ["sh", "-c", "head -c 9 /dev/urandom | od -An -tx1 | tr -d ' '; cat /proc/sys/kernel/random/uuid"],
}


@pytest.mark.parametrize("program", FRESH)
async def test_what_starts_after_a_restore_draws_its_own_random_numbers(host: Service, program: str) -> None:
    parent = await guest(host)
    snapshot = await saved(parent)
    children = await asyncio.gather(
        *(guest(host, source_snapshot=snapshot.snapshot_id, hostname=f"child-{number}") for number in range(2))
    )
    drawn: list[bytes] = []
    for box in (parent, *children):
        ran = await box.run(*FRESH[program])
        assert ran.exit_code == 0, ran
        drawn += ran.stdout.split()
    drawn = [word for word in drawn if word != b"*stdin"]
    assert len(drawn) >= 6
    assert len(set(drawn)) == len(drawn)


DRAWING = """
import os, time
while True:
    os.write(1, os.urandom(8).hex().encode() + b"\\n")
    time.sleep(0.001)  # What is printed has to be taken as fast.
"""


async def test_what_runs_on_draws_nothing_that_another_one_draws(host: Service) -> None:
    parent = await guest(host)
    drawing = await parent.start("python3", "-c", DRAWING)
    await _drawn(drawing, 50)
    snapshot = await saved(parent)
    children = [await guest(host, source_snapshot=snapshot.snapshot_id) for _ in range(3)]
    drawers = [drawing, *(child.commands.get(drawing.record.command_id) for child in children)]
    numbers = [await _drawn(drawer, 1000) for drawer in drawers]
    assert all(len(each) == len(set(each)) for each in numbers)
    # Any two have in common what was drawn before, and that is the same for all of them.
    common = {frozenset(one) & frozenset(other) for one, other in combinations(numbers, 2)}
    assert len(common) == 1, sorted(len(each) for each in common)
    assert len(common.pop()) >= 50


async def _drawn(command: Command, more: int) -> list[bytes]:
    """What a program that draws printed from its start, at least so many numbers more than it has printed by now."""
    wanted, reader, text = command.output.end // 17 + more, command.output.reader(), b""
    try:
        while text.count(b"\n") < wanted:
            piece = await asyncio.wait_for(reader.next(), 30)
            assert piece is not None
            text += piece[1]
    finally:
        reader.close()
    return text.split(b"\n")[:-1]


@differs("their monotonic clock goes on where it was")
async def test_a_process_that_runs_on_knows_what_time_it_is(host: Service) -> None:
    box = await guest(host)
    counter = await box.start("python3", "-c", COUNTER)
    await lines(counter, 5)
    snapshot = await saved(box, keep_running=False)
    await asyncio.sleep(3)
    again = await guest(host, source_snapshot=snapshot.snapshot_id, hostname="again")
    command = again.commands.get(counter.record.command_id)
    printed = await lines(command, 5)
    async with asyncio.timeout(10):
        while printed[-1]["host"] != "again":
            printed = await lines(command, len(printed) + 1)
    assert abs(float(str(printed[-1]["time"])) - time.time()) < 0.5
    steady = [float(str(line["steady"])) for line in printed]
    assert steady == sorted(steady)
    # The pause counts, as the sleep of a machine does in CLOCK_BOOTTIME.
    assert 2.5 < max(after - before for before, after in pairwise(steady)) < 10


@differs("an emulated program is not as far yet when it is saved, and its connection to the outside ends by its own time limit")
async def test_connections_inside_a_machine_stay_and_one_to_the_outside_ends(host: Service) -> None:
    program = """
import json, socket, threading, time
server = socket.create_server(("127.0.0.1", 7777))
client = socket.create_connection(("127.0.0.1", 7777))
accepted, _ = server.accept()
local, remote = socket.socketpair()
while True:
    for one, other in ((client, accepted), (local, remote)):
        one.sendall(b"x")
        assert other.recv(1) == b"x"
    print(socket.gethostname(), flush=True)
    time.sleep(0.02)
"""
    box = await guest(host)
    command = await box.start("python3", "-c", program)
    begun = command.output.reader()
    assert await asyncio.wait_for(begun.next(), 30) is not None
    begun.close()
    snapshot = await saved(box)
    child = await guest(host, source_snapshot=snapshot.snapshot_id, hostname="child")
    reader = child.commands.get(command.record.command_id).output.reader()
    text = b""
    try:
        while b"child" not in text:
            piece = await asyncio.wait_for(reader.next(), 10)
            assert piece is not None
            text += piece[1]
    finally:
        reader.close()
    assert set(text.split()) == {b"box", b"child"}


async def test_each_copy_has_its_own_address_authority_and_token(host: Service) -> None:
    box = await guest(host)
    snapshot = await saved(box)
    child = await guest(host, source_snapshot=snapshot.snapshot_id)
    seen = [
        await one.shell("hostname -I; sha256sum < $SSL_CERT_FILE; cat /proc/sys/kernel/random/boot_id") for one in (box, child)
    ]
    address, authority, _, boot = zip(*(ran.stdout.split() for ran in seen), strict=True)
    assert len(set(address)) == len(set(authority)) == len(set(boot)) == 2
    tokens = [one.session.entry.token for one in (box, child) if one.session.entry is not None]
    assert len(set(tokens)) == 2


# -- what comes between ------------------------------------------------------------------------------


async def test_a_stop_that_comes_first_keeps_no_memory(host: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    box = await guest(host, persistent=True)
    loop, stops = asyncio.get_running_loop(), list[asyncio.Task[SessionRecord]]()
    finish = MemoryImages.finish

    def finish_late(self: MemoryImages, snapshot_id: str, record: MemoryRecord) -> int:
        size = finish(self, snapshot_id, record)
        begun = threading.Event()

        def stop() -> None:
            stops.append(loop.create_task(box.stop()))
            loop.call_soon(begun.set)

        loop.call_soon_threadsafe(stop)
        begun.wait(5)
        return size

    monkeypatch.setattr(MemoryImages, "finish", finish_late)
    with pytest.raises(GoneError):
        await saved(box, keep_running=False)
    left = (await stops[0]).snapshot
    assert left is not None
    assert left.memory_bytes == 0
    assert list(host.supervisor.snapshots.memory._directory.iterdir()) == []


async def kill(box: Guest) -> None:
    assert box.session.machine is not None
    box.session.machine.process.kill()


async def stop(box: Guest) -> None:
    await box.stop()


async def expire(box: Guest) -> None:
    await box.supervisor._time_out(box.session)


@pytest.mark.parametrize("end", [kill, stop, expire])
@pytest.mark.parametrize("keep_running", [True, False])
@pytest.mark.parametrize("delay_s", [0.05, 0.15])
async def test_a_sandbox_that_ends_meanwhile_keeps_its_files(
    host: Service, end: Callable[[Guest], Awaitable[None]], delay_s: float, *, keep_running: bool
) -> None:
    box = await guest(host, persistent=True)
    counter = await box.start("python3", "-c", COUNTER)
    await lines(counter, 5)
    saving = asyncio.ensure_future(saved(box, keep_running=keep_running))
    await asyncio.sleep(delay_s)
    session = box.session
    if session.machine is not None:
        await end(box)
    async with asyncio.timeout(20):
        while session.live:
            await asyncio.sleep(0.02)
        await asyncio.wait({saving})
        while session.machine is not None:
            await asyncio.sleep(0.02)
    memory = host.supervisor.snapshots.memory
    kept = {record.snapshot_id for record in host.supervisor.snapshots.records() if record.memory_bytes}
    assert {entry.name for entry in memory._directory.iterdir()} == kept
    assert session.record.snapshot is not None
    again = await guest(host, source_snapshot=session.record.snapshot.snapshot_id)
    count = await again.shell("cat count")
    # A virtual machine that ends while it stands still leaves a disk as a power cut does.
    assert again.record.isolation != "gvisor" or int(count.stdout) >= 5
    if not saving.exception():
        assert kept == {saving.result().snapshot_id}
        child = await guest(host, source_snapshot=saving.result().snapshot_id)
        assert len(await lines(child.commands.get(counter.record.command_id), 40))


async def test_what_ran_is_followed_again_after_a_refusal(host: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hutch.host.machine.QUIET_TIMEOUT_S", 0.2)
    box = await guest(host)
    machine = box.session.machine
    assert machine is not None
    counter = await box.start("python3", "-c", COUNTER)
    stream = await machine.open(
        "command.start",
        {"id": "t", "argv": [b"cat"], "cwd": None, "env": {}, "user": "root", "stdin": True, "pty": {"cols": 80, "rows": 24}},
    )
    await stream.reply(dict[str, int])
    for _ in range(2):
        before = len(await lines(counter, 1))
        with pytest.raises(ConflictError, match="terminal is open"):
            await saved(box)
        printed = await lines(counter, before + 30)
        assert [line["n"] for line in printed] == list(range(1, len(printed) + 1))
    stream.cancel()
    await machine.call("command.signal", {"id": "t", "signal": 9, "group": True})


async def test_what_can_not_be_followed_again_has_failed(host: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    box = await guest(host)
    command = await box.start("sleep", "100")

    async def refuse(*_: object) -> None:
        raise UnavailableError("guest_busy", "Later.")

    monkeypatch.setattr(Commands, "_attach", refuse)
    snapshot = await saved(box)
    assert snapshot.memory_bytes > 0
    with pytest.raises(GoneError):
        await asyncio.wait_for(asyncio.shield(command.finished), 10)
    async with asyncio.timeout(10):
        while box.session.live:
            await asyncio.sleep(0.02)
    assert box.record.status is SessionStatus.FAILED


@differs("the time limit that it sets is gVisor's")
@pytest.mark.parametrize("timeout_s", [0.001, 0.03, 0.08])
async def test_a_sandbox_goes_on_when_its_memory_takes_too_long(
    host: Service, monkeypatch: pytest.MonkeyPatch, timeout_s: float
) -> None:
    box = await guest(host)
    counter = await box.start("python3", "-c", COUNTER)
    program = "import os, time\nheld = os.urandom(1 << 20) * 300\nprint(1, flush=True)\ntime.sleep(1000)"
    held = (await box.start("python3", "-c", program)).output.reader()
    assert await asyncio.wait_for(held.next(), 30) is not None
    held.close()
    monkeypatch.setattr("hutch.isolation.gvisor.CHECKPOINT_TIMEOUT_S", timeout_s)
    with pytest.raises(ConflictError, match="could not be saved"):
        await saved(box)
    assert list(host.supervisor.snapshots.memory._directory.iterdir()) == []
    before = len(await lines(counter, 1))
    printed = await lines(counter, before + 50)
    assert [line["n"] for line in printed] == list(range(1, len(printed) + 1))
    assert box.record.status is SessionStatus.RUNNING
    monkeypatch.undo()
    assert (await saved(box)).memory_bytes > 300 << 20


async def test_a_sandbox_that_goes_on_late_goes_on(host: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    isolation = host._supervisor._machines.backends.default
    monkeypatch.setattr(isolation, "traits", replace(isolation.traits, adopt_timeout_s=1.0))
    resume = Gvisor.resume

    def resume_late(self: Gvisor, machine_id: str) -> None:
        time.sleep(1.5)
        resume(self, machine_id)

    monkeypatch.setattr(Gvisor, "resume", resume_late)
    box = await guest(host)
    assert (await saved(box)).memory_bytes > 0
    assert (await box.shell("echo here")).stdout == b"here\n"


async def test_memory_is_kept_on_ext4_at_the_end_of_a_session(no_leaks: Path) -> None:
    (no_leaks / "host" / "layers" / "ext4").mkdir(parents=True)
    async with real_host(no_leaks) as service:
        box = await guest(service)
        counter = await box.start("python3", "-c", COUNTER)
        await lines(counter, 5)
        with pytest.raises(ConflictError, match="running sandboxes"):
            await saved(box)
        snapshot = await saved(box, keep_running=False)
        child = await guest(service, source_snapshot=snapshot.snapshot_id)
        printed = await lines(child.commands.get(counter.record.command_id), 60)
        assert all(line["held"] == line["n"] for line in printed)
        assert [line["n"] for line in printed] == list(range(1, len(printed) + 1))


async def test_commands_that_start_in_a_child_have_its_environment(host: Service) -> None:
    box = await guest(host, env={"WHOSE": "parent", "OLD": "1"})
    snapshot = await saved(box)
    child = await guest(host, source_snapshot=snapshot.snapshot_id, env={"WHOSE": "child"})
    assert (await child.shell("echo $WHOSE $OLD")).stdout == b"child\n"
    assert (await box.shell("echo $WHOSE $OLD")).stdout == b"parent 1\n"


async def test_whatever_is_asked_meanwhile_is_done(host: Service) -> None:
    box = await guest(host, network=NAMING)
    supervisor, done = host.supervisor, dict[str, int]()

    async def again_and_again(name: str, ask: Callable[[], Awaitable[object]]) -> None:
        while not over:
            await ask()
            done[name] = done.get(name, 0) + 1

    async def upload() -> None:
        machine = box.session.machine
        assert machine is not None
        params = {"cwd": b"/tmp", "user": "root", "gzip": False, "max_bytes": 1 << 20, "max_files": 9}
        stream = await machine.open("archive.write", params)
        try:
            await stream.send_data(b"\0" * 10240, 0)
            stream.send_end()
            await machine.answer(stream.reply())
        finally:
            stream.cancel()

    async def command() -> None:
        assert (await box.shell("echo here")).stdout == b"here\n"

    over = False
    files_alone = SnapshotRequest(session_id=box.session_id, keep_running=True)
    asking = [
        asyncio.ensure_future(again_and_again(name, ask))
        for name, ask in {
            "commands": command,
            "uploads": upload,
            "deadlines": lambda: supervisor.extend(box.session_id, 1, 10**9),
            "policies": lambda: supervisor.set_network(NetworkUpdate(session_id=box.session_id, network=NAMING)),
            "credentials": lambda: supervisor.change_credential(CredentialChange(project_id="prj", name="key", value="new")),
            "traffic": lambda: supervisor.traffic(box.session_id),
            "snapshots": lambda: supervisor.snapshot(files_alone),
        }.items()
    ]
    try:
        taken = await asyncio.gather(*(saved(box) for _ in range(4)))
    finally:
        over = True
        await asyncio.wait_for(asyncio.gather(*asking), 30)
    assert set(done) == {"commands", "uploads", "deadlines", "policies", "credentials", "traffic", "snapshots"}
    child = await guest(host, source_snapshot=taken[-1].snapshot_id)
    assert (await child.shell("echo here")).stdout == b"here\n"


async def test_placeholders_stay_what_the_processes_know(host: Service) -> None:
    box = await guest(host, network=NAMING)
    command = await box.start("sh", "-c", "while sleep 0.05; do echo $KEY; done")
    snapshot = await saved(box)
    child = await guest(host, source_snapshot=snapshot.snapshot_id, network=NAMING)
    texts = [(await one.shell("echo $KEY")).stdout for one in (box, child)]
    assert texts[0] == texts[1] != b"\n"
    reader = child.commands.get(command.record.command_id).output.reader()
    piece = await asyncio.wait_for(reader.next(), 10)
    reader.close()
    assert piece is not None
    assert piece[1].startswith(texts[0])
    other = await guest(host, source_snapshot=snapshot.snapshot_id, with_memory=False, network=NAMING)
    assert (await other.shell("echo $KEY")).stdout not in (*texts, b"\n")


@pytest.mark.parametrize("slow", [False, True])
async def test_a_reader_beyond_the_cap_misses_nothing_and_gets_nothing_twice(no_leaks: Path, *, slow: bool) -> None:
    async with real_host(no_leaks, sandbox__log_bytes=65536) as service:
        box = await guest(service)
        program = (
            "import sys, time\nfor n in range(400000):\n  sys.stdout.write(f'{n:07}\\n')\n  if n % 5000 == 0: time.sleep(0.01)"
        )
        command = await box.start("python3", "-c", program)
        reader, text = command.output.reader(), b""
        try:
            for number in range(40 if slow else 4):
                # A slow one has output wait in the host, cut off wherever that is.
                if not slow or number % 10 == 9:
                    await saved(box)
                for _ in range(8):
                    if (piece := await reader.next()) is not None:
                        text += piece[1]
                    await asyncio.sleep(0.005)
            while (piece := await reader.next()) is not None:
                text += piece[1]
        finally:
            reader.close()
        assert text == b"".join(b"%07d\n" % n for n in range(400000))


async def test_a_host_that_stops_meanwhile_keeps_what_it_saved(no_leaks: Path) -> None:
    async with real_host(no_leaks) as service:
        box = await guest(service, persistent=True)
        counter = await box.start("python3", "-c", COUNTER)
        await lines(counter, 5)
        saving = asyncio.ensure_future(saved(box))
        await asyncio.sleep(0.05)
    snapshot = await saving
    async with real_host(no_leaks) as service:
        child = await guest(service, source_snapshot=snapshot.snapshot_id)
        assert await lines(child.commands.get(counter.record.command_id), 50)


async def test_the_same_commands_can_be_given_input_and_ended_in_the_child(host: Service) -> None:
    box = await guest(host)
    request = CommandStart(session_id=box.session_id, command_id=ids.command_id(), argv=[b"cat"], stdin=True)
    command = await box.commands.start(request)
    snapshot = await saved(box)
    child = await guest(host, source_snapshot=snapshot.snapshot_id)
    for one in (child, box):
        running = one.commands.get(command.record.command_id)
        machine = one.session.machine
        assert machine is not None
        stream = await machine.open("command.stdin", {"id": request.command_id, "offset": 0, "timeout_ms": 5000, "close": True})
        await stream.send_data(b"for " + one.session_id.encode(), 0)
        stream.send_end()
        await stream.reply(dict[str, object])
        assert (await finished(running)).stdout == b"for " + one.session_id.encode()


async def test_a_command_that_has_only_just_started_is_let_go_too(host: Service) -> None:
    box = await guest(host)
    machine = box.session.machine
    assert machine is not None
    command = await box.start("sh", "-c", "echo here; sleep 0.2; exit 3")
    # Before anything else has its turn.
    await box.commands.let_go()
    assert machine.connection.is_idle
    await box.commands.take_up()
    assert await finished(command) == Ran(3, b"here\n", b"")
