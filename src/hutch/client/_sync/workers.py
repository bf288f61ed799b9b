# Written by scripts/write_sync_client.py from `_async/workers.py`; change that one.
"""Workers of a project: what there is, single runs, tools, secrets. `ntn` deploys them as well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from hutch.client import paths
from hutch.client._sync.deploys import Told, deploy
from hutch.client._sync.transport import Http
from hutch.client.models import Worker, WorkerRun, WorkerTool


class _Workers(msgspec.Struct):
    workers: list[Worker]


class _Worker(msgspec.Struct):
    worker: Worker


class _Runs(msgspec.Struct):
    runs: list[WorkerRun]


class _Logs(msgspec.Struct):
    logs: str


class _Tools(msgspec.Struct):
    tools: list[WorkerTool]


class _Result(msgspec.Struct):
    result: Any


class _Capabilities(msgspec.Struct):
    capabilities: list[dict[str, Any]]


class _Secret(msgspec.Struct):
    key: str


class _Secrets(msgspec.Struct):
    secrets: list[_Secret]


class _Variable(msgspec.Struct):
    key: str
    value: str


class _Env(msgspec.Struct):
    env: list[_Variable]


class Workers:
    def __init__(self, http: Http) -> None:
        self._http = http

    def get(self, worker_id: str) -> Worker:
        """Raises `NotFoundError`."""
        body = {"workerId": worker_id}
        return (self._http.call("POST", paths.door("GetWorker"), _Worker, body=body, query=self._project, safe=True)).worker

    def deploy(self, source: Path, *, name: str | None = None, worker_id: str | None = None, told: Told | None = None) -> Worker:
        """Deploy a directory: as a new worker of this name, or as the one with `worker_id`. `told` hears what the build writes.
        When it returns, the deployment serves. Raises `RunFailedError` for a build that fails; the one before goes on then."""
        return deploy(self._http, self._project, source, name, worker_id, told)

    def delete(self, worker_id: str) -> None:
        """With its secrets, deployments and runs."""
        body = {"workerId": worker_id}
        self._http.call("POST", paths.door("DeleteWorker"), dict[str, Any], body=body, query=self._project)

    def capabilities(self, worker_id: str) -> list[dict[str, Any]]:
        """What the deployment that serves can do, as its manifest says; nothing before there is one."""
        body = {"workerId": worker_id}
        answer = self._http.call("POST", paths.door("ListCapabilities"), _Capabilities, body=body, query=self._project, safe=True)
        return answer.capabilities

    # -- runs ----------------------------------------------------------------------------------------

    def run(self, worker_id: str, key: str, value: Any = None) -> Any:
        """Run a capability once and wait for what it returns. Nothing is applied. Never sent twice after it may have arrived.

        Raises `HutchError` (`run_failed`) for an error of the worker's.
        """
        body = {"workerId": worker_id, "capabilityKey": key, "args": value}
        answer = self._http.call(
            "POST", paths.door("RunCapability"), _Result, body=body, query=self._project, timeout_s=None, safe=False
        )
        return answer.result

    def runs(self, worker_id: str) -> list[WorkerRun]:
        """The last 200, newest first."""
        body = {"workerId": worker_id}
        return (self._http.call("POST", paths.door("ListRunsForWorker"), _Runs, body=body, query=self._project, safe=True)).runs

    def logs(self, worker_id: str, run_id: str) -> str:
        """What a run wrote, both streams together; empty while it goes on."""
        body = {"workerId": worker_id, "runId": run_id}
        return (self._http.call("POST", paths.door("GetRunLogs"), _Logs, body=body, query=self._project, safe=True)).logs

    # -- tools ---------------------------------------------------------------------------------------

    def tools(self, worker_id: str) -> list[WorkerTool]:
        """A worker's tools, those that are switched off as well."""
        return (self._http.call("GET", paths.worker_tools(worker_id), _Tools, query=self._project)).tools

    def functions(self, worker_id: str, form: str = "mcp") -> list[dict[str, Any]]:
        """The tools that are not switched off as a model's API takes them: `openai`, `openai-chat`, `anthropic` or `mcp`."""
        query = {**self._project, "format": form}
        found = self._http.call("GET", paths.worker_tools(worker_id), dict[str, list[dict[str, Any]]], query=query)
        return found["tools"]

    def change_tool(self, worker_id: str, tool: str, *, enabled: bool | None = None, confirm: bool | None = None) -> WorkerTool:
        """Give a tool to agents or take it from them; have a person agree to each call. By name or key."""
        body = {key: value for key, value in (("enabled", enabled), ("confirm", confirm)) if value is not None}
        return self._http.call("PATCH", paths.worker_tool(worker_id, tool), WorkerTool, body=body, query=self._project)

    def call_tool(self, worker_id: str, tool: str, arguments: dict[str, Any]) -> Any:
        """Call a tool with arguments as a model makes them: what may be null may be left out."""
        path = f"{paths.worker_tool(worker_id, tool)}/call"
        body = {"arguments": arguments}
        return (self._http.call("POST", path, _Result, body=body, query=self._project, timeout_s=None, safe=False)).result

    # -- environment ---------------------------------------------------------------------------------

    def set_secrets(self, worker_id: str, secrets: dict[str, str]) -> None:
        """Store secrets over those of the same names. Runs have them from now on; the manifest with the next deploy."""
        given = [{"key": key, "value": value} for key, value in secrets.items()]
        body = {"workerId": worker_id, "secrets": given}
        self._http.call("POST", paths.door("UpsertSecrets"), dict[str, Any], body=body, query=self._project, safe=True)

    def secret_names(self, worker_id: str) -> list[str]:
        body = {"workerId": worker_id}
        answer = self._http.call("POST", paths.door("ListSecrets"), _Secrets, body=body, query=self._project, safe=True)
        return [secret.key for secret in answer.secrets]

    def secrets(self, worker_id: str) -> dict[str, str]:
        """Secrets with their values, which takes the permission `worker.secrets`."""
        body = {"workerId": worker_id}
        answer = self._http.call("POST", paths.door("PullEnv"), _Env, body=body, query=self._project, safe=True)
        return {variable.key: variable.value for variable in answer.env}

    def delete_secret(self, worker_id: str, key: str) -> None:
        body = {"workerId": worker_id, "key": key}
        self._http.call("POST", paths.door("DeleteSecret"), dict[str, Any], body=body, query=self._project, safe=True)

    @property
    def _project(self) -> dict[str, str]:
        return self._http.project()

    def list(self) -> list[Worker]:
        """Newest first."""
        return (self._http.call("POST", paths.door("ListWorkers"), _Workers, body={}, query=self._project, safe=True)).workers
