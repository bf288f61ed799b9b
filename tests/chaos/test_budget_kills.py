"""Events of budgets while processes are killed: each is there once, and its webhook has heard of it."""

from __future__ import annotations

import http.server
import json
import os
import random
import signal
import threading
from collections import Counter
from pathlib import Path
from typing import ClassVar

import httpx
import pytest

from hutch.client import Client, Server
from hutch.client.models import BudgetEvent
from hutch.errors import HutchError
from tests.chaos.test_usage_kills import host_of, kill_one
from tests.conftest import start_server, stop_server, wait_until

pytestmark = [pytest.mark.root, pytest.mark.sandbox, pytest.mark.campaign]

BURN = "while :; do i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 0.02; done"
STEP_US = 1_500_000


class Receiver(http.server.BaseHTTPRequestHandler):
    """Takes every second delivery."""

    heard: ClassVar[Counter[str]] = Counter()
    taken: ClassVar[Counter[str]] = Counter()

    def do_POST(self) -> None:
        told = json.loads(self.rfile.read(int(self.headers["content-length"])))
        name = str(self.headers["webhook-id"])
        assert told["data"]["id"] == name
        self.heard[name] += 1
        if self.heard[name] % 2:
            self.send_error(503)
            return
        self.taken[name] += 1
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def events(where: Server, kind: str | None = None) -> list[BudgetEvent]:
    """All events, of one kind or any; none while a part of the server is away."""
    try:
        with Client(where) as client:
            return [event for event in client.usage.events(limit=1000).events if kind in (None, event.type)]
    except HutchError:
        return []


def ready(where: Server) -> bool:
    """Whether a sandbox can be made: the host that was killed is back."""
    try:
        return httpx.get(f"{where.url}/readyz", timeout=10).is_success
    except httpx.HTTPError:
        return False


def stopped(where: Server, name: str) -> bool:
    try:
        with Client(where) as client:
            return client.sandboxes.get(name).sandbox.status == "stopped"
    except HutchError:
        return False


def spent_us(client: Client, project: str) -> int:
    """What the project has used; it has a budget."""
    [budget] = client.usage.budgets(project=project).budgets
    return budget.spent.active_cpu_us


@pytest.mark.timeout(1800)
def test_each_threshold_is_one_event_whatever_is_killed(no_leaks: Path, full_campaign: bool) -> None:
    """Budgets are crossed in steps while host, API and gateway are killed; the host also right after the hard stop, when it may
    not have told of it. What is written down is sent until the receiver, which refuses every second time, has taken it."""
    no_leaks.mkdir()
    log = no_leaks.parent / "serve.log"
    chance = random.Random(13)
    receiver = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    place = f"127.0.0.1:{receiver.server_port}"
    environment = {"HUTCH_BILLING__WINDOW_S": "1", "HUTCH_WEBHOOKS__PRIVATE_HOSTS": place}
    process, where = start_server(no_leaks, log, environment=environment)
    try:
        project = where.project_id
        assert project is not None
        rounds, kills = (15 if full_campaign else 2), 0
        with Client(where) as client:
            client.usage.set_budget(project=project, active_cpu_us=10**15)
        for number in range(1, rounds + 1):
            name = f"burning-{number}"
            wait_until(lambda: ready(where), 60, "a host that takes work")
            with Client(where) as client:
                used = spent_us(client, project)
                client.usage.set_budget(
                    project=project,
                    soft={"active_cpu_us": used + STEP_US},
                    webhook=f"http://{place}/hook",
                    active_cpu_us=used + 4 * STEP_US,
                )
                client.create_sandbox(name=name, persistent=False).create_command("sh", ["-c", BURN])
            for _ in range(chance.randrange(1, 3)):
                kill_one(process, chance)
                kills += 1
            wait_until(lambda name=name: stopped(where, name), 60, "the end of the budget")  # type: ignore[misc]
            host = host_of(process)
            if host is not None:
                os.kill(host, signal.SIGKILL)
                kills += 1
            for kind in ("budget.soft_limit", "budget.exceeded"):
                wait_until(lambda kind=kind, number=number: len(events(where, kind)) == number, 60, f"event {kind}")  # type: ignore[misc]
        found = events(where)
        assert len({event.id for event in found}) == len(found) == 2 * rounds
        assert [event.session_ids for event in found if event.type == "budget.soft_limit"] == [[]] * rounds
        wait_until(lambda: [event.delivery.state for event in events(where)] == ["delivered"] * 2 * rounds, 120, "the webhooks")
        assert Receiver.taken.keys() == {event.id for event in found}
        print(f"{rounds} budgets (seed 13), {kills} kills: {len(found)} events, {Receiver.heard.total()} deliveries")
        stop_server(process, log)
    finally:
        stop_server(process, log, check=False)
        receiver.shutdown()
        receiver.server_close()
