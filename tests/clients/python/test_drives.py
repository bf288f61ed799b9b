"""Drives with the Python SDKs."""

from __future__ import annotations

import os

import pytest
from vercel.sandbox import DriveMount, DriveQueryByName, SandboxApiError, SandboxClient
from vercel.sandbox.sync import SyncSandboxClient

pytestmark = [pytest.mark.clients, pytest.mark.sandbox, pytest.mark.root]

SIZE = 256 * 1024**2


def test_a_drive_is_made_mounted_forked_and_deleted(sync_sdk: SyncSandboxClient) -> None:
    name, copy = f"py-{os.getpid()}", f"py-{os.getpid()}-copy"
    drive, created = sync_sdk.get_or_create_drive(name=name, max_size_bytes=SIZE)
    assert created
    again, created = sync_sdk.get_or_create_drive(name=name)
    assert (again.id, again.max_size_bytes, created) == (drive.id, SIZE, False)
    assert sync_sdk.get_drive(name_or_id=drive.id).name == name
    with pytest.raises(SandboxApiError) as early:
        drive.fork(name=copy)
    assert (early.value.status_code, early.value.code) == (409, "drive_not_initialized")
    with sync_sdk.create_sandbox(persistent=False, mounts={"/data": drive}) as sandbox:
        sandbox.fs.write_text("/data/f", "one")
        assert sync_sdk.get_drive(name_or_id=name).current_session_id == sandbox.current_session_id
        with pytest.raises(SandboxApiError) as attached:
            sync_sdk.create_sandbox(persistent=False, mounts={"/data": name})
        assert attached.value.code == "drive_attached"
    fork = drive.fork(name=copy)
    assert (fork.parent_drive_id, fork.root_drive_id) == (drive.id, drive.id)
    mounts: dict[str, DriveMount | str] = {"/own": fork.name, "/seen": DriveMount(name, mode="snapshot")}
    with sync_sdk.create_sandbox(persistent=False, mounts=mounts) as sandbox:
        sandbox.fs.write_text("/own/f", "two")
        assert (sandbox.fs.read_text("/own/f"), sandbox.fs.read_text("/seen/f")) == ("two", "one")
        assert sandbox.mounts is not None
        assert {path: mount.mode for path, mount in sandbox.mounts.items()} == {"/own": "read-write", "/seen": "snapshot"}
    names = [one.name for one in sync_sdk.query_drives(query=DriveQueryByName(name_prefix=name, sort_order="asc"), page_size=1)]
    assert names == [name, copy]
    for one in (name, copy):
        sync_sdk.delete_drive(name=one)
    with pytest.raises(SandboxApiError) as gone:
        sync_sdk.get_drive(name_or_id=name)
    assert gone.value.status_code == 404


async def test_the_same_without_waiting(sdk: SandboxClient) -> None:
    name = f"py-async-{os.getpid()}"
    drive, _ = await sdk.get_or_create_drive(name=name, max_size_bytes=SIZE)
    async with sdk.create_sandbox(persistent=False, mounts={"/data": drive}) as sandbox:
        await sandbox.fs.write_text("/data/f", "one")
    async with sdk.create_sandbox(persistent=False, mounts={"/data": drive.snapshot()}) as sandbox:
        assert await sandbox.fs.read_text("/data/f") == "one"
    await drive.delete()
