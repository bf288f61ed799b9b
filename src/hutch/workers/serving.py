"""Which deployment of a worker serves."""

from __future__ import annotations

import functools
import json

from hutch.api.services import Services
from hutch.control.records import Scope
from hutch.storage import workers as rows
from hutch.storage.workers import Deployment, Worker
from hutch.workers import manifest as manifests
from hutch.workers.manifest import Manifest


async def serving(
    services: Services, scope: Scope, worker: Worker, deployment_id: str | None = None
) -> tuple[Deployment, Manifest] | None:
    """The deployment that serves, or another one of the worker, and its manifest."""
    wanted = deployment_id or worker.deployment_id
    if wanted is None:
        return None
    async with services.database.read() as connection:
        found = await rows.deployment(connection, scope, wanted, services.sealer)
    if found is None or found.manifest is None or found.worker_id != worker.id:
        return None
    return found, manifest_of(found)


def manifest_of(deployment: Deployment) -> Manifest:
    """That of a deployment that has one. Raises `BadRequestError` for one that an older version took, and this one does not."""
    return _parsed(json.dumps(deployment.manifest).encode())


# Each run of a worker needs it, and it can't be changed.
_parsed = functools.lru_cache(maxsize=16)(manifests.parse)
