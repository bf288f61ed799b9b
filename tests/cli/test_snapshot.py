"""`hutch snapshot`, against the real API over a fake host; and what goes on in a real sandbox."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hutch.errors import ConflictError
from tests.api.conftest import Api
from tests.cli.conftest import AsyncHutch, Hutch


async def test_one_is_taken_shown_used_and_deleted(api: Api, ask: AsyncHutch) -> None:
    await api.create(name="one")
    taken = await ask("snapshot", "take", "one", "--days", "2")
    snapshot_id = taken.out.strip()
    assert snapshot_id in api.host.snapshots
    listed = (await ask("snapshot", "ls")).out.splitlines()
    assert listed[0].split() == ["ID", "SANDBOX", "STATUS", "SIZE", "MEMORY", "MADE", "CREATED", "EXPIRES", "STORED"]
    assert listed[1].split()[:6] == [snapshot_id, "one", "created", "1234", "-", "manual"]
    created = json.loads((await ask("create", "--name", "two", "--snapshot", snapshot_id, "--json")).out)
    assert created["sandbox"]["currentSnapshotId"] == snapshot_id
    session = (await ask("stop", "two", "--json")).code
    assert session == 0
    [newest, _] = json.loads((await ask("snapshot", "ls", "--json")).out)["snapshots"]
    tree = json.loads((await ask("snapshot", "tree", newest["id"], "--json")).out)
    assert [node["snapshot"]["id"] for node in tree["snapshots"]] == [snapshot_id]
    down = (await ask("snapshot", "tree", snapshot_id, "--descendants")).out.splitlines()
    assert down[1].startswith(newest["id"])
    assert (await ask("snapshot", "rm", snapshot_id, newest["id"])).code == 0
    assert (await ask("snapshot", "ls")).out.splitlines()[1:] == []
    assert len(json.loads((await ask("snapshot", "ls", "--deleted", "--json")).out)["snapshots"]) == 2
    assert (await ask("snapshot", "ls", "two", "--deleted")).out.count("snap_") == 1


async def test_one_of_a_sandbox_that_runs_on(api: Api, ask: AsyncHutch) -> None:
    await api.create(name="one")
    taken = json.loads((await ask("snapshot", "take", "one", "--keep-running", "--days", "0", "--json")).out)
    assert taken["expiresAt"] is None
    assert (await api.http.get("/v2/sandboxes/one")).json()["session"]["status"] == "running"


@pytest.mark.parametrize(
    "arguments", [("rm", "snap_none"), ("rm", "../x"), ("tree", "snap_%2e"), ("take", "none"), ("tree", "x" * 300)]
)
async def test_what_there_is_not_is_1(ask: AsyncHutch, arguments: tuple[str, ...]) -> None:
    done = await ask("snapshot", *arguments, "--json")
    assert (done.code, done.out) == (1, "")
    assert json.loads(done.err)["error"]["code"] == "not_found"


@pytest.mark.root
@pytest.mark.sandbox
def test_exec_and_cp_go_on_with_a_stopped_sandboxs_files(hutch: Hutch) -> None:
    name = hutch("create").out.strip()
    try:
        assert hutch("exec", name, "--", "sh", "-c", "echo here > kept").code == 0
        assert hutch("stop", name).code == 0
        assert hutch("exec", name, "--", "cat", "kept").out == "here\n"
        assert hutch("stop", name).code == 0
        assert hutch("cp", f"{name}:kept", "-").code == 0
    finally:
        hutch("rm", name)


async def test_forks_of_a_running_sandbox_and_of_its_snapshot(api: Api, ask: AsyncHutch) -> None:
    await api.create(name="one")
    assert (await ask("fork", "one", "--memory", "--count", "2", "--name", "child")).out.split() == ["child-1", "child-2"]
    taken = json.loads((await ask("snapshot", "take", "one", "--memory", "--json")).out)
    assert taken["memoryBytes"] == 5678
    [forked] = json.loads((await ask("fork", "one", "--json")).out)["forks"]
    assert forked["sandbox"]["currentSnapshotId"] == taken["id"]
    assert (await ask("fork", "one", "--memory")).code == 1
    assert (await ask("fork", "one", "--count", "0")).code == 2


async def test_one_is_verified_exported_and_imported(api: Api, ask: AsyncHutch, tmp_path: Path) -> None:
    await api.create(name="one")
    snapshot_id = (await ask("snapshot", "take", "one")).out.strip()
    assert (await ask("snapshot", "verify", snapshot_id)).out.startswith(f"{snapshot_id} is whole: 3 entries, 5 bytes, the same")
    assert json.loads((await ask("snapshot", "verify", snapshot_id, "--json")).out)["compared"] is True
    assert (await ask("snapshot", "export", snapshot_id, "-")).out == "a tar"
    assert (await ask("snapshot", "export", snapshot_id, "-", "--format", "oci")).out == "a layout"
    assert (await ask("snapshot", "export", snapshot_id, "-", "--format", "zip")).code == 2
    target = tmp_path / "one.tar"
    assert (await ask("snapshot", "export", snapshot_id, str(target))).code == 0
    assert target.read_bytes() == b"a tar"
    made = (await ask("snapshot", "import", str(target))).out.strip()
    assert api.host.tars[made] == b"a tar"
    assert made in (await ask("snapshot", "ls")).out
    api.host.refuse_verify = ConflictError("snapshot_damaged", "A chunk is missing.")
    damaged = await ask("snapshot", "verify", snapshot_id)
    assert (damaged.code, damaged.err) == (1, "hutch: A chunk is missing. (snapshot_damaged)\n")
    assert (await ask("snapshot", "import", str(tmp_path / "none"))).code == 1
    assert (await ask("snapshot", "export", "snap_none", str(tmp_path / "none"))).code == 1
    assert not (tmp_path / "none").exists()
