"""Workers that are pinned to SDKs of before: deployed by the real `ntn`, run, and read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.clients.test_ntn import API_ERROR, project
from tests.conftest import RunningServer

pytestmark = [pytest.mark.root, pytest.mark.sandbox, pytest.mark.timeout(600)]

OLD = Path(__file__).parent / "ntn" / "old"


@pytest.mark.parametrize("version", ["0.3.0", "0.8.12"])
def test_a_worker_of_an_older_sdk_is_deployed_and_run(version: str, watched: RunningServer, tmp_path: Path) -> None:
    ntn = project(OLD, watched, tmp_path)
    package = json.loads((ntn.directory / "package.json").read_text())
    package["dependencies"]["@notionhq/workers"] = version
    (ntn.directory / "package.json").write_text(json.dumps(package))
    deployed = ntn.done("deploy", "--name", "old")
    assert {(one["_tag"], one["key"]) for one in ntn.json("capabilities", "list")} == {
        ("tool", "greet"),
        ("tool", "fails"),
        ("sync", "things_sync"),
    }, deployed.err
    assert ntn.run("greet", {"name": "you"}) == f"Hello, you, from {version}!"
    failed = ntn("exec", "fails")
    assert (failed.code, "no luck" in failed.err) == (API_ERROR, True), failed.err
    shown = ntn.run("things_sync")
    assert (shown["hasMore"], shown["changes"][0]["key"]) == (False, "1")
    greeted = next(run["runId"] for run in ntn.json("runs", "list") if run["name"] == "tool:greet")
    assert "greeting you" in ntn.done("runs", "logs", greeted).out
    ntn.done("delete", "--yes")
