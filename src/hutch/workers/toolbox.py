"""The tools that agents are offered: those of one worker, or of all workers of a project.

    deployments that serve ─▶ their tools ─▶ names that no two share ─▶ what was said about each (enabled, confirm)

A tool's name within its worker depends on its key alone, and within a project on its worker's name too. Where two workers share
a name, a part of the worker's id tells them apart.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hutch.api.services import Services
from hutch.control.records import Scope
from hutch.errors import HutchError, RunFailedError
from hutch.storage import worker_tools
from hutch.storage import workers as rows
from hutch.storage.worker_tools import ToolSetting
from hutch.storage.workers import Worker
from hutch.workers import runs, tools
from hutch.workers.manifest import Manifest, Tool
from hutch.workers.outcome import Failure, Outcome, Success
from hutch.workers.serving import serving
from hutch.workers.tools import Function

log = logging.getLogger(__name__)

ID_LETTERS = 8


@dataclass(frozen=True, slots=True)
class Offer:
    """A tool of a worker under the name that agents call it by."""

    worker: Worker
    key: str
    tool: Tool
    function: Function
    setting: ToolSetting


async def of_worker(services: Services, scope: Scope, worker: Worker) -> dict[str, Offer]:
    """A worker's tools by their names, those that are switched off as well. None before it is deployed."""
    found = await serving(services, scope, worker)
    if found is None:
        return {}
    async with services.database.read() as connection:
        settings = await worker_tools.of_worker(connection, scope, worker.id)
    return _offers(worker, found[1], settings)


async def of_project(services: Services, scope: Scope) -> dict[str, Offer]:
    """The tools of all workers by their names, which begin with the workers'."""
    async with services.database.read() as connection:
        workers = await rows.all_of(connection, scope)
        settings = await worker_tools.of_all(connection, scope)
    times = Counter(worker.name for worker in workers)
    offers: dict[str, Offer] = {}
    for worker in reversed(workers):
        try:
            found = await serving(services, scope, worker)
        except HutchError as error:
            # One that can't be read any more takes the others' tools from nobody.
            log.warning("the manifest of worker %s can't be read: %s", worker.id, error.message)
            continue
        if found is None:
            continue
        prefix = worker.name if times[worker.name] == 1 else f"{worker.name}_{worker.id[-ID_LETTERS:]}"
        for name, offer in _offers(worker, found[1], settings.get(worker.id, {}), prefix).items():
            # `a_b` of `c` and `b_c` of `a` make one name.
            free = name if name not in offers else tools.name(offer.key, f"{worker.name}_{worker.id}")
            offers[free] = Offer(worker, offer.key, offer.tool, tools.function(free, offer.tool), offer.setting)
    return offers


def _offers(worker: Worker, manifest: Manifest, settings: Mapping[str, ToolSetting], prefix: str = "") -> dict[str, Offer]:
    found = {item.key: item.config for item in manifest.capabilities if item.tag == "tool" and isinstance(item.config, Tool)}
    return {
        name: Offer(worker, key, found[key], tools.function(name, found[key]), settings.get(key, ToolSetting()))
        for name, key in tools.names(found, prefix).items()
    }


async def call(services: Services, scope: Scope, offer: Offer, arguments: Any) -> Any:
    """What a tool returns. Raises `RunFailedError` for what is its own fault, and `HutchError`."""
    return await runs.run(services, scope, offer.worker, offer.key, tools.tool_input(offer.tool, arguments))


async def outcome(services: Services, scope: Scope, offer: Offer, arguments: Any) -> Outcome:
    """The same for those who are told of errors as of results."""
    try:
        return Success(await call(services, scope, offer, arguments))
    except RunFailedError as error:
        return Failure(name=error.name, message=error.message)
    except HutchError as error:
        return Failure(name=error.code, message=error.message, made_here=True)
