"""Workers of a project: deploying them, runs, syncs and their databases, webhooks, tools, secrets, their network."""

from __future__ import annotations

import builtins
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, Literal

import msgspec

from hutch.client import paths
from hutch.client._async.deploys import Told, deploy
from hutch.client._async.transport import Http
from hutch.client._async.usage import Usages
from hutch.client.models import (
    Destinations,
    NotionTarget,
    SyncPreview,
    UsageGroup,
    Worker,
    WorkerDetails,
    WorkerNetwork,
    WorkerRowPage,
    WorkerRun,
    WorkerRunDetails,
    WorkerSync,
    WorkerTool,
    WorkerWebhook,
)


class _Workers(msgspec.Struct):
    workers: list[Worker]


class _Worker(msgspec.Struct):
    worker: Worker


class _Details(msgspec.Struct):
    worker: WorkerDetails


class _Sync(msgspec.Struct):
    sync: WorkerSync


class _Preview(msgspec.Struct):
    preview: SyncPreview


class _Notion(msgspec.Struct):
    notion: NotionTarget


class _Webhooks(msgspec.Struct):
    webhooks: list[WorkerWebhook]


class _Webhook(msgspec.Struct):
    webhook: WorkerWebhook


class _Run(msgspec.Struct):
    run: WorkerRunDetails


class _OauthStarted(msgspec.Struct):
    authorizationUrl: str


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


class _Network(msgspec.Struct):
    network: WorkerNetwork


