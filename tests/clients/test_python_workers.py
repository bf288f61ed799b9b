"""Workers in Python, deployed by `hutch worker deploy` into real sandboxes: what agents, schedules, buttons and webhooks get."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import CHECKOUT, RunningServer, wait_until

pytestmark = [pytest.mark.root, pytest.mark.sandbox, pytest.mark.timeout(900)]

GREETING = CHECKOUT / "examples" / "workers" / "greeting-python"
HUTCH = CHECKOUT / ".venv" / "bin" / "hutch"


@dataclass(frozen=True, slots=True)
class Project:
    """A directory, and the server that it is deployed to."""

    directory: Path
    server: RunningServer

    def hutch(self, *arguments: str, written: str = "") -> subprocess.CompletedProcess[str]:
        where = self.server.where
        own = {"HUTCH_URL": where.url, "HUTCH_TOKEN": where.token}
        command = [str(HUTCH), "worker", *arguments]
        return subprocess.run(
            command,
            cwd=self.directory,
            env=os.environ | own,
            input=written,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def done(self, *arguments: str, written: str = "") -> str:
        ended = self.hutch(*arguments, written=written)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    @property
    def worker(self) -> str:
        return str(json.loads((self.directory / "workers.json").read_text())["workerId"])

    def http(self) -> httpx.Client:
        where = self.server.where
        headers = {"authorization": f"Bearer {where.token}"}
        return httpx.Client(base_url=f"{where.url}/api/hutch/v1/workers/{self.worker}", headers=headers, timeout=120)


def copied(source: Path, directory: Path, server: RunningServer) -> Project:
    shutil.copytree(source, directory, ignore=shutil.ignore_patterns("__pycache__", ".venv"))
    return Project(directory, server)


@pytest.fixture(scope="module")
def greeting(watched: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    project = copied(GREETING, tmp_path_factory.mktemp("python") / "greeting", watched)
    said = project.done("deploy")
    assert "Created greeting" in said
    assert "+ tool  greet" in said
    project.done("env", "set", "greeting", "WEBHOOK_SECRET", written="of-the-webhook")
    yield project
    project.done("rm", "greeting")


def test_a_tool_is_called_with_typed_arguments(greeting: Project) -> None:
    assert json.loads(greeting.done("run", "greeting", "greet", "-d", '{"name": "you", "language": null}')) == {
        "greeting": "Hello, you!"
    }
    assert json.loads(greeting.done("call", "greeting", "greet", "-d", '{"name": "you", "language": "de"}')) == {
        "greeting": "Hallo, you!"
    }
    wrong = greeting.hutch("run", "greeting", "greet", "-d", '{"name": 7, "language": null}')
    assert wrong.returncode != 0
    assert "/name must be string" in wrong.stderr
    runs = json.loads(greeting.done("runs", "greeting", "--json"))["runs"]
    assert "greeting you" in greeting.done("logs", "greeting", [one for one in runs if one["name"] == "tool:greet"][-1]["runId"])


def test_a_cycle_of_its_sync_is_rows(greeting: Project) -> None:
    with greeting.http() as http:
        done = http.post("syncs/all_planets/trigger", json={"wait": True}).raise_for_status().json()["sync"]
        assert (done["label"], done["warnings"], done["stats"]["cycle_upserts"]) == ("HEALTHY", [], 5)
        assert done["schedule"] == {"type": "cron", "expression": "0 6 * * 1-5", "time_zone": "Europe/Berlin"}
        assert done["next_run_at"] is not None
        rows = {row["key"]: row["properties"] for row in http.get("databases/planets/rows").raise_for_status().json()["rows"]}
    assert rows["Jupiter"] == {"Name": "Jupiter", "Moons": 95, "Kind": "gas", "Neighbours": ["Mars"]}
    assert rows["Mercury"]["Neighbours"] == []


def test_a_webhook_is_verified_and_a_button_pressed(greeting: Project) -> None:
    body = json.dumps({"who": "ada"})
    signature = hmac.new(b"of-the-webhook", body.encode(), hashlib.sha256).hexdigest()
    with greeting.http() as http:
        [address] = [one["url"] for one in http.get("webhooks").raise_for_status().json()["webhooks"]]
        assert httpx.post(address, content=body, headers={"x-signature": "forged"}, timeout=60).status_code == 400
        assert httpx.post(address, content=body, headers={"x-signature": signature}, timeout=60).status_code == 200

        def handled() -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = http.get("runs", params={"limit": 100}).raise_for_status().json()["runs"]
            return [one for one in found if one["name"] == "webhook:visited" and one.get("ended_at")]

        wait_until(lambda: bool(handled()), 60, "the event is handled")
        assert "visited by ada" in http.get(f"runs/{handled()[0]['id']}").raise_for_status().json()["run"]["logs"]
        pressed = http.post("automations/wave/trigger", json={"event": {}, "wait": True}).raise_for_status().json()
        assert "done" in json.dumps(pressed)


def test_dependencies_are_installed_and_a_project_that_is_new_is_deployed_as_it_is(
    watched: RunningServer, tmp_path: Path
) -> None:
    made = Project(tmp_path, watched)
    made.done("new", "--python", "things")
    project = Project(tmp_path / "things", watched)
    shown = project.done("dev", "all_things")
    assert [line.split()[:2] for line in shown.splitlines()[1:]] == [["write", "first"], ["write", "second"]]
    assert json.loads(project.done("dev", "greet", "-d", '{"name": "you"}')) == "Hello, you!"
    settings = project.directory / "pyproject.toml"
    settings.write_text(settings.read_text().replace("dependencies = []", 'dependencies = ["six==1.17.0"]'))
    program = project.directory / "worker.py"
    program.write_text(program.read_text().replace('return f"Hello', 'import six\n    return f"{six.__version__} Hello'))
    project.done("deploy")
    assert json.loads(project.done("run", "things", "greet", "-d", '{"name": "you"}')) == "1.17.0 Hello, you!"
    program.write_text("from hutch.worker import Worker\nworker = Worker()\nworker.pacer('', requests=1, per_s=1)\n")
    broken = project.hutch("deploy")
    assert broken.returncode != 0
    assert "A key should be a text that is not empty." in broken.stderr
    assert "installed already" in broken.stdout + broken.stderr, "the dependencies did not change"
    assert json.loads(project.done("run", "things", "greet", "-d", '{"name": "you"}')) == "1.17.0 Hello, you!", (
        "the one before goes on"
    )
    project.done("rm", "things")


OWN = """#!/bin/sh
set -e
case "$1" in
--install) echo installing ;;
--manifest) echo '{"capabilities": [{"_tag": "tool", "key": "say", "config": {"schema": {"type": "object"}}}]}' > "$2" ;;
--run) cat > /dev/null; printf '\\n<__notion_output__>{"_tag":"success","value":"said"}</__notion_output__>\\n' ;;
esac
"""


def test_any_program_that_keeps_the_contract_is_a_worker(watched: RunningServer, tmp_path: Path) -> None:
    project = Project(tmp_path, watched)
    (tmp_path / "hutch-worker").write_text(OWN)
    (tmp_path / "hutch-worker").chmod(0o755)
    project.done("deploy", "--name", "own")
    assert json.loads(project.done("run", "own", "say")) == "said"
    project.done("rm", "own")
    (tmp_path / "hutch-worker").unlink()
    (tmp_path / "workers.json").unlink()
    nothing = project.hutch("deploy", "--name", "own")
    assert nothing.returncode != 0
    assert "has none of package.json" in nothing.stderr
    project.done("rm", "own")
