"""`hutch snapshot`, against the real API over a fake host; and what goes on in a real sandbox."""

from __future__ import annotations

import json

import pytest

from tests.api.conftest import Api
from tests.cli.conftest import AsyncHutch, Hutch


async def test_one_is_taken_shown_used_and_deleted(api: Api, ask: AsyncHutch) -> None:
    await api.create(name="one")
    taken = await ask("snapshot", "take", "one", "--days", "2")
    snapshot_id = taken.out.strip()
    assert snapshot_id in api.host.snapshots
    listed = (await ask("snapshot", "ls")).out.splitlines()
    assert listed[0].split() == ["ID", "SANDBOX", "STATUS", "SIZE", "MADE", "CREATED", "EXPIRES"]
    assert listed[1].split()[:5] == [snapshot_id, "one", "created", "1234", "manual"]
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
