"""Drives in real sandboxes: one who writes, readers of one moment, and nothing lost or left."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from hutch import ids
from hutch.errors import BadRequestError, ConflictError, HutchError, NotFoundError
from hutch.host.protocol import DriveMode, DriveMount, DriveSpec
from hutch.host.service import Service
from tests.conftest import wait_until
from tests.host.guest import Guest, guest
from tests.host.test_storage import MIB

pytestmark = pytest.mark.root


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
    wait_until(lambda: not host.supervisor.drives._store.viewers(), 10, "the copies of ended sessions to go")


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
