"""A host whose disk is full: it takes no new work, what runs stays alive, and it goes on by itself when there is room."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hutch.errors import HutchError, UnavailableError
from hutch.host import kernel
from hutch.host.journal import Journal
from hutch.host.machine import Machines
from hutch.host.protocol import SessionEvent, SessionStatus, SnapshotRequest
from hutch.host.service import Service
from tests.host.guest import Guest, differs, guest, real_host, spec

pytestmark = pytest.mark.root

MIB = 1024 * 1024
DISK_BYTES = 2048 * MIB


@pytest.fixture
def small_disk(no_leaks: Path) -> Iterator[Path]:
    """A data directory on a file system of its own."""
    image, point = no_leaks.parent / "disk.ext4", no_leaks
    with image.open("xb") as file:
        file.truncate(DISK_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", str(image)], check=True)
    point.mkdir()
    subprocess.run(["mount", "-o", "loop", str(image), str(point)], check=True)
    yield point
    kernel.unmount(point)
    point.rmdir()


def fill(disk: Path, leave_bytes: int) -> Path:
    filler = disk / "filler"
    free = kernel_free(disk)
    subprocess.run(["fallocate", "-l", str(max(MIB, free - leave_bytes)), str(filler)], check=True)
    return filler


def kernel_free(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize


async def eventually(check: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await check():
            await asyncio.sleep(0.1)


@differs("files become read-only where the host itself is full")
async def test_a_full_disk_refuses_new_work_keeps_what_runs_and_recovers(small_disk: Path) -> None:
    async with real_host(small_disk) as service:
        box = await guest(service, persistent=True)
        await box.shell("head -c 30000000 /dev/urandom > kept; sha256sum kept > sum; sync")
        if not getattr(service.supervisor.snapshots._layers, "_simple_quotas", False):
            pytest.skip("nothing bounds all layers together without btrfs's simple quotas, Linux 6.7 (docs/state.md)")
        filler = fill(small_disk, 300 * MIB)
        with pytest.raises(UnavailableError, match="bytes of disk left"):
            await guest(service)
        with pytest.raises(UnavailableError, match="bytes of disk left"):
            await box.supervisor.snapshot(SnapshotRequest(session_id=box.session_id, keep_running=True, memory=True))

        async def is_bounded() -> bool:
            return b"quota exceeded" in (await box.shell("dd if=/dev/zero of=more bs=1M count=400 2>&1")).stdout

        await eventually(is_bounded)
        # More than there was room for never was asked of the disk, so nothing of the store is lost.
        assert kernel_free(small_disk) > 100 * MIB
        assert (await box.shell("rm more; sync; sha256sum -c sum; echo alive")).stdout.endswith(b"kept: OK\nalive\n")
        filler.unlink()

        async def has_room() -> bool:
            return (await box.shell("dd if=/dev/zero of=more bs=1M count=400 && sync")).exit_code == 0

        await eventually(has_room)
        other = await guest(service)
        assert (await other.shell("echo here")).stdout == b"here\n"
        snapshot = (await box.stop()).snapshot
        assert snapshot is not None
        again = await guest(service, source_snapshot=snapshot.snapshot_id)
        assert (await again.shell("sha256sum -c sum")).exit_code == 0


async def test_a_store_that_can_not_be_bounded_once_is_bounded_later(no_leaks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hutch.host.supervisor.BOUND_EVERY_S", 0.05)
    async with real_host(no_leaks) as service:
        layers = service.supervisor.snapshots._layers
        tries = 0

        def bound() -> None:
            nonlocal tries
            tries += 1
            if tries < 3:
                raise OSError(28, "no space left on device")

        monkeypatch.setattr(layers, "bound", bound)

        async def is_tried() -> bool:
            return tries > 3

        await eventually(is_tried)


async def test_what_can_not_be_forgotten_once_is_forgotten_later(no_leaks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hutch.host.supervisor.TIDY_EVERY_S", 0.05)
    async with real_host(no_leaks) as service:
        tries = 0

        async def tidy(now: int) -> None:
            nonlocal tries
            tries += 1
            if tries < 3:
                raise sqlite3.OperationalError("database or disk is full")

        monkeypatch.setattr(service.supervisor, "tidy", tidy)

        async def is_tried() -> bool:
            return tries > 3

        await eventually(is_tried)


async def refuse(*_: object) -> None:
    raise OSError(5, "no layer can be sealed now")


async def test_files_that_can_not_be_kept_at_once_are_kept_later(host: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    box = await guest(host, persistent=True)
    await box.shell("echo here > kept")
    with monkeypatch.context() as broken:
        broken.setattr(Machines, "seal", refuse)
        stopping = asyncio.ensure_future(box.stop())
        while box.record.status is not SessionStatus.SNAPSHOTTING:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)
        assert not stopping.done()
    snapshot = (await stopping).snapshot
    assert snapshot is not None
    again = await guest(host, source_snapshot=snapshot.snapshot_id)
    assert (await again.shell("cat kept")).stdout == b"here\n"


@pytest.mark.parametrize("method", ["end", "seal"])
async def test_an_end_that_failed_can_be_asked_for_again(host: Service, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    box = await guest(host, persistent=True)
    await box.shell("echo here > kept")
    step = getattr(Machines, method)

    async def fail_after(*arguments: object) -> None:
        await step(*arguments)
        raise RuntimeError("nobody thought of it")

    with monkeypatch.context() as broken:
        broken.setattr(Machines, method, fail_after)
        with pytest.raises(RuntimeError):
            await box.stop()
    assert box.session.live
    snapshot = (await box.stop()).snapshot
    assert snapshot is not None
    again = await guest(host, source_snapshot=snapshot.snapshot_id)
    assert (await again.shell("cat kept")).stdout == b"here\n"


async def test_files_that_a_stopping_host_can_not_keep_are_kept_by_the_next(
    no_leaks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with real_host(no_leaks, end_all=False) as service:
        box = await guest(service, persistent=True)
        await box.shell("echo here > kept")
        with monkeypatch.context() as broken:
            broken.setattr(Machines, "seal", refuse)
            await service.supervisor.drain()
    # The next one can't either, for a while; it is there all the same.
    monkeypatch.setattr("hutch.host.ends.ADOPT_WAIT_S", 0.3)
    with monkeypatch.context() as broken:
        broken.setattr(Machines, "seal", refuse)
        starting = contextlib.AsyncExitStack()
        service = await starting.enter_async_context(real_host(no_leaks))
        late = Guest(service.supervisor, box.session_id)
        assert late.record.status is SessionStatus.SNAPSHOTTING
        with pytest.raises(HutchError, match="stopping"):
            await late.stop()
    async with starting:

        async def is_over() -> bool:
            return late.record.stopped_at is not None

        await eventually(is_over)
        snapshot = late.record.snapshot
        assert snapshot is not None
        again = await guest(service, source_snapshot=snapshot.snapshot_id)
        assert (await again.shell("cat kept")).stdout == b"here\n"


def failing_once(real: Callable[..., Awaitable[Any]], when: Callable[..., bool]) -> Callable[..., Awaitable[Any]]:
    """The same, but the first time that it is `when` it fails as on a full disk."""
    failed = False

    async def call(*arguments: Any, **named: Any) -> Any:
        nonlocal failed
        if not failed and when(*arguments, **named):
            failed = True
            raise sqlite3.OperationalError("database or disk is full")
        return await real(*arguments, **named)

    return call


async def test_an_end_that_could_not_be_written_is_written_and_told_later(host: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    box = await guest(host, persistent=True)
    journal = host.supervisor._sessions._journal
    told: list[SessionStatus] = []

    async def seen(event: SessionEvent) -> None:
        if event.session.session_id == box.session_id:
            told.append(event.session.status)

    following = asyncio.ensure_future(box.supervisor.events(0, seen))
    try:
        last = failing_once(journal.put_session, lambda _, record, __: record.stopped_at is not None)
        monkeypatch.setattr(journal, "put_session", last)
        monkeypatch.setattr(
            journal, "put_snapshot", failing_once(journal.put_snapshot, lambda record, **_: bool(record.durable_at))
        )
        snapshot = (await box.stop()).snapshot
        assert snapshot is not None

        async def is_told() -> bool:
            return SessionStatus.STOPPED in told

        async def is_durable() -> bool:
            return host.supervisor.snapshots.record(snapshot.snapshot_id).durable_at is not None

        monkeypatch.setattr("hutch.host.ends.END_AGAIN_S", 0.1)
        await eventually(is_told)
        await eventually(is_durable)
        written = {record.session_id: record for _, record, _ in journal.sessions()}
        assert written[box.session_id].status is SessionStatus.STOPPED
    finally:
        following.cancel()


@pytest.mark.parametrize("error", [OSError(111, "Connection refused"), TypeError("nobody thought of it")])
async def test_an_end_that_the_next_host_can_not_carry_through_at_once_holds_up_nobody_and_is_carried_through(
    no_leaks: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr("hutch.host.ends.END_AGAIN_S", 0.1)
    async with real_host(no_leaks, end_all=False) as service:
        box = await guest(service, persistent=True)
        await box.shell("echo here > kept; sync")
    adopt, remove, tries = Machines.adopt, Machines.remove_by_id, 0

    async def unreachable(*_: Any) -> Any:
        raise error

    def fails_twice(machines: Machines, identifier: str) -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise OSError(16, "Device or resource busy")
        remove(machines, identifier)

    monkeypatch.setattr(Machines, "adopt", unreachable)
    monkeypatch.setattr(Machines, "remove_by_id", fails_twice)
    monkeypatch.setattr(
        Journal, "put_session", failing_once(Journal.put_session, lambda _, __, record, ___: record.stopped_at is not None)
    )
    async with real_host(no_leaks) as service:
        monkeypatch.setattr(Machines, "adopt", adopt)
        late = Guest(service.supervisor, box.session_id)
        # The host takes work all the same.
        assert (await (await guest(service)).shell("echo hello")).stdout == b"hello\n"

        async def is_written() -> bool:
            written = {record.session_id: record for _, record, _ in service.supervisor._sessions._journal.sessions()}
            return written[box.session_id].status is SessionStatus.FAILED

        await eventually(is_written)
        assert tries == 3
        snapshot = late.record.snapshot
        assert snapshot is not None
        again = await guest(service, source_snapshot=snapshot.snapshot_id)
        assert (await again.shell("cat kept")).stdout == b"here\n"


async def test_what_could_not_be_removed_at_once_is_removed_later(host: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hutch.host.background.AGAIN_S", 0.1)
    machines, journal = host.supervisor._machines, host.supervisor._sessions._journal
    remove, is_busy = machines._remove_files, True

    def remove_files(identifier: str) -> None:
        if is_busy:
            raise OSError(16, "Device or resource busy")
        remove(identifier)

    monkeypatch.setattr(machines, "_remove_files", remove_files)
    monkeypatch.setattr(journal, "delete_egress", failing_once(journal.delete_egress, lambda _: True))
    box = await guest(host)
    assert box.session_id in journal.egress()
    await box.stop()
    with pytest.raises(UnavailableError, match="can't be removed now"):
        await host.supervisor.scrub()
    is_busy = False

    async def is_gone() -> bool:
        # The files are gone a moment before it is known that they are.
        with contextlib.suppress(UnavailableError):
            await host.supervisor.scrub()
            return not machines.left_behind() and not journal.egress()
        return False

    await eventually(is_gone)


async def test_a_clock_s_end_that_failed_is_tried_again(host: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hutch.host.ends.END_AGAIN_S", 0.1)
    end, tries = Machines.end, 0

    async def fails_twice(*arguments: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise OSError(24, "Too many open files")
        return await end(*arguments)

    monkeypatch.setattr(Machines, "end", fails_twice)
    box = await guest(host, timeout_ms=1000)

    async def is_over() -> bool:
        return not box.session.live

    await eventually(is_over)
    assert tries == 3
    assert box.record.status is SessionStatus.STOPPED


@pytest.mark.sandbox
async def test_a_snapshot_whose_removal_could_not_be_written_is_there_until_it_is(
    host: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = (await (await guest(host, persistent=True)).stop()).snapshot
    assert snapshot is not None
    snapshots, journal = host.supervisor.snapshots, host.supervisor.snapshots._journal
    removal = failing_once(journal.put_snapshot, lambda _, **named: named.get("deleted") is True)
    monkeypatch.setattr(journal, "put_snapshot", removal)
    with pytest.raises(sqlite3.OperationalError):
        await snapshots.remove(snapshot.snapshot_id)
    assert snapshots.record(snapshot.snapshot_id).snapshot_id == snapshot.snapshot_id
    await snapshots.remove(snapshot.snapshot_id)
    assert snapshot.snapshot_id not in snapshots._layers.snapshots()


async def test_a_create_that_fails_leaves_nothing_of_its_policy(host: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse_claim(*_: Any) -> None:
        raise UnavailableError("guest_busy", "It does not want to.")

    monkeypatch.setattr(Machines, "claim", refuse_claim)
    wanted = spec()
    with pytest.raises(UnavailableError):
        await host.supervisor.create(wanted)
    assert host.supervisor.egress.state(wanted.session_id) is None
    assert wanted.session_id not in host.supervisor._sessions._journal.egress()
