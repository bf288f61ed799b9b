"""A team that is deleted leaves nothing below the data directory, whatever is killed meanwhile."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from hutch.client import AsyncClient, Server
from tests.chaos.test_server_kills import kill_everything
from tests.conftest import start_server, stop_server, tail, wait_until
from tests.search import files_with

pytestmark = [pytest.mark.root, pytest.mark.sandbox]

CANARY = "zq7canary"
OWN = "/api/hutch/v1"
DRIVE_BYTES = 64 * 1024 * 1024


def http_of(where: Server) -> httpx.Client:
    return httpx.Client(base_url=where.url, headers={"authorization": f"Bearer {where.token}"}, timeout=120)


def done(http: httpx.Client, method: str, path: str, **body: Any) -> Any:
    response = http.request(method, path, json=body or None)
    assert response.is_success, f"{method} {path}: {response.text}"
    return response.json() if response.content else None


async def fill(where: Server, admin: httpx.Client) -> tuple[Server, str]:
    """A team with the canary in every kind of data; a server as its owner sees it, and its id."""
    made = done(
        admin, "POST", f"{OWN}/tokens", team=f"{CANARY}-team", project=f"{CANARY}-project", role="owner", name=f"{CANARY} a"
    )
    team = str(made["team_id"])
    whole = done(admin, "POST", f"{OWN}/tokens", team=f"{CANARY}-team", role="owner", name=f"{CANARY} b")
    with http_of(Server(where.url, whole["token"])) as owner:
        done(owner, "POST", f"{OWN}/teams/{team}/members", identity=f"{CANARY}@example.com", role="owner", name=CANARY)
        done(owner, "PUT", f"{OWN}/teams/{team}/network-policy", mode="allow-all")
        for place in (f"teams/{team}", f"projects/{made['project_id']}"):
            done(owner, "PUT", f"{OWN}/{place}/budget", active_cpu_us=10**12, period="day")
    server = Server(where.url, made["token"], team, str(made["project_id"]))
    with http_of(server) as project:
        await fill_project(server, project)
    return Server(where.url, whole["token"], team), team


async def fill_project(server: Server, project: httpx.Client) -> None:
    done(project, "PUT", f"{OWN}/credentials/{CANARY}", value=f"{CANARY}-value")
    done(project, "PUT", f"{OWN}/registries/{CANARY}.example", username=CANARY, password=CANARY)
    done(project, "POST", f"/api/v2/sandboxes/drives/{CANARY}-drive", maxSizeBytes=DRIVE_BYTES)
    policy = {"allow": [f"{CANARY}.example"]}
    script = f"echo {CANARY}; echo {CANARY} > {CANARY}.txt; yes {CANARY} | head -c 3000000 > large; cp large /mnt/drive/; sync"
    async with AsyncClient(server) as client:
        for name in (f"{CANARY}-stopped", f"{CANARY}-running"):
            made = done(
                project,
                "POST",
                "/api/v3/sandboxes",
                name=name,
                env={"SECRET": CANARY},
                tags={CANARY: CANARY},
                budget={"active_cpu_us": 10**12},
                ports=[3000],
                networkPolicy=policy,
                mounts={"/mnt/drive": {"drive": f"{CANARY}-drive"}} if "stopped" in name else {},
            )
            session = made["session"]["id"]
            code, *output = await client.commands.run(session, ["sh", "-c", f"mkdir -p /mnt/drive; {script}"], sudo=True)
            assert code == 0, output
            await client.commands.run(session, ["sh", "-c", f"curl -sm 3 http://denied-{CANARY}.example/{CANARY}; true"])
            if "stopped" in name:
                taken = done(project, "POST", f"/api/v2/sandboxes/sessions/{session}/stop")
                image = f"{CANARY}-image"
                done(project, "POST", f"{OWN}/images/from-snapshot", snapshotId=taken["snapshot"]["id"], name=image)
            else:
                await client.commands.start(session, ["sh", "-c", f"while true; do echo {CANARY}; sleep 0.1; done"])


def kinds(data_dir: Path) -> set[str]:
    """Below which directories the canary is."""
    return {"/".join(name.split("/")[:2]) for name in files_with(data_dir, CANARY.encode())}


def removed(admin: httpx.Client, team: str) -> bool:
    log = done(admin, "GET", f"{OWN}/teams/default/audit-log?limit=1000")["entries"]
    return any((entry["action"], entry["subject"]) == ("team.removed", team) for entry in log)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kills", [0, 3])
async def test_nothing_of_a_deleted_team_is_left(no_leaks: Path, kills: int) -> None:
    no_leaks.mkdir()
    log = no_leaks.parent / "serve.log"
    process, where = start_server(no_leaks, log)
    try:
        with http_of(where) as admin:
            owner, team = await fill(where, admin)
            subprocess.run(["sync"], check=True)
            before = kinds(no_leaks)
            # What is searched for is there: in the database, the host's journal, output, audits and layers.
            assert {"control/hutch.db", "host/logs", "host/audit", "host/layers"} <= {
                name.removesuffix("-wal") for name in before
            }
            assert any(name.startswith("host/journal") for name in before)
            # What usage and budgets say of it are ids only.
            assert any(name.startswith("journal") for name in files_with(no_leaks / "host", team.encode()))
            with http_of(owner) as mine:
                done(mine, "DELETE", f"{OWN}/teams/{team}")
                assert mine.get(f"{OWN}/whoami").status_code == 401
        for number in range(kills):
            # In the middle of it, each time somewhat later.
            time.sleep(0.3 * number)
            kill_everything(process)
            process, where = start_server(no_leaks, log)
        with http_of(where) as admin:
            wait_until(lambda: removed(admin, team), 300, lambda: f"the team is not removed:\n{tail(log)}")
        left = files_with(no_leaks, CANARY.encode())
        assert left == [], f"{left}\n{tail(log)}"
        assert files_with(no_leaks / "host", team.encode()) == []
        assert list((no_leaks / "host" / "logs").iterdir()) == [], "output of sessions"
    finally:
        stop_server(process, log)
    assert files_with(no_leaks, CANARY.encode()) == []
