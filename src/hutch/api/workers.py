"""The Workers door: what `ntn` calls, and nothing else does.

Every call is a `POST` to `/api/v3/NAME` with a JSON object. Errors have the vendor's `name` and `message` beside Hutch's own
form. Builds and streamed runs answer with NDJSON records that say what happens, and in the last one what came of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import html
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter
from python_multipart.exceptions import MultipartParseError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import Response

from hutch import ids
from hutch.api import syncs, worker_webhooks
from hutch.api.body import read
from hutch.api.responses import JsonResponse, line, ndjson
from hutch.api.routing import NDJSON, Answer, WorkerRoute, documented
from hutch.api.services import Services, services_of
from hutch.control import worker_wire as wire
from hutch.control.permissions import Permission
from hutch.control.records import Scope
from hutch.errors import (
    BadRequestError,
    ConflictError,
    HutchError,
    NotFoundError,
    PayloadTooLargeError,
    RateLimitedError,
    UnavailableError,
)
from hutch.storage import audit_log, worker_syncs
from hutch.storage import workers as rows
from hutch.storage.workers import Deployment, Run, Worker
from hutch.workers import builds, connections, environment, runs
from hutch.workers.builds import BuildFailed
from hutch.workers.manifest import Manifest, public
from hutch.workers.serving import serving
from hutch.workers.sync import Pause, Resume

router = APIRouter(route_class=WorkerRoute, tags=["workers"])

log = logging.getLogger(__name__)

UPLOAD_LIFE_MS = 3_600_000
MAX_WAITING = 10
"""Uploads of one worker that wait to be built: as many deploys at once, and no disk full of what nobody built."""
FORM_SLACK_BYTES = 64 * 1024
MAX_FIELDS = 20
HEARTBEAT_S = 10.0
MAX_RECORDS = 16
"""That wait for a reader of a stream: each may have a line of 64 KiB, in which a byte takes up to six as JSON."""

Records = asyncio.Queue[bytes | None]


# -- terms of service --------------------------------------------------------------------------------

NO_TERMS: wire.TosAccepted = {"accepted": True, "tosVersion": 0, "currentTosVersion": 0}


@router.post(
    "/v3/workersGetTosConsent",
    openapi_extra=documented(wire.Nothing, answer=wire.TosConsent, needs=Permission.WORKER_READ),
)
async def workers_tos(request: Request) -> Response:
    """That nothing has to be agreed to: this server has no terms of service."""
    await _asked(request, wire.Nothing)
    return JsonResponse({**NO_TERMS, "needsConsent": False, "canConsent": True})


@router.post(
    "/v3/workersSetTosConsent",
    openapi_extra=documented(wire.SetTosConsent, answer=wire.TosAccepted, needs=Permission.WORKER_READ),
)
async def workers_accept_tos(request: Request) -> Response:
    """The same, whatever is said."""
    await _asked(request, wire.SetTosConsent)
    return JsonResponse(dict(NO_TERMS))


# -- workers -----------------------------------------------------------------------------------------


@router.post(
    "/v3/workersListWorkers", openapi_extra=documented(wire.Nothing, answer=wire.WorkerList, needs=Permission.WORKER_READ)
)
async def workers_list(request: Request) -> Response:
    """The project's workers, newest first."""
    services, scope, _ = await _asked(request, wire.Nothing)
    async with services.database.read() as connection:
        found = await rows.all_of(connection, scope)
    return JsonResponse({"workers": [_worker(worker) for worker in found]})


@router.post(
    "/v3/workersGetWorker",
    openapi_extra=documented(wire.OfWorker, answer=wire.WorkerRead, errors=(404,), needs=Permission.WORKER_READ),
)
async def workers_get(request: Request) -> Response:
    """One worker."""
    services, scope, body = await _asked(request, wire.OfWorker)
    return JsonResponse({"worker": _worker(await _find(services, scope, body.workerId))})


