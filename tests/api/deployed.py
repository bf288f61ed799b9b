"""Workers on the fake host: deployed without a build, with a function in the place of their program."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from hutch import ids
from hutch.clock import now_ms
from hutch.control.records import Scope
from hutch.storage import webhooks, workers
from hutch.storage.workers import Deployment
from tests.api.conftest import Api

HOOKS: list[dict[str, Any]] = [
    {"_tag": "webhook", "key": "plain", "config": {"title": "Plain", "description": "Takes all."}},
    {"_tag": "webhook", "key": "signed", "config": {"title": "Signed", "description": "Verifies.", "hasVerify": True}},
    {"_tag": "webhook", "key": "odd/ключ ?#%", "config": {"title": "Odd", "description": "An odd key."}},
    {"_tag": "automation", "key": "press", "config": {"title": "Press <me>", "description": "Does & shows."}},
    {"_tag": "tool", "key": "ask", "config": {"title": "Ask", "description": "Asks.", "schema": {"type": "object"}}},
]

Program = Callable[[dict[str, Any]], Any]
"""What a worker makes of a job `{"key", "context"}`: the value that it returns; what it raises is its error."""


async def deployed(api: Api, program: Program, capabilities: list[dict[str, Any]] | None = None) -> str:
    """A worker that serves; its id."""
    made = (await api.http.post("/v3/workersCreateWorker", json={"name": "hooks"})).json()
    worker: str = made["worker"]["workerId"]
    await deploy(api, worker, capabilities)

    async def run(job: dict[str, Any]) -> tuple[bytes, int]:
        try:
            value = program(job)
            if asyncio.iscoroutine(value):
                value = await value
        except ProgramError as error:
            return envelope({"_tag": "error", "error": error.error}), 1
        return envelope({"_tag": "success", "value": value}), 0

    api.host.worker = run
    return worker


async def deploy(api: Api, worker: str, capabilities: list[dict[str, Any]] | None = None) -> None:
    """Deploy it (again)."""
    scope, now = Scope(api.own.team_id, api.own.project_id), now_ms()
    box = (await api.http.post("/v3/sandboxes", json={})).json()["session"]["id"]
    taken = (await api.http.post(f"/v2/sandboxes/sessions/{box}/snapshot", json={})).json()
    given = HOOKS if capabilities is None else capabilities
    manifest = {"sdkVersion": "0.9.2", "capabilities": given}
    deployment = Deployment(
        ids.worker_id(), worker, scope.team_id, api.own.project_id, "ready", ids.secret(), taken["snapshot"]["id"], None, now
    )
    sealed = api.services.sealer.seal(manifest, deployment.id)
    keys: list[str] = [item["key"] for item in given if item["_tag"] == "webhook"]
    async with api.services.database.write() as connection:
        await workers.add_deployment(connection, deployment)
        await workers.change_deployment(connection, scope, deployment.id, now, status="ready", before=("ready",), manifest=sealed)
        await workers.touch(connection, scope, worker, now, deployment_id=deployment.id)
        addresses = {key: ids.webhook_address() for key in keys}
        await webhooks.ensure(connection, scope, worker, addresses, now, deployed=True)


class ProgramError(Exception):
    """What a handler threw."""

    def __init__(self, name: str, message: str = "no luck", **more: Any) -> None:
        super().__init__(message)
        self.error = {"name": name, "message": message, "trace": "", **more}


def envelope(value: dict[str, Any]) -> bytes:
    return b"\n<__notion_output__>" + json.dumps(value).encode() + b"</__notion_output__>\n"
