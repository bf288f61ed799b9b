# Written by scripts/write_sync_client.py from `_async/deploys.py`; change that one.
"""Deploying a worker: its source goes up, is built, and its manifest is read; then it serves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from hutch.client import paths, projects
from hutch.client._sync.transport import Http
from hutch.client.models import Worker
from hutch.client.wire import decode
from hutch.errors import InternalError, RunFailedError

Told = Callable[[str, str], None]
"""Called with the stream (`stdout`, `stderr`) and a piece of what a build writes."""
MAX_LINE_BYTES = 8 * 1024 * 1024
_UPLOADS = "/hutch/v1/worker-uploads/"


class _Created(msgspec.Struct):
    worker: Worker
    url: str


class _Upload(msgspec.Struct):
    url: str


class _Read(msgspec.Struct):
    worker: Worker


class _Capabilities(msgspec.Struct):
    capabilities: list[dict[str, Any]]


def deploy(
    http: Http, project: dict[str, str], source: Path, name: str | None, worker_id: str | None, told: Told | None
) -> Worker:
    """Deploy a directory as a new worker, or as an existing one. Raises `HutchError`."""
    content = projects.archive(source)
    if worker_id is None:
        created = http.call("POST", paths.door("CreateWorker"), _Created, body={"name": name}, query=project, safe=False)
        worker, address = created.worker, created.url
        projects.remember(source, worker.worker_id, worker.space_id)
    else:
        body = {"workerId": worker_id}
        address = (http.call("POST", paths.door("UpdateWorker"), _Upload, body=body, query=project, safe=True)).url
        worker = (http.call("POST", paths.door("GetWorker"), _Read, body=body, query=project, safe=True)).worker
    sent, kind = projects.form(content)
    # By the address of this client: the server may have another one for others.
    path = _UPLOADS + urlsplit(address).path.rpartition("/")[2]
    with http.open("POST", path, content=sent, headers=[(b"content-type", kind)], scoped=False, safe=False):
        pass
    _build(http, project, worker.worker_id, told)
    body = {"workerId": worker.worker_id}
    http.call("POST", paths.door("FetchAndSaveCapabilities"), _Capabilities, body=body, query=project, timeout_s=None, safe=True)
    return worker


def _build(http: Http, project: dict[str, str], worker_id: str, told: Told | None) -> None:
    """Raises `RunFailedError` when the build fails."""
    body = {"workerId": worker_id, "stream": True}
    said, left, done = "The build ended without a result.", b"", False
    with http.open("POST", paths.door("BuildWorker"), body=body, query=project, safe=False) as response:
        for chunk in response.iter_bytes():
            *lines, left = (left + chunk).split(b"\n")
            if len(left) > MAX_LINE_BYTES:
                raise InternalError("unexpected_answer", "The server answered with a line that does not end.")
            for line in lines:
                record = decode(line.strip(), dict[str, Any])
                if record.get("_tag") == "log" and told is not None:
                    told(str(record["event"]["stream"]), str(record["event"]["data"]))
                elif record.get("_tag") == "error":
                    said = str(record["error"])
                elif record.get("_tag") == "result":
                    done = bool(record["result"]["ok"])
    if not done:
        raise RunFailedError("BuildFailed", said)
