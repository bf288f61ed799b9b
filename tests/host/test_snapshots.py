"""What sessions leave: snapshots of their files, which other sessions begin with."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from hutch.errors import ConflictError, GoneError
from hutch.host.journal import Journal
from hutch.host.kernel import Process
from hutch.host.machine import Machines
from hutch.host.protocol import SessionStatus, SnapshotMethod, SnapshotRecord, SnapshotRequest
from hutch.host.service import Service
from tests.host.guest import differs, guest, real_host

pytestmark = pytest.mark.root


async def test_a_persistent_session_goes_on_where_it_stopped(host: Service) -> None:
    first = await guest(host, persistent=True)
    await first.shell("echo one > kept; mkdir -p d; echo x > d/f; sudo rm /etc/motd; sudo touch /etc/new; ln kept linked")
    ended = await first.stop()
    assert ended.status is SessionStatus.STOPPED
    assert ended.snapshot is not None
    assert ended.snapshot.method is SnapshotMethod.AUTOMATIC
    second = await guest(host, persistent=True, source_snapshot=ended.snapshot.snapshot_id)
    seen = await second.shell("cat kept d/f linked; ls /etc/motd /etc/new; stat -c %h kept; rm -r d; echo two > kept")
    assert seen.stdout == b"one\nx\none\n/etc/new\n2\n"
    again = await second.stop()
    assert again.snapshot is not None
    assert again.snapshot.parent_id == ended.snapshot.snapshot_id
    # What both sessions wrote is in the last one, and the first one is as it was.
    third = await guest(host, source_snapshot=again.snapshot.snapshot_id)
    other = await guest(host, source_snapshot=ended.snapshot.snapshot_id)
    assert (await third.shell("cat kept; ls -d d")).stdout == b"two\n"
    assert (await other.shell("cat kept; ls -d d")).stdout == b"one\nd\n"


async def test_a_session_that_is_not_persistent_leaves_nothing_unless_asked(host: Service) -> None:
    box = await guest(host)
    assert (await box.stop()).snapshot is None
    other = await guest(host)
    await other.shell("echo here > kept")
    taken = await host.supervisor.snapshot(SnapshotRequest(session_id=other.session_id))
    assert taken.session.status is SessionStatus.STOPPED
    assert taken.snapshot.method is SnapshotMethod.MANUAL
    with pytest.raises(GoneError):
        await host.supervisor.snapshot(SnapshotRequest(session_id=other.session_id))
    assert [record.snapshot_id for record in host.supervisor.snapshots.records()] == [taken.snapshot.snapshot_id]


async def test_a_snapshot_of_a_session_that_runs_on(host: Service) -> None:
    box = await guest(host)
    await box.shell("echo before > kept")
    taken = await host.supervisor.snapshot(SnapshotRequest(session_id=box.session_id, keep_running=True))
    await box.shell("echo after > kept")
    assert taken.session.status is SessionStatus.RUNNING
    copy = await guest(host, source_snapshot=taken.snapshot.snapshot_id)
    assert (await copy.shell("cat kept")).stdout == b"before\n"
    assert (await box.shell("cat kept")).stdout == b"after\n"


async def test_a_store_that_can_not_copy_says_so(host: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    box = await guest(host)
    monkeypatch.setattr(host.supervisor.snapshots._layers, "copies_in_use", False)
    with pytest.raises(ConflictError, match="keepRunning"):
        await host.supervisor.snapshot(SnapshotRequest(session_id=box.session_id, keep_running=True))
    assert (await box.shell("true")).exit_code == 0


async def test_what_was_removed_is_gone_and_what_came_from_it_stays(host: Service) -> None:
    box = await guest(host, persistent=True)
    await box.shell("echo here > kept")
    snapshot = (await box.stop()).snapshot
    assert snapshot is not None
    child = await guest(host, source_snapshot=snapshot.snapshot_id)
    for _ in range(2):
        await host.supervisor.snapshots.remove(snapshot.snapshot_id)
    with pytest.raises(GoneError, match="does not exist"):
        await guest(host, source_snapshot=snapshot.snapshot_id)
    assert (await child.shell("cat kept")).stdout == b"here\n"
    assert host.supervisor.snapshots.records() == []


@differs("what was not synced is gone")
async def test_a_sandbox_that_died_with_its_host_leaves_what_it_had_written(no_leaks: Path) -> None:
    async with real_host(no_leaks, end_all=False) as service:
        box = await guest(service, persistent=True)
        await box.shell("echo here > kept")
        entry = box.session.entry
        assert entry is not None
    # As when the machine went down: nothing of it runs any more, and nobody stopped it.

    Process(entry.pid, entry.start_ticks).kill()
    async with real_host(no_leaks) as service:
        record = service.supervisor.get(box.session_id).record
        assert record.status is SessionStatus.FAILED
        assert record.snapshot is not None
        again = await guest(service, source_snapshot=record.snapshot.snapshot_id)
        assert (await again.shell("cat kept")).stdout == b"here\n"
        await again.stop()


async def test_snapshots_outlive_the_host_and_become_durable(no_leaks: Path) -> None:
    async with real_host(no_leaks) as service:
        box = await guest(service, persistent=True)
        await box.shell("head -c 3000000 /dev/urandom > kept; sha256sum kept > sum")
    # Stopping the host stopped it, with a snapshot.
    journal = Journal(no_leaks / "host" / "journal.db")
    [(record, is_removed)] = journal.snapshots().values()
    assert not is_removed
    async with real_host(no_leaks) as service:
        again = await guest(service, source_snapshot=record.snapshot_id)
        assert (await again.shell("sha256sum -c sum")).exit_code == 0
        [known] = service.supervisor.snapshots.records()
        assert known.snapshot_id == record.snapshot_id


@pytest.mark.parametrize("step", ["planned", "sealed", "recorded"])
async def test_a_host_that_dies_while_it_keeps_files_goes_on_with_that(
    no_leaks: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    reached, never = asyncio.Event(), asyncio.Event()
    async with real_host(no_leaks, end_all=False) as service:
        box = await guest(service, persistent=True)
        await box.shell("echo here > kept")
        supervisor = service.supervisor
        seal = Machines.seal

        async def stand_still(machines: Machines, *arguments: str) -> None:
            if step == "sealed":
                await seal(machines, *arguments)
            reached.set()
            await never.wait()

        monkeypatch.setattr(Machines, "remove" if step == "recorded" else "seal", stand_still)
        stopping = asyncio.create_task(box.stop())
        await reached.wait()
        for task in (stopping, box.session.ending, *supervisor.ends.removals):
            if task is not None:
                task.cancel()
        await asyncio.sleep(0)
        monkeypatch.undo()
    async with real_host(no_leaks) as service:
        record = service.supervisor.get(box.session_id).record
        assert record.status is SessionStatus.STOPPED
        assert record.snapshot is not None
        assert [known.snapshot_id for known in service.supervisor.snapshots.records()] == [record.snapshot.snapshot_id]
        again = await guest(service, source_snapshot=record.snapshot.snapshot_id)
        assert (await again.shell("cat kept")).stdout == b"here\n"


async def test_a_removal_that_was_interrupted_is_carried_through(no_leaks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with real_host(no_leaks) as service:
        box = await guest(service, persistent=True)
        snapshot = (await box.stop()).snapshot
        assert snapshot is not None

        def fail(*_: object) -> None:
            raise OSError("as when the process ends here")

        monkeypatch.setattr(service.supervisor.snapshots._layers, "remove_snapshot", fail)
        with pytest.raises(OSError, match="as when"):
            await service.supervisor.snapshots.remove(snapshot.snapshot_id)
        monkeypatch.undo()
    async with real_host(no_leaks) as service:
        assert service.supervisor.snapshots.records() == []
        assert service.supervisor.snapshots._layers.snapshots() == set()


async def test_a_snapshot_that_goes_while_it_becomes_durable_stays_gone(host: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(host.supervisor.ends), "settle", lambda *_: None)
    box = await guest(host, persistent=True)
    snapshot = (await box.stop()).snapshot
    assert snapshot is not None
    snapshots, journal = host.supervisor.snapshots, host.supervisor.snapshots._journal
    put = journal.put_snapshot

    async def put_and_remove(record: SnapshotRecord, *, deleted: bool = False) -> None:
        await put(record, deleted=deleted)
        if not deleted:
            await snapshots.remove(record.snapshot_id)

    monkeypatch.setattr(journal, "put_snapshot", put_and_remove)
    await snapshots.settle(snapshot.snapshot_id, host.supervisor.ends.settled)
    assert journal.snapshots() == {}
