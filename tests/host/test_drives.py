"""Drives in real sandboxes: one who writes, readers of one moment, and nothing lost or left."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from hutch import ids
from hutch.errors import BadRequestError, ConflictError, HutchError, NotFoundError
from hutch.host.drive_storage import Ext4Drives
from hutch.host.kernel import Process
from hutch.host.protocol import DriveMode, DriveMount, DriveRecord, DriveRef, DriveSpec, SessionRecord, SessionStatus, StopRequest
from hutch.host.service import Service
from tests.host.dying import die_at
from tests.host.guest import ON_MACHINES, Guest, guest, real_host, spec
from tests.host.process import HostProcess
from tests.host.test_storage import MIB

pytestmark = pytest.mark.root
WRITTEN = "sync" if ON_MACHINES else "true"
"""What has to be done for what was written to outlive a sandbox that is killed."""


async def drive(host: Service, size_bytes: int = 256 * MIB, source: str | None = None) -> str:
    """A new drive."""
    spec = DriveSpec(drive_id=ids.drive_id(), size_bytes=size_bytes, source_id=source)
    return (await host.supervisor.drives.create(spec)).drive_id


def at(path: str, drive_id: str, mode: DriveMode = DriveMode.READ_WRITE) -> DriveMount:
    return DriveMount(path=path, drive_id=drive_id, mode=mode)


async def writer(host: Service, drive_id: str, **changes: object) -> Guest:
    return await guest(host, mounts=[at("/data", drive_id)], **changes)


async def reader(host: Service, drive_id: str) -> Guest:
    return await guest(host, mounts=[at("/seen", drive_id, DriveMode.SNAPSHOT)])


async def test_what_one_wrote_others_read_as_of_their_start(host: Service) -> None:
    kept = await drive(host)
    first = await writer(host, kept)
    # It belongs to the user that commands run as.
    assert (await first.shell("echo one > /data/f && mkdir /data/d && ln -s ../f /data/d/l")).exit_code == 0
    early = await reader(host, kept)
    assert (await early.shell("cat /seen/d/l")).stdout == b"one\n"
    await first.shell("echo two > /data/f")
    late = await reader(host, kept)
    assert (await late.shell("cat /seen/f")).stdout == b"two\n"
    assert (await early.shell("cat /seen/f")).stdout == b"one\n"
    refused = await early.shell("touch /seen/x; mount -o remount,rw /seen; touch /seen/x; rm /seen/f", sudo=True)
    assert refused.exit_code != 0
    assert b"Read-only" in refused.stderr
    assert (await early.shell("ls /seen")).stdout == b"d\nf\n"
    await first.stop()
    second = await writer(host, kept)
    assert (await second.shell("cat /data/f")).stdout == b"two\n"


async def test_one_writer_at_a_time(host: Service) -> None:
    kept = await drive(host)
    first = await writer(host, kept)
    with pytest.raises(ConflictError) as refused:
        await writer(host, kept)
    assert refused.value.code == "drive_attached"
    assert first.session_id in refused.value.message
    await first.stop()
    results = await asyncio.gather(*(writer(host, kept) for _ in range(4)), return_exceptions=True)
    won = [result for result in results if isinstance(result, Guest)]
    assert len(won) == 1
    assert {result.code for result in results if isinstance(result, HutchError)} == {"drive_attached"}


async def test_a_session_that_could_not_begin_gives_its_drives_back(host: Service) -> None:
    kept = await drive(host)
    with pytest.raises(HutchError):
        await writer(host, kept, source_snapshot="snap_none")
    with pytest.raises(NotFoundError):
        await guest(host, mounts=[at("/data", kept), at("/other", "drive_none")])
    assert (await (await writer(host, kept)).shell("true")).exit_code == 0


async def test_a_drive_that_nobody_wrote_to_can_not_be_read(host: Service) -> None:
    kept = await drive(host)
    for attempt in (reader(host, kept), drive(host, source=kept)):
        with pytest.raises(ConflictError) as refused:
            await attempt
        assert refused.value.code == "drive_not_initialized"


async def test_a_drive_is_bounded_by_itself(host: Service) -> None:
    kept = await drive(host, 24 * MIB)
    box = await writer(host, kept, disk_bytes=64 * MIB)
    full = await box.shell("dd if=/dev/urandom of=/data/large bs=1M count=40 conv=fsync")
    assert full.exit_code != 0
    assert b"quota exceeded" in full.stderr or b"No space left" in full.stderr
    assert (await box.shell("dd if=/dev/urandom of=/tmp/other bs=1M count=30 conv=fsync")).exit_code == 0
    await box.stop()
    used = (await host.supervisor.drives.usage(kept)).used_bytes
    assert 12 * MIB <= used <= 24 * MIB


async def test_a_copy_goes_its_own_way(host: Service) -> None:
    kept = await drive(host)
    first = await writer(host, kept)
    await first.shell("echo one > /data/f")
    copy = await drive(host, source=kept)
    await first.shell("echo two > /data/f")
    second = await writer(host, copy)
    assert (await second.shell("cat /data/f; echo three > /data/f")).stdout == b"one\n"
    assert (await first.shell("cat /data/f")).stdout == b"two\n"
    await first.stop()
    # What was made of it does not need it.
    await host.supervisor.drives.remove(kept)
    assert (await second.shell("cat /data/f")).stdout == b"three\n"


async def test_a_mounted_drive_is_not_removed(host: Service) -> None:
    kept = await drive(host)
    box = await writer(host, kept)
    looking = await reader(host, kept)
    for session in (box, looking):
        with pytest.raises(ConflictError, match="mounted"):
            await host.supervisor.drives.remove(kept)
        await session.stop()
    for _ in range(2):
        await host.supervisor.drives.remove(kept)
    with pytest.raises(NotFoundError):
        await writer(host, kept)
    assert host.supervisor.drives._store.names() == set()
    await asyncio.gather(*host.supervisor.ends.removals)
    assert host.supervisor.drives._store.viewers() == set()


async def test_rights_of_others_do_not_come_with_a_drive(host: Service) -> None:
    kept = await drive(host)
    box = await writer(host, kept)
    made = "cp /usr/bin/id /data/id; chown root /data/id; chmod 4755 /data/id; mknod /data/null c 1 3; ls /data"
    assert b"id" in (await box.shell(made, sudo=True)).stdout
    assert (await box.shell("/data/id -un")).stdout != b"root\n"
    # The same elsewhere has them.
    assert (await box.shell("cp -a /data/id /usr/local/bin/own-id", sudo=True)).exit_code == 0
    assert (await box.shell("/usr/local/bin/own-id -un")).stdout == b"root\n"


@pytest.mark.parametrize("planted", ["link-out", "link-in", "link-above", "file"])
async def test_nothing_is_mounted_through_what_a_former_session_left(host: Service, planted: str, tmp_path: Path) -> None:
    kept = await drive(host)
    box = await guest(host, persistent=True)
    script = {
        "link-out": f"ln -s {tmp_path} /mnt/data",
        "link-in": "ln -s /run/hutch /mnt/data",
        "link-above": "rmdir /mnt; ln -s /etc /mnt",
        "file": "echo x > /mnt/data",
    }[planted]
    assert (await box.shell(script, sudo=True)).exit_code == 0
    snapshot = (await box.stop()).snapshot
    assert snapshot is not None
    before = sorted(tmp_path.iterdir())
    with pytest.raises(BadRequestError) as refused:
        await guest(host, mounts=[at("/mnt/data", kept)], source_snapshot=snapshot.snapshot_id)
    assert refused.value.code == "invalid_mount_path"
    assert sorted(tmp_path.iterdir()) == before
    # The drive is free, and the sandbox can go on without it.
    await writer(host, kept)
    await guest(host, source_snapshot=snapshot.snapshot_id)


async def test_a_mount_hides_what_is_there_and_leaves_it(host: Service) -> None:
    kept = await drive(host)
    box = await guest(host, persistent=True, mounts=[at("/srv/deep/data", kept), at("/opt", await drive(host))])
    assert (
        await box.shell("echo in > /srv/deep/data/f; stat -c %a /srv /srv/deep; findmnt -no OPTIONS /srv/deep/data")
    ).exit_code == 0
    snapshot = (await box.stop()).snapshot
    assert snapshot is not None
    # Drives are in no snapshot.
    again = await guest(host, source_snapshot=snapshot.snapshot_id)
    assert (await again.shell("ls -A /srv/deep/data")).stdout == b""


# -- deaths ------------------------------------------------------------------------------------------


async def test_what_was_written_outlives_sandbox_and_host(no_leaks: Path) -> None:
    async with real_host(no_leaks, end_all=False) as service:
        kept = await drive(service)
        box = await writer(service, kept)
        await box.shell(f"head -c 3000000 /dev/urandom > /data/f; sha256sum /data/f > /data/sum; {WRITTEN}")
        entry = box.session.entry
        assert entry is not None
    # Nothing of them runs any more, and nobody stopped it.
    Process(entry.pid, entry.start_ticks).kill()
    async with real_host(no_leaks) as service:
        assert service.supervisor.get(box.session_id).record.status is SessionStatus.FAILED
        seen = await guest(service, mounts=[at("/data", kept, DriveMode.SNAPSHOT)])
        assert (await seen.shell("sha256sum -c /data/sum")).exit_code == 0
        again = await writer(service, kept)
        assert (await again.shell("sha256sum -c /data/sum")).exit_code == 0


async def test_a_claim_survives_its_host_and_not_its_session(no_leaks: Path) -> None:
    async with real_host(no_leaks, end_all=False) as service:
        kept = await drive(service)
        box = await writer(service, kept)
        looking = await reader(service, kept)
    async with real_host(no_leaks, end_all=False) as service:
        with pytest.raises(ConflictError, match=box.session_id):
            await writer(service, kept)
        assert (await Guest(service.supervisor, box.session_id).shell("echo on > /data/f; cat /data/f")).stdout == b"on\n"
        assert (await Guest(service.supervisor, looking.session_id).shell("ls -A /seen")).stdout == b""
        await Guest(service.supervisor, box.session_id).stop()
        with pytest.raises(ConflictError, match=looking.session_id):
            await service.supervisor.drives.remove(kept)
    async with real_host(no_leaks) as service:
        await writer(service, kept)
        await Guest(service.supervisor, looking.session_id).stop()
        await asyncio.gather(*service.supervisor.ends.removals)
        assert service.supervisor.drives._store.viewers() == set()


BOOTED = "hutch.isolation.qemu:Qemu.boot" if ON_MACHINES else "hutch.isolation.gvisor:Gvisor.boot"
STORE, JOURNAL, MACHINES = "hutch.host.drive_storage:BtrfsDrives", "hutch.host.journal:Journal", "hutch.host.machine:Machines"


@pytest.fixture
async def kept(no_leaks: Path) -> str:
    """A drive of a host that is not there now, with a file."""
    async with real_host(no_leaks) as service:
        made = await drive(service)
        assert (await (await writer(service, made)).shell("echo here > /data/f")).exit_code == 0
    return made


async def check_and_remove(service: Service, drive_id: str) -> None:
    """The drive is free and has its file; then it goes, and nothing is left."""
    supervisor = service.supervisor
    box = await writer(service, drive_id)
    assert (await box.shell("cat /data/f")).stdout == b"here\n"
    await box.stop()
    await supervisor.drives.remove(drive_id)
    await asyncio.gather(*supervisor.ends.removals)
    assert supervisor.drives._store.names() == set()
    assert supervisor.drives._store.viewers() == set()
    assert supervisor.drives._journal.drives() == {}


@pytest.mark.parametrize("mode", list(DriveMode))
@pytest.mark.parametrize(
    ("when", "step"),
    [
        ("before", f"{MACHINES}._mounts"),
        ("after", f"{MACHINES}._mounts"),
        ("after", BOOTED),
        ("before", f"{JOURNAL}.put_session"),
        ("after", f"{JOURNAL}.put_session"),
    ],
)
async def test_a_host_that_dies_while_it_mounts(no_leaks: Path, kept: str, when: str, step: str, mode: DriveMode) -> None:
    session_id = ids.session_id()
    await asyncio.to_thread(die_at, no_leaks, when, step, "mount", session_id, kept, mode)
    async with real_host(no_leaks) as service:
        if (when, step) == ("after", f"{JOURNAL}.put_session"):
            # It runs, and nobody was told: whoever asked asks again.
            box = Guest(service.supervisor, session_id)
            assert (await box.shell("cat /data/f")).stdout == b"here\n"
            if mode is DriveMode.READ_WRITE:
                with pytest.raises(ConflictError):
                    await writer(service, kept)
            await box.stop()
        else:
            with pytest.raises(NotFoundError):
                service.supervisor.get(session_id)
        await check_and_remove(service, kept)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_host_that_dies_while_it_gives_a_drive_back(no_leaks: Path, kept: str, when: str) -> None:
    async with real_host(no_leaks, end_all=False) as service:
        box = await writer(service, kept)
        await box.shell("echo more > /data/g")
    await asyncio.to_thread(die_at, no_leaks, when, "hutch.host.drives:Drives.release", "stop", box.session_id)
    async with real_host(no_leaks) as service:
        assert service.supervisor.get(box.session_id).record.status is SessionStatus.STOPPED
        assert (await (await reader(service, kept)).shell("cat /seen/g")).stdout == b"more\n"
        for session in service.supervisor.records():
            await Guest(service.supervisor, session.session_id).stop()
        await check_and_remove(service, kept)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", [f"{STORE}._finish", f"{JOURNAL}.put_drive"])
@pytest.mark.parametrize("action", ["create", "copy"])
async def test_a_host_that_dies_while_it_makes_one(no_leaks: Path, kept: str, action: str, step: str, when: str) -> None:
    new = ids.drive_id()
    await asyncio.to_thread(die_at, no_leaks, when, step, action, new, *([kept] if action == "copy" else []))
    async with real_host(no_leaks) as service:
        drives = service.supervisor.drives
        # Whoever asked was not told, and asks again.
        source = kept if action == "copy" else None
        await drives.create(DriveSpec(drive_id=new, size_bytes=256 * MIB, source_id=source))
        box = await writer(service, new)
        assert (await box.shell("cat /data/f || echo none")).stdout == (b"here\n" if source is not None else b"none\n")
        await box.stop()
        await drives.remove(new)
        await check_and_remove(service, kept)


@pytest.mark.parametrize(
    ("when", "step", "is_there"),
    [
        ("before", f"{JOURNAL}.put_drive", True),
        ("after", f"{JOURNAL}.put_drive", False),
        ("before", f"{STORE}.remove", False),
        ("after", f"{STORE}.remove", False),
        ("after", f"{JOURNAL}.delete_drive", False),
    ],
)
async def test_a_host_that_dies_while_it_removes_one(no_leaks: Path, kept: str, when: str, step: str, is_there: bool) -> None:
    await asyncio.to_thread(die_at, no_leaks, when, step, "remove", kept)
    async with real_host(no_leaks) as service:
        if is_there:
            await check_and_remove(service, kept)
        drives = service.supervisor.drives
        await drives.remove(kept)
        assert drives._store.names() == set()
        assert drives._journal.drives() == {}


async def test_sigkill_of_the_host_while_a_guest_writes(no_leaks: Path) -> None:
    no_leaks.mkdir()
    host = HostProcess(no_leaks, pool__size="0")
    await host.start()
    client = host.client
    made = DriveSpec(drive_id=ids.drive_id(), size_bytes=256 * MIB)
    await client.call("drive.create", made, DriveRecord)
    first = spec(mounts=[at("/data", made.drive_id)])
    await client.call("session.create", first, SessionRecord)
    for _ in range(3):
        await host.kill()
        await host.start()
        with pytest.raises(ConflictError) as refused:
            await client.call("session.create", spec(mounts=[at("/data", made.drive_id)]), SessionRecord)
        assert refused.value.code == "drive_attached"
    await client.call("session.stop", StopRequest(first.session_id), SessionRecord)
    await host.kill()
    await host.start()
    second = spec(mounts=[at("/data", made.drive_id)])
    assert (await client.call("session.create", second, SessionRecord)).status is SessionStatus.RUNNING
    with pytest.raises(ConflictError):
        await client.call("drive.delete", DriveRef(made.drive_id))
    await client.call("session.stop", StopRequest(second.session_id), SessionRecord)
    await client.call("drive.delete", DriveRef(made.drive_id))
    await host.stop()


@pytest.fixture
def ext4(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a host without btrfs."""
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, **more: None if name in ("mkfs.btrfs", "modprobe") else which(name, **more))


