"""A worker over the fake host that serves a manifest, without a build: its runs return what they were given."""

from __future__ import annotations

from typing import Any

import httpx
from sqlalchemy import select

from hutch.control.records import Scope
from hutch.storage import workers as rows
from hutch.storage.models import WorkerModel
from tests.api.conftest import Api
from tests.workers.declared import SCHEMA

ANY = {
    "type": "object",
    "properties": {"throw": {"anyOf": [{"type": "object"}, {"type": "null"}]}},
    "required": ["throw"],
    "additionalProperties": False,
}


def tool(key: str, schema: Any = SCHEMA, **config: Any) -> dict[str, Any]:
    return {
        "_tag": "tool",
        "key": key,
        "config": {"title": key.title(), "description": f"Does {key}", "schema": schema, **config},
    }


async def deployed(api: Api, *capabilities: dict[str, Any], name: str = "one", http: httpx.AsyncClient | None = None) -> str:
    """Its id."""
    http = http or api.http
    worker = (await http.post("/v3/workersCreateWorker", json={"name": name})).json()["worker"]
    made = (await http.post("/v3/sandboxes", json={})).json()["session"]["id"]
    taken = (await http.post(f"/v2/sandboxes/sessions/{made}/snapshot", json={})).json()["snapshot"]["id"]
    services, now = api.services, api.services.clock()
    worker_id, project_id = worker["workerId"], worker["spaceId"]
    async with services.database.write() as connection:
        team_id = (await connection.execute(select(WorkerModel.team_id).where(WorkerModel.id == worker_id))).scalar_one()
        scope = Scope(team_id, project_id)
        found = await rows.latest(connection, scope, worker_id, ("uploading",), services.sealer)
        assert found is not None
        manifest = {"sdkVersion": "0.9.2", "capabilities": list(capabilities)}
        sealed = services.sealer.seal(manifest, found.id)
        await rows.change_deployment(
            connection, scope, found.id, now, status="ready", before=("uploading",), snapshot_id=taken, manifest=sealed
        )
        await rows.touch(connection, scope, worker_id, now, deployment_id=found.id)
    return str(worker_id)