class _Review(msgspec.Struct):
    review: bool


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

    async def get(self, worker_id: str) -> Worker:
        """Raises `NotFoundError`."""
        body = {"workerId": worker_id}
        return (await self._http.call("POST", paths.door("GetWorker"), _Worker, body=body, query=self._project, safe=True)).worker

    async def deploy(
        self, source: Path, *, name: str | None = None, worker_id: str | None = None, told: Told | None = None
    ) -> Worker:
        """Deploy a directory: as a new worker of this name, or as the one with `worker_id`. `told` hears what the build writes.
        When it returns, the deployment serves. Raises `RunFailedError` for a build that fails; the one before goes on then."""
        return await deploy(self._http, self._project, source, name, worker_id, told)

    async def delete(self, worker_id: str) -> None:
        """With its secrets, deployments and runs."""
        body = {"workerId": worker_id}
        await self._http.call("POST", paths.door("DeleteWorker"), dict[str, Any], body=body, query=self._project)

    async def capabilities(self, worker_id: str) -> list[dict[str, Any]]:
        """What the deployment that serves can do, as its manifest says; nothing before there is one."""
        body = {"workerId": worker_id}
        answer = await self._http.call(
            "POST", paths.door("ListCapabilities"), _Capabilities, body=body, query=self._project, safe=True
        )
        return answer.capabilities

    async def details(self, worker_id: str) -> WorkerDetails:
        """A worker with its capabilities, syncs and databases. Raises `NotFoundError`."""
        return (await self._http.call("GET", paths.worker(worker_id), _Details, query=self._project)).worker

    async def rename(self, worker_id: str, name: str) -> None:
        """Its id and the addresses of its webhooks stay."""
        await self._http.call("PATCH", paths.worker(worker_id), dict[str, Any], body={"name": name}, query=self._project)

    async def usage(self, worker_id: str, *, start: str | int | None = None, end: str | int | None = None) -> UsageGroup | None:
        """What its builds and runs used from `start` to `end`, as for `client.usage.report`; None for nothing."""
        report = await Usages(self._http).report(start=start, end=end, group_by="worker")
        return next((group for group in report.groups if group.key == worker_id), None)

    # -- syncs ---------------------------------------------------------------------------------------

    async def trigger_sync(self, worker_id: str, sync: str, *, wait: bool = False) -> WorkerSync:
        """Begin a cycle now, also of a paused sync; with `wait`, return when it is over, after ten minutes at most."""
        path = paths.worker(worker_id, "syncs", sync, "trigger")
        answer = await self._http.call(
            "POST", path, _Sync, body={"wait": wait}, query=self._project, timeout_s=None, safe=not wait
        )
        return answer.sync

    async def preview_sync(self, worker_id: str, sync: str, *, context: Any = None) -> SyncPreview:
        """Run a sync once, from its state or `context`, and write nothing."""
        path, body = paths.worker(worker_id, "syncs", sync, "trigger"), {"preview": True, "context": context}
        return (await self._http.call("POST", path, _Preview, body=body, query=self._project, timeout_s=None, safe=False)).preview

    async def pause_sync(self, worker_id: str, sync: str) -> WorkerSync:
        """Begin no cycle by schedule any more. A run that goes on is finished."""
        return await self._tell_sync(worker_id, sync, "pause")

    async def resume_sync(self, worker_id: str, sync: str) -> WorkerSync:
        """Go on by schedule; a time that was missed meanwhile is due now."""
        return await self._tell_sync(worker_id, sync, "resume")

    async def reset_sync(self, worker_id: str, sync: str) -> WorkerSync:
        """Forget its state and statistics; rows stay."""
        return await self._tell_sync(worker_id, sync, "reset")

    async def schedule_sync(self, worker_id: str, sync: str, schedule: dict[str, Any] | None) -> WorkerSync:
        """Have a sync run at other times than its program says; None is the program's schedule again."""
        path = paths.worker(worker_id, "syncs", sync, "schedule")
        return (await self._http.call("PUT", path, _Sync, body={"schedule": schedule}, query=self._project)).sync

    async def _tell_sync(self, worker_id: str, sync: str, what: str) -> WorkerSync:
        path = paths.worker(worker_id, "syncs", sync, what)
        return (await self._http.call("POST", path, _Sync, body={}, query=self._project, safe=True)).sync

    # -- databases -----------------------------------------------------------------------------------

    async def rows(
        self,
        worker_id: str,
        database: str,
        *,
        filter: dict[str, str] | None = None,
        sort: str | None = None,
        view: str | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> WorkerRowPage:
        """A page of a database's rows. `filter` compares properties with texts; `sort` is a property, with `-` before it from the
        largest on."""
        query = self._look(filter, sort, view) | {"limit": str(limit)} | ({"after": after} if after is not None else {})
        return await self._http.call("GET", paths.worker(worker_id, "databases", database, "rows"), WorkerRowPage, query=query)

    async def export(
        self,
        worker_id: str,
        database: str,
        form: Literal["json", "csv"] = "json",
        *,
        filter: dict[str, str] | None = None,
        sort: str | None = None,
        view: str | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """All rows of a database as a document, in pieces."""
        query = self._look(filter, sort, view) | {"format": form}
        path = paths.worker(worker_id, "databases", database, "export")
        async with self._http.open("GET", path, query=query) as response:
            async for piece in response.aiter_bytes():
                yield piece

    async def notion(self, worker_id: str, database: str) -> NotionTarget:
        """Where a database is mirrored to in Notion, and how far."""
        path = paths.worker(worker_id, "databases", database, "notion")
        return (await self._http.call("GET", path, _Notion, query=self._project)).notion

    async def mirror(
        self, worker_id: str, database: str, token: str, parent: dict[str, str], *, base_url: str | None = None
    ) -> NotionTarget:
        """Mirror a database's rows into Notion from now on: below `{"page_id": …}`, or into `{"data_source_id": …}`."""
        path, body = paths.worker(worker_id, "databases", database, "notion"), {"token": token, "parent": parent}
        if base_url is not None:
            body["base_url"] = base_url
        return (await self._http.call("PUT", path, _Notion, body=body, query=self._project, safe=False)).notion

    async def unmirror(self, worker_id: str, database: str) -> None:
        """Mirror it no more; pages in Notion stay."""
        path = paths.worker(worker_id, "databases", database, "notion")
        await self._http.call("DELETE", path, dict[str, Any], query=self._project)

    def _look(self, filter: dict[str, str] | None, sort: str | None, view: str | None) -> dict[str, str | builtins.list[str]]:
        given: dict[str, str | builtins.list[str]] = {**self._project}
        given["filter"] = [f"{name}={text}" for name, text in (filter or {}).items()]
        return given | {name: value for name, value in (("sort", sort), ("view", view)) if value is not None}

    # -- webhooks and logins -------------------------------------------------------------------------

    async def webhooks(self, worker_id: str) -> builtins.list[WorkerWebhook]:
        """Its webhooks with their addresses; none before it is deployed."""
        return (await self._http.call("GET", paths.worker(worker_id, "webhooks"), _Webhooks, query=self._project)).webhooks

    async def change_webhook(self, worker_id: str, webhook: str, *, verification: bool) -> WorkerWebhook:
        """Whether requests are verified. A change also opens a webhook that is blocked."""
        path, body = paths.worker(worker_id, "webhooks", webhook), {"verification": verification}
        return (await self._http.call("PATCH", path, _Webhook, body=body, query=self._project)).webhook

    async def connect(self, worker_id: str, oauth: str) -> str:
        """Begin a login of a worker with another service; the address where somebody agrees."""
        body = {"workerId": worker_id, "oauthCapabilityKey": oauth}
        started = await self._http.call("POST", paths.door("StartOauth"), _OauthStarted, body=body, query=self._project)
        return started.authorizationUrl

    # -- runs ----------------------------------------------------------------------------------------

    async def run(self, worker_id: str, key: str, value: Any = None) -> Any:
        """Run a capability once and wait for what it returns. Nothing is applied. Never sent twice after it may have arrived.

        Raises `HutchError` (`run_failed`) for an error of the worker's.
        """
        body = {"workerId": worker_id, "capabilityKey": key, "args": value}
        answer = await self._http.call(
            "POST", paths.door("RunCapability"), _Result, body=body, query=self._project, timeout_s=None, safe=False
        )
        return answer.result

    async def runs(self, worker_id: str) -> list[WorkerRun]:
        """The last 200, newest first."""
        body = {"workerId": worker_id}
        return (
            await self._http.call("POST", paths.door("ListRunsForWorker"), _Runs, body=body, query=self._project, safe=True)
        ).runs

    async def logs(self, worker_id: str, run_id: str) -> str:
        """What a run wrote, both streams together; empty while it goes on."""
        body = {"workerId": worker_id, "runId": run_id}
        return (await self._http.call("POST", paths.door("GetRunLogs"), _Logs, body=body, query=self._project, safe=True)).logs

    async def run_details(self, worker_id: str, run_id: str) -> WorkerRunDetails:
        """A run with its input, output, log and cost. Raises `NotFoundError`."""
        return (await self._http.call("GET", paths.worker(worker_id, "runs", run_id), _Run, query=self._project)).run

    async def replay(
        self, worker_id: str, run_id: str, *, deployment: str | None = None, deny_network: bool = False
    ) -> WorkerRunDetails:
        """Run a capability once more with the input of a run, on the deployment that serves or another one; with
        `deny_network` it reaches nothing. Nothing that it returns is applied."""
        body: dict[str, Any] = {"network": "deny-all"} if deny_network else {}
        if deployment is not None:
            body["deployment"] = deployment
        path = paths.worker(worker_id, "runs", run_id, "replay")
        return (await self._http.call("POST", path, _Run, body=body, query=self._project, timeout_s=None, safe=False)).run

    async def cancel(self, worker_id: str, run_id: str) -> None:
        """End a run that goes on. Raises `ConflictError` (`run_not_cancelable`) when it is over."""
        path = paths.worker(worker_id, "runs", run_id, "cancel")
        await self._http.call("POST", path, dict[str, Any], body={}, query=self._project, safe=False)

    # -- tools ---------------------------------------------------------------------------------------

    async def tools(self, worker_id: str) -> list[WorkerTool]:
        """A worker's tools, those that are switched off as well."""
        return (await self._http.call("GET", paths.worker_tools(worker_id), _Tools, query=self._project)).tools

    async def functions(self, worker_id: str, form: str = "mcp") -> list[dict[str, Any]]:
        """The tools that are not switched off as a model's API takes them: `openai`, `openai-chat`, `anthropic` or `mcp`."""
        query = {**self._project, "format": form}
        found = await self._http.call("GET", paths.worker_tools(worker_id), dict[str, list[dict[str, Any]]], query=query)
        return found["tools"]

    async def change_tool(
        self, worker_id: str, tool: str, *, enabled: bool | None = None, confirm: bool | None = None
    ) -> WorkerTool:
        """Give a tool to agents or take it from them; have a person agree to each call. By name or key."""
        body = {key: value for key, value in (("enabled", enabled), ("confirm", confirm)) if value is not None}
        return await self._http.call("PATCH", paths.worker_tool(worker_id, tool), WorkerTool, body=body, query=self._project)

    async def call_tool(self, worker_id: str, tool: str, arguments: dict[str, Any]) -> Any:
        """Call a tool with arguments as a model makes them: what may be null may be left out."""
        path = f"{paths.worker_tool(worker_id, tool)}/call"
        body = {"arguments": arguments}
        return (await self._http.call("POST", path, _Result, body=body, query=self._project, timeout_s=None, safe=False)).result

    # -- network -------------------------------------------------------------------------------------

    async def network(self, worker_id: str) -> WorkerNetwork:
        """Where a worker may connect to, and where its runs did."""
        return (await self._http.call("GET", paths.worker_network(worker_id), _Network, query=self._project)).network

    async def set_network(self, worker_id: str, mode: str, destinations: Destinations | None = None) -> WorkerNetwork:
        """`set` has the worker reach `destinations`, `learn` anything, `declared` what its files say."""
        given = msgspec.to_builtins(destinations) if destinations is not None else {}
        body = {"mode": mode, **given}
        answer = await self._http.call("PUT", paths.worker_network(worker_id), _Network, body=body, query=self._project)
        return answer.network

    async def confirm_network(self, worker_id: str, deployment: str) -> None:
        """Agree to what a deployment reaches that waits, and have it serve."""
        path = f"{paths.worker_network(worker_id)}/confirm"
        body = {"deployment": deployment}
        await self._http.call("POST", path, dict[str, Any], body=body, query=self._project, timeout_s=None, safe=False)

    async def review(self, project: str, review: bool | None = None) -> bool:
        """Whether deployments of a project that reach more wait until somebody agrees; with `review` that is set."""
        path = paths.worker_review(project)
        if review is None:
            return (await self._http.call("GET", path, _Review)).review
        return (await self._http.call("PUT", path, _Review, body={"review": review})).review

    # -- environment ---------------------------------------------------------------------------------

    async def set_secrets(self, worker_id: str, secrets: dict[str, str]) -> None:
        """Store secrets over those of the same names. Runs have them from now on; the manifest with the next deploy."""
        given = [{"key": key, "value": value} for key, value in secrets.items()]
        body = {"workerId": worker_id, "secrets": given}
        await self._http.call("POST", paths.door("UpsertSecrets"), dict[str, Any], body=body, query=self._project, safe=True)

    async def secret_names(self, worker_id: str) -> list[str]:
        body = {"workerId": worker_id}
        answer = await self._http.call("POST", paths.door("ListSecrets"), _Secrets, body=body, query=self._project, safe=True)
        return [secret.key for secret in answer.secrets]

    async def secrets(self, worker_id: str) -> dict[str, str]:
        """Secrets with their values, which takes the permission `worker.secrets`."""
        body = {"workerId": worker_id}
        answer = await self._http.call("POST", paths.door("PullEnv"), _Env, body=body, query=self._project, safe=True)
        return {variable.key: variable.value for variable in answer.env}

    async def delete_secret(self, worker_id: str, key: str) -> None:
        body = {"workerId": worker_id, "key": key}
        await self._http.call("POST", paths.door("DeleteSecret"), dict[str, Any], body=body, query=self._project, safe=True)

    @property
    def _project(self) -> dict[str, str]:
        return self._http.project()

    async def list(self) -> list[Worker]:
        """Newest first."""
        return (
            await self._http.call("POST", paths.door("ListWorkers"), _Workers, body={}, query=self._project, safe=True)
        ).workers