async def test_the_same_on_ext4_but_for_copies_of_what_is_in_use(no_leaks: Path, ext4: None) -> None:
    async with real_host(no_leaks, end_all=False) as service:
        assert isinstance(service.supervisor.drives._store, Ext4Drives)
        kept = await drive(service, 64 * MIB)
        box = await writer(service, kept)
        assert (await box.shell("ls -A /data; echo one > /data/f")).stdout == b""
        with pytest.raises(ConflictError) as busy:
            await reader(service, kept)
        assert busy.value.code == "drive_attached"
        with pytest.raises(ConflictError):
            await drive(service, source=kept)
    async with real_host(no_leaks) as service:
        box = Guest(service.supervisor, box.session_id)
        with pytest.raises(ConflictError):
            await writer(service, kept)
        full = await box.shell("dd if=/dev/zero of=/data/big bs=1M count=80 conv=fsync")
        assert b"No space left" in full.stderr
        assert (await box.shell("rm /data/big; echo two > /data/f")).exit_code == 0
        await box.stop()
        seen = await reader(service, kept)
        assert (await seen.shell("cat /seen/f; touch /seen/x")).stdout == b"two\n"
        again = await writer(service, kept)
        assert (await again.shell("echo three > /data/f; cat /data/f")).stdout == b"three\n"
        assert (await seen.shell("cat /seen/f")).stdout == b"two\n"
        await again.stop()
        copy = await drive(service, 64 * MIB, source=kept)
        await seen.stop()
        await service.supervisor.drives.remove(kept)
        assert (await (await writer(service, copy)).shell("cat /data/f")).stdout == b"three\n"