@router.post(
    "/v3/workersCreateWorker",
    openapi_extra=documented(wire.CreateWorker, answer=wire.WorkerCreated, needs=Permission.WORKER_WRITE),
)
async def workers_create(request: Request) -> Response:
    """A new worker, and where its source goes."""
    services, scope, body = await _asked(request, wire.CreateWorker)
    assert scope.project_id is not None
    now = services.clock()
    worker = Worker(ids.worker_id(), scope.team_id, scope.project_id, body.name, None, now, now)
    secret, deployment = _upload(worker, now)
    async with services.database.write() as connection:
        await rows.add(connection, worker)
        await rows.add_deployment(connection, deployment)
        actor = await services.auth.actor(request)
        await audit_log.append(connection, scope.team_id, actor, "worker.created", worker.id, now, project=scope.project_id)
    return JsonResponse({"worker": _worker(worker), **_where(services, secret)})


@router.post(
    "/v3/workersUpdateWorker",
    openapi_extra=documented(wire.UpdateWorker, answer=wire.Upload, errors=(404,), needs=Permission.WORKER_WRITE),
)
async def workers_update(request: Request) -> Response:
    """Where a worker's next source goes. Of those that wait to be built the ten newest are kept."""
    services, scope, body = await _asked(request, wire.UpdateWorker)
    worker = await _find(services, scope, body.workerId)
    now = services.clock()
    secret, deployment = _upload(worker, now)
    async with services.database.write() as connection:
        await rows.add_deployment(connection, deployment)
        forgotten = await rows.forget_waiting(connection, scope, worker.id, MAX_WAITING)
    store = builds.archives(services)
    for deployment_id in forgotten:
        await asyncio.to_thread(store.drop, deployment_id)
    return JsonResponse(_where(services, secret))


@router.post(
    "/v3/workersDeleteWorker",
    openapi_extra=documented(wire.OfWorker, answer=wire.Done, errors=(404,), needs=Permission.WORKER_WRITE),
)
async def workers_delete(request: Request) -> Response:
    """Delete a worker with its secrets, deployments and runs."""
    services, scope, body = await _asked(request, wire.OfWorker)
    worker = await _find(services, scope, body.workerId)
    await builds.forget(services, scope, worker)
    if services.warm is not None:
        services.warm.forget(worker.id)
    async with services.database.write() as connection:
        if not await rows.remove(connection, scope, worker.id):
            raise _unknown(worker.id)
        actor = await services.auth.actor(request)
        await audit_log.append(
            connection, scope.team_id, actor, "worker.deleted", worker.id, services.clock(), project=scope.project_id
        )
    # It is deleted all the same: what stays is looked for again.
    with contextlib.suppress(UnavailableError):
        await builds.drop_archives(services)
    return JsonResponse({})


# -- deploying ---------------------------------------------------------------------------------------


@router.post(
    "/hutch/v1/worker-uploads/{upload}",
    status_code=204,
    openapi_extra=documented(status=204, upload="multipart/form-data", public=True, errors=(400, 404, 503)),
)
async def upload_source(request: Request, upload: str) -> Response:
    """A worker's source: a gzipped tar archive as the part `file`. The path is the secret that `workersCreateWorker` and
    `workersUpdateWorker` answer; it is good for one upload within an hour."""
    services = services_of(request)
    async with services.database.read() as connection:
        found = await rows.uploading(connection, _digest(upload), services.clock() - UPLOAD_LIFE_MS)
    if found is None:
        raise NotFoundError("not_found", "This upload is over, or never was. Deploy again.")
    scope, deployment_id = found
    try:
        content = await _file(request, services.settings.workers.max_archive_bytes)
        store = builds.archives(services)
        await asyncio.to_thread(store.keep, deployment_id, content)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UnavailableError("disk_full", "The server has no room for the archive.", retry_after_s=30) from error
    now = services.clock()
    async with services.database.write() as connection:
        taken = await rows.change_deployment(connection, scope, deployment_id, now, status="uploaded", before=("uploading",))
    if not taken:
        raise ConflictError("conflict", "Another upload was faster.")
    return Response(status_code=204)


async def _file(request: Request, limit: int) -> bytes:
    """The part `file` of a form. Raises `BadRequestError` and `PayloadTooLargeError`."""
    size = 0

    async def chunks() -> AsyncGenerator[bytes, None]:
        nonlocal size
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit + FORM_SLACK_BYTES:
                raise PayloadTooLargeError(
                    "payload_too_large", f"The archive has more than {limit} bytes (workers.max_archive_bytes)."
                )
            yield chunk

    try:
        parser = MultiPartParser(request.headers, chunks(), max_files=1, max_fields=MAX_FIELDS, max_part_size=FORM_SLACK_BYTES)
        form = await parser.parse()
    except (MultiPartException, MultipartParseError, KeyError, ValueError) as error:
        raise BadRequestError("bad_request", "Invalid request: the body should be multipart/form-data with a `file`.") from error
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(form.close)
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise BadRequestError("bad_request", "Invalid request: the form should have a file named `file`.")
        return await file.read()


