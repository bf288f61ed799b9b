"""Beside the vendor's SDK: the same worker has the same manifest, and its runs come to the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hutch.workers import manifest as manifests
from hutch.workers.changes import Batch
from hutch.workers.checks import check
from hutch.workers.envelope import scan
from hutch.workers.outcome import Failure, Success, judge

RECORDED: dict[str, Any] = json.loads((Path(__file__).parents[1] / "workers" / "recorded.json").read_text())["0.9.2"]
TWIN = Path(__file__).with_name("twin.py")
RUNS = sorted(RECORDED["runs"])


def runner(*arguments: str, written: str = "") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "hutch.worker", str(TWIN), *arguments]
    return subprocess.run(command, input=written.encode(), capture_output=True, timeout=60, check=False)


def test_its_manifest_is_the_same(tmp_path: Path) -> None:
    assert runner("--manifest", str(tmp_path / "manifest")).returncode == 0
    raw = (tmp_path / "manifest").read_bytes()
    mine, theirs = json.loads(raw), json.loads(json.dumps(RECORDED["manifest"]))
    # A status without options in one of its groups has that group here.
    groups = mine["databases"][0]["config"]["schema"]["properties"]["St"]["groups"]
    assert groups.pop(1) == {"name": "In progress", "options": []}
    del mine["sdkVersion"], theirs["sdkVersion"]
    assert mine == theirs
    assert check(manifests.parse(raw)) == []


@pytest.mark.parametrize("run", RUNS)
def test_its_runs_come_to_the_same(run: str) -> None:
    tag, key, context = run.split(" ", 2)
    ended = runner("--run", written=json.dumps({"key": key, "context": json.loads(context)}))
    verify = '"request"' in run
    mine = judge(tag, scan(ended.stdout), exit_code=ended.returncode, verify=verify)
    theirs = judge(
        tag, scan(RECORDED["runs"][run]["stdout"].encode()), exit_code=RECORDED["runs"][run]["exit_code"], verify=verify
    )
    assert ended.returncode == (0 if isinstance(mine, Success) else 1)
    if isinstance(theirs, Failure):
        assert isinstance(mine, Failure)
        if run == "sync nochanges {}":
            assert "a sync should return a Page, not NoneType" in mine.message
        elif "Invalid" in theirs.name:
            assert mine.name == theirs.name
        else:
            assert (mine.name, mine.message, mine.retry_after_ms) == (theirs.name, theirs.message, theirs.retry_after_ms)
        return
    assert isinstance(mine, Success)
    if isinstance(theirs.value, Batch):
        assert isinstance(mine.value, Batch)
        assert (mine.value.has_more, mine.value.state) == (theirs.value.has_more, theirs.value.state)
        assert set(mine.value.pacers) == set(theirs.value.pacers)
        told, heard = ([_plain(change) for change in batch.changes] for batch in (mine.value, theirs.value))
        assert told == heard
    else:
        assert mine.value == theirs.value


def _plain(change: Any) -> Any:
    found = json.loads(json.dumps(change, default=lambda one: {name: getattr(one, name) for name in one.__struct_fields__}))
    if "properties" in found and "N" in found["properties"]:
        # JavaScript wrote 1.5e-7 here; how numbers are written is tested by itself.
        del found["properties"]["N"]
    return found


def test_what_is_no_worker_says_what_to_fix(tmp_path: Path) -> None:
    for content, said in {
        "x = 1": "has no Worker named `worker`",
        "import nothing_like_it": "No module named 'nothing_like_it'",
        "worker = Worker(": "SyntaxError",
        "raise SystemExit": "",
        "from hutch.worker import Worker; worker = Worker(); worker.pacer('a', requests=0, per_s=1)": "at least one request",
    }.items():
        file = tmp_path / "worker.py"
        file.write_text(content)
        command = [sys.executable, "-m", "hutch.worker", str(tmp_path), "--manifest", str(tmp_path / "manifest")]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert ended.returncode == 1, content
        assert said in ended.stderr
        assert not (tmp_path / "manifest").exists()


@pytest.mark.parametrize(
    ("project", "said"),
    [
        ("[tool.hutch]\nworker = 7", "should be a text"),
        ("[tool", "can't be read"),
        ('tool = "x"', "can't be read"),
        ('[tool.hutch]\nworker = "none.py"', "There is no"),
        ('[tool.hutch]\nworker = "worker.py:other"', "has no Worker named `other`"),
    ],
)
def test_a_project_that_names_no_worker_says_so(tmp_path: Path, project: str, said: str) -> None:
    (tmp_path / "pyproject.toml").write_text(project)
    (tmp_path / "worker.py").write_text("from hutch.worker import Worker\nworker = Worker()\n")
    command = [sys.executable, "-m", "hutch.worker", str(tmp_path), "--manifest", str(tmp_path / "manifest")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, said in ended.stderr) == (1, True), ended.stderr