@router.post(
    "/v3/workersBuildWorker",
    openapi_extra=documented(
        wire.BuildWorker, content=NDJSON, answer=wire.StreamRecord, errors=(404, 409), needs=Permission.WORKER_WRITE
    ),
)
async def workers_build(request: Request) -> Response:
    """Build what was uploaded last. The records are what the build writes, and at the end `{"ok": …}`."""
    services, scope, body = await _asked(request, wire.BuildWorker)
    worker = await _find(services, scope, body.workerId)
    rates = services.worker_rates
    if rates is not None and (wait_ms := rates.build(worker.project_id, services.clock())):
        message = "The project has built too many workers (workers.build_burst, workers.builds_per_day)."
        raise RateLimitedError("rate_limited", message, retry_after_s=-(-wait_ms // 1000))

    async def work(records: Records) -> None:
        async def say(stream: str, text: str) -> None:
            await records.put(line({"_tag": "log", "event": {"stream": stream, "data": text}}))

        try:
            await builds.build(services, scope, worker, say)
        except (BuildFailed, HutchError) as error:
            text = str(error) if isinstance(error, BuildFailed) else error.message
            await records.put(line({"_tag": "error", "error": text}))
            await records.put(line({"_tag": "result", "result": {"ok": False}}))
        else:
            for key, url in (await _addresses(services, scope, worker)).items():
                await say("stdout", f"webhook {key}: {url}")
            await records.put(line({"_tag": "result", "result": {"ok": True}}))

    return ndjson(_told(work))


async def _addresses(services: Services, scope: Scope, worker: Worker) -> dict[str, str]:
    """Of the webhooks of the deployment before, which keep them: `ntn` shows no others."""
    found = await serving(services, scope, worker)
    return await worker_webhooks.addresses(services, scope, worker, found[1]) if found is not None else {}


@router.post(
    "/v3/workersFetchAndSaveCapabilities",
    openapi_extra=documented(
        wire.OfWorker, answer=wire.Deployed, errors=(402, 404, 409, 410, 422), needs=Permission.WORKER_WRITE
    ),
)
async def workers_fetch_capabilities(request: Request) -> Response:
    """Read the manifest of what was built last; from then on that deployment serves."""
    services, scope, body = await _asked(request, wire.OfWorker)
    worker = await _find(services, scope, body.workerId)
    manifest, changed = await runs.fetch_manifest(services, scope, worker)
    network = {"added": list(changed.added), "removed": list(changed.removed)}
    return JsonResponse({"capabilities": await _capabilities(services, scope, worker, manifest), "network": network})


@router.post(
    "/v3/workersListCapabilities",
    openapi_extra=documented(wire.OfWorker, answer=wire.CapabilityList, errors=(404,), needs=Permission.WORKER_READ),
)
async def workers_list_capabilities(request: Request) -> Response:
    """What the deployment that serves can do; nothing before there is one."""
    services, scope, body = await _asked(request, wire.OfWorker)
    worker = await _find(services, scope, body.workerId)
    found = await serving(services, scope, worker)
    listed = await _capabilities(services, scope, worker, found[1]) if found is not None else []
    return JsonResponse({"capabilities": listed})


@router.post(
    "/v3/workersUpdateSyncCapabilityDisabled",
    openapi_extra=documented(wire.SwitchSync, answer=wire.CapabilityRead, errors=(404,), needs=Permission.WORKER_WRITE),
)
async def workers_switch_sync(request: Request) -> Response:
    """Pause a sync, or have it go on by its schedule."""
    services, scope, body = await _asked(request, wire.SwitchSync)
    worker = await _find(services, scope, body.workerId)
    now = services.clock()
    event = Pause(now_ms=now) if body.disabled else Resume(now_ms=now)
    action = "worker.sync_paused" if body.disabled else "worker.sync_resumed"
    await syncs.tell(request, services, scope, worker, body.capabilityKey, event, action)
    return JsonResponse({"capability": {"_tag": "sync", "key": body.capabilityKey, "disabled": body.disabled}})


# -- running -----------------------------------------------------------------------------------------


@router.post(
    "/v3/workersRunCapability",
    openapi_extra=documented(
        wire.RunCapability,
        answer=wire.Result,
        more=(Answer(200, NDJSON, wire.StreamRecord),),
        errors=(402, 404, 409, 410, 422),
        needs=Permission.WORKER_RUN,
    ),
)
async def workers_run(request: Request) -> Response:
    """Run a capability once, in a sandbox of its own, and answer its value. Nothing that it returns is applied."""
    services, scope, body = await _asked(request, wire.RunCapability)
    worker = await _find(services, scope, body.workerId)
    if not body.stream:
        return JsonResponse({"result": await runs.run(services, scope, worker, body.capabilityKey, body.args)})

    async def work(records: Records) -> None:
        async def say(stream: str, text: str) -> None:
            await records.put(line({"_tag": "log", "event": {"stream": stream, "data": text}}))

        try:
            value = await runs.run(services, scope, worker, body.capabilityKey, body.args, say)
        except HutchError as error:
            await records.put(line({"_tag": "error", "error": error.message}))
        else:
            await records.put(line({"_tag": "result", "result": value}))

    return ndjson(_told(work))


@router.post(
    "/v3/workersListRunsForWorker",
    openapi_extra=documented(wire.OfWorker, answer=wire.RunList, errors=(404,), needs=Permission.WORKER_READ),
)
async def workers_list_runs(request: Request) -> Response:
    """The last 200 runs of a worker, newest first."""
    services, scope, body = await _asked(request, wire.OfWorker)
    worker = await _find(services, scope, body.workerId)
    async with services.database.read() as connection:
        found = await rows.runs(connection, scope, worker.id)
    return JsonResponse({"runs": [_run(run) for run in found]})


@router.post(
    "/v3/workersGetRunLogs",
    openapi_extra=documented(wire.GetRunLogs, answer=wire.RunLogs, errors=(404,), needs=Permission.WORKER_LOGS),
)
async def workers_run_logs(request: Request) -> Response:
    """What a run wrote, both streams together; empty while it goes on."""
    services, scope, body = await _asked(request, wire.GetRunLogs)
    worker = await _find(services, scope, body.workerId)
    async with services.database.read() as connection:
        logs = await rows.run_logs(connection, scope, worker.id, body.runId, services.sealer)
    if logs is None:
        raise NotFoundError("not_found", f"Run '{body.runId}' not found.")
    return JsonResponse({"logs": logs})


# -- environment -------------------------------------------------------------------------------------


@router.post(
    "/v3/workersUpsertSecrets",
    openapi_extra=documented(wire.UpsertSecrets, answer=wire.Done, errors=(404,), needs=Permission.WORKER_WRITE),
)
async def workers_upsert_secrets(request: Request) -> Response:
    """Store secrets over those of the same names. Runs have them from now on; the manifest with the next deploy."""
    services, scope, body = await _asked(request, wire.UpsertSecrets)
    worker = await _find(services, scope, body.workerId)
    secrets = {secret.key: secret.value for secret in body.secrets}
    for name, value in secrets.items():
        environment.check(name, value)
    now = services.clock()
    async with services.database.write() as connection:
        await rows.put_secrets(connection, scope, worker.id, secrets, services.sealer, now)
        await rows.touch(connection, scope, worker.id, now)
        actor = await services.auth.actor(request)
        for name in secrets:
            await audit_log.append(
                connection, scope.team_id, actor, "worker.secret_stored", worker.id, now, project=scope.project_id, name=name
            )
    return JsonResponse({})


@router.post(
    "/v3/workersListSecrets",
    openapi_extra=documented(wire.OfWorker, answer=wire.SecretList, errors=(404,), needs=Permission.WORKER_READ),
)
async def workers_list_secrets(request: Request) -> Response:
    """Names of a worker's secrets, never their values."""
    services, scope, body = await _asked(request, wire.OfWorker)
    worker = await _find(services, scope, body.workerId)
    async with services.database.read() as connection:
        names = await rows.secret_names(connection, scope, worker.id)
    return JsonResponse({"secrets": [{"key": name, "createdAt": moment(at)} for name, at in names]})


@router.post(
    "/v3/workersDeleteSecret",
    openapi_extra=documented(wire.DeleteSecret, answer=wire.Done, errors=(404,), needs=Permission.WORKER_WRITE),
)
async def workers_delete_secret(request: Request) -> Response:
    """Delete a secret. Idempotent."""
    services, scope, body = await _asked(request, wire.DeleteSecret)
    worker = await _find(services, scope, body.workerId)
    now = services.clock()
    async with services.database.write() as connection:
        await rows.remove_secret(connection, scope, worker.id, body.key)
        await rows.touch(connection, scope, worker.id, now)
        actor = await services.auth.actor(request)
        await audit_log.append(
            connection, scope.team_id, actor, "worker.secret_deleted", worker.id, now, project=scope.project_id, name=body.key
        )
    return JsonResponse({})


@router.post(
    "/v3/workersPullEnv", openapi_extra=documented(wire.OfWorker, answer=wire.Env, errors=(404,), needs=Permission.WORKER_SECRETS)
)
async def workers_pull_env(request: Request) -> Response:
    """A worker's secrets with their values."""
    services, scope, body = await _asked(request, wire.OfWorker)
    worker = await _find(services, scope, body.workerId)
    async with services.database.read() as connection:
        found = await rows.secrets(connection, scope, worker.id, services.sealer)
    served = await serving(services, scope, worker)
    found |= await connections.variables(services, scope, worker, served[1] if served is not None else None)
    return JsonResponse({"env": [{"key": key, "value": value} for key, value in found.items()]})


# -- logins with others ------------------------------------------------------------------------------


@router.post(
    "/v3/workersStartOauth",
    openapi_extra=documented(wire.OfOauth, answer=wire.OauthStarted, errors=(404,), needs=Permission.WORKER_WRITE),
)
async def workers_start_oauth(request: Request) -> Response:
    """Where a person agrees that a worker may act for them at another service."""
    services, scope, body = await _asked(request, wire.OfOauth)
    worker = await _find(services, scope, body.workerId)
    url, state = await connections.start(services, scope, worker, body.oauthCapabilityKey)
    return JsonResponse({"authorizationUrl": url, "state": state})


@router.post(
    "/v3/workersGetOauthToken",
    openapi_extra=documented(wire.OfOauth, answer=wire.OauthToken, errors=(404,), needs=Permission.WORKER_SECRETS),
)
async def workers_get_oauth_token(request: Request) -> Response:
    """The access token that runs find in their environment, refreshed if need be."""
    services, scope, body = await _asked(request, wire.OfOauth)
    worker = await _find(services, scope, body.workerId)
    key = body.oauthCapabilityKey
    token = await connections.current(services, scope, worker, await connections.config(services, scope, worker, key))
    if token is None:
        raise NotFoundError(
            "oauth_not_connected", f"Nobody has logged in for '{key[:64]}'. Start with `ntn workers oauth start {key[:64]}`."
        )
    ends = token.expires_at_ms
    return JsonResponse({"accessToken": token.access_token, "expiresAt": moment(ends) if ends is not None else None})


@router.get(
    connections.CALLBACK,
    openapi_extra=documented(
        query={
            "state": "What was sent along",
            "code": "What the provider gives for it",
            "error": "Why it gives none",
        },
        content="text/html",
        more=(Answer(400, "text/html", None),),
        public=True,
        errors=(403,),
    ),
)
async def workers_oauth_callback(request: Request) -> Response:
    """Where a provider sends a person back to. The state that comes along is good for one use, within ten minutes."""
    query = request.query_params
    try:
        if "error" in query:
            # The state is used up with it: nobody gets a second try with what was seen in an address.
            with contextlib.suppress(BadRequestError):
                await connections.finish(services_of(request), query.get("state", ""), "")
            raise BadRequestError("oauth_refused", "The provider says that nobody agreed.")
        await connections.finish(services_of(request), query.get("state", ""), query.get("code", ""))
    except (BadRequestError, NotFoundError) as error:
        return _page("Not connected", error.message, 400)
    return _page("Connected", "The worker may use this account from its next run on. You can close this page.", 200)


def _page(title: str, text: str, status: int) -> Response:
    """A page without anything that a stranger could put there."""
    shown, said = html.escape(title), html.escape(text)
    content = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{shown}</title><h1>{shown}</h1><p>{said}</p></html>'
    headers = {"cache-control": "no-store", "referrer-policy": "no-referrer", "content-security-policy": "default-src 'none'"}
    return Response(content, status, headers, "text/html")


# -- common ------------------------------------------------------------------------------------------


async def _asked(request: Request, model: type[Any]) -> tuple[Services, Scope, Any]:
    """Services, the project that the token is for, and the body."""
    services = services_of(request)
    principal = await services.auth.principal(request)
    scope = await services.auth.scope(request, principal, request.query_params.get("projectId"))
    return services, scope, await read(request, model, limit=max(services.settings.server.max_body_bytes, 8 * 1024 * 1024))


async def _find(services: Services, scope: Scope, worker_id: str) -> Worker:
    """Raises `NotFoundError`."""
    async with services.database.read() as connection:
        found = await rows.find(connection, scope, worker_id)
    if found is None:
        raise _unknown(worker_id)
    return found


def _unknown(worker_id: str) -> NotFoundError:
    return NotFoundError("not_found", f"Worker '{worker_id[:64]}' not found in this project.")


def _digest(upload: str) -> str:
    return hashlib.sha256(upload.encode()).hexdigest()


def _upload(worker: Worker, now: int) -> tuple[str, Deployment]:
    """A deployment that waits for its source, and the secret that it comes with."""
    secret = ids.secret()
    return secret, Deployment(
        ids.worker_id(), worker.id, worker.team_id, worker.project_id, "uploading", _digest(secret), None, None, now
    )


def _where(services: Services, secret: str) -> dict[str, Any]:
    return {"url": f"{services.issuer}/api/hutch/v1/worker-uploads/{secret}", "fields": {}}


async def _told(work: Callable[[Records], Awaitable[None]]) -> AsyncIterator[bytes]:
    """The records of some work as they come, and empty lines while none does. When nobody reads any more, the work ends."""
    records: Records = asyncio.Queue(MAX_RECORDS)

    async def whole() -> None:
        try:
            await work(records)
        except Exception:
            log.exception("a worker's stream failed")
            await records.put(line({"_tag": "error", "error": "The server failed to handle the request. Its log says why."}))
        # Not when it is canceled: there may be no room, and nobody who makes some.
        await records.put(None)

    working = asyncio.ensure_future(whole())
    try:
        while True:
            try:
                record = await asyncio.wait_for(records.get(), HEARTBEAT_S)
            except TimeoutError:
                yield b"\n"
                continue
            if record is None:
                return
            yield record
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


def moment(at_ms: int) -> str:
    """A time as ISO 8601, in UTC with milliseconds."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _worker(worker: Worker) -> dict[str, Any]:
    return {
        "workerId": worker.id,
        "name": worker.name,
        "spaceId": worker.project_id,
        "createdAt": moment(worker.created_at),
        "updatedAt": moment(worker.updated_at),
    }


def _run(run: Run) -> dict[str, Any]:
    return {
        "workerId": run.worker_id,
        "spaceId": run.project_id,
        "runId": run.id,
        "name": run.name,
        "startedAt": moment(run.started_at),
        "endedAt": moment(run.ended_at) if run.ended_at is not None else None,
        "exitCode": run.exit_code,
    }


async def _capabilities(services: Services, scope: Scope, worker: Worker, manifest: Manifest) -> list[dict[str, Any]]:
    """What may be shown of them, with the addresses of webhooks, and whether syncs are paused."""
    found: list[dict[str, Any]] = public(manifest)["capabilities"]
    addressed = await worker_webhooks.of_worker(services, scope, worker, manifest)
    addresses = {one.key: worker_webhooks.url_of(services, one) for one in addressed}
    async with services.database.read() as connection:
        known = await worker_syncs.of_worker(connection, scope, worker.id, services.sealer)
    for item in found:
        if item["_tag"] in ("sync", "ai_connector") and item["key"] in known:
            item["disabled"] = known[item["key"]].state.paused
        if item["_tag"] == "webhook" and item["key"] in addresses:
            item["webhookUrl"] = addresses[item["key"]]
    return found
