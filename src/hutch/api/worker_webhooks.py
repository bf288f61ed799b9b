"""Webhooks of workers: the addresses that others call, and what their owners see and change.

    request ─▶ rates ─▶ address ─▶ blocked? ─▶ verify, where the worker does ─▶ queue ─▶ 202, or what `verify` answers

Whoever calls one needs nothing but its address. The body is kept as it came until the delivery is over. The decisions are those
of `hutch.workers.webhooks`; the queue is `hutch.workers.jobs`.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from typing import Any
from urllib.parse import parse_qsl, quote

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from hutch.api import paging
from hutch.api.body import read, read_body
from hutch.api.errors import error_response
from hutch.api.responses import JsonResponse
from hutch.api.routing import JSON, Answer, PlainRoute, documented
from hutch.api.services import Services, services_of
from hutch.api.worker_paths import PAGE, PROJECT, before, capability_of, declares_verify, next_of, worker_of
from hutch.control import worker_own as own
from hutch.control.permissions import Permission
from hutch.control.records import Scope
from hutch.errors import (
    BadRequestError,
    ConflictError,
    ForbiddenError,
    HutchError,
    NotFoundError,
    RateLimitedError,
    UnavailableError,
)
from hutch.storage import audit_log
from hutch.storage import webhooks as rows
from hutch.storage import worker_jobs as job_rows
from hutch.storage import workers as worker_rows
from hutch.storage.webhooks import Webhook
from hutch.storage.worker_jobs import Job
from hutch.storage.workers import Worker
from hutch.workers import jobs, runs, webhooks
from hutch.workers import serving as deployments
from hutch.workers.manifest import Capability, Manifest
from hutch.workers.outcome import Failure, Outcome
from hutch.workers.runs import How

router = APIRouter(route_class=PlainRoute, tags=["workers"])

log = logging.getLogger(__name__)

PATH = "/webhooks/worker/{project_id}/{worker_id}/{address}/{webhook:path}"
ANSWERS = (
    Answer(200, JSON, Any),
    Answer(200, "text/plain", None),
    Answer(429, JSON, own.TooMany),
)
STATUSES = (400, 403, 404, 405)
TRY_AGAIN_S = 60
NO_TIME = Failure(name="RunTimeoutError", message="It took too long.", made_here=True)


# -- the addresses -----------------------------------------------------------------------------------


@router.post(
    PATH,
    status_code=202,
    openapi_extra=documented(
        status=202, answer=own.Accepted, more=ANSWERS, errors=STATUSES, upload="application/octet-stream", public=True
    ),
)
async def call_webhook(request: Request, project_id: str, worker_id: str, address: str, webhook: str) -> Response:
    """Deliver an event to a worker. It is answered 202 and handled later; where the worker verifies requests, with what it
    answers, any status of 2xx or 4xx."""
    return await _called(request, project_id, worker_id, address, webhook)


@router.get(PATH, openapi_extra=documented(answer=Any, more=ANSWERS, errors=STATUSES, public=True))
async def ask_webhook(request: Request, project_id: str, worker_id: str, address: str, webhook: str) -> Response:
    """A sender's question whether the address is there, for workers that verify; 405 for others."""
    return await _called(request, project_id, worker_id, address, webhook)


@router.head(PATH, openapi_extra=documented(answer=Any, more=ANSWERS, errors=STATUSES, public=True))
async def probe_webhook(request: Request, project_id: str, worker_id: str, address: str, webhook: str) -> Response:
    """As `GET`, without the body."""
    return await _called(request, project_id, worker_id, address, webhook)


async def _called(request: Request, project_id: str, worker_id: str, address: str, key: str) -> Response:
    services = services_of(request)
    try:
        found, worker, capability = await _addressed(services, request, project_id, worker_id, address, key)
    except RateLimitedError:
        return _refused(webhooks.TOO_MANY)
    scope = Scope(found.team_id, found.project_id)
    rates = services.worker_rates
    limited = rates is not None and not rates.requested(project_id, worker_id, services.clock())
    can_verify = declares_verify(capability)
    decided = webhooks.admit(found.state, request.method, can_verify=can_verify, limited=limited)
    if isinstance(decided, webhooks.Answer):
        return _refused(decided)
    raw = await read_body(request, services.settings.workers.max_webhook_bytes)
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers.raw]
    if decided is webhooks.Admission.QUEUE:
        return await _queued(services, scope, worker, key, request.method, headers, raw, None)
    query = parse_qsl(request.url.query, keep_blank_values=True)
    url = url_of(services, found) + (f"?{request.url.query}" if request.url.query else "")
    context = webhooks.verify_request(request.method, url, query, headers, raw)
    outcome = await _verification(services, scope, worker, key, context)
    verified = await _counted(services, scope, worker, key, outcome)
    if verified.queue:
        return await _queued(services, scope, worker, key, request.method, headers, raw, verified.answer)
    if isinstance(outcome, Failure) or verified.answer in (webhooks.INVALID, webhooks.BUSY):
        return _refused(verified.answer)
    return _said(verified.answer)


async def _addressed(
    services: Services, request: Request, project_id: str, worker_id: str, address: str, key: str
) -> tuple[Webhook, Worker, Capability]:
    """Whose address it is. Raises `NotFoundError`, the same whatever of it is wrong."""
    unknown = NotFoundError("not_found", "There is no webhook at this address.")
    found: Webhook | None = None
    if not any("\0" in part for part in (project_id, worker_id, address, key)):
        async with services.database.read() as connection:
            found = await rows.addressed(connection, project_id, worker_id, key)
    if found is None or not hmac.compare_digest(found.address.encode(), address.encode("utf-8", "surrogatepass")):
        services.auth.count_unauthorized(request)
        raise unknown
    scope = Scope(found.team_id, found.project_id)
    async with services.database.read() as connection:
        worker = await worker_rows.find(connection, scope, worker_id)
    if worker is None:
        raise unknown
    try:
        return found, worker, await capability_of(services, scope, worker, "webhook", key)
    except NotFoundError as error:
        raise unknown from error


async def _queued(
    services: Services,
    scope: Scope,
    worker: Worker,
    key: str,
    method: str,
    headers: list[tuple[str, str]],
    raw: bytes,
    answer: webhooks.Answer | None,
) -> Response:
    """Queue an event, and answer what the worker says or that it is accepted."""
    rates = services.worker_rates
    if rates is not None and scope.project_id is not None and rates.delivered(scope.project_id, services.clock()):
        return _refused(webhooks.TOO_MANY)
    content = jobs.kept(method, headers, raw)
    try:
        job, _ = await jobs.enqueue(services, scope, worker.id, jobs.WEBHOOK, key, content, retries=len(webhooks.RETRY_DELAYS_MS))
    except RateLimitedError:
        return _refused(webhooks.TOO_MANY)
    return _said(answer or webhooks.accepted(job.id))


async def _verification(services: Services, scope: Scope, worker: Worker, key: str, context: Any) -> Outcome:
    """What the worker says of a request, within the time that there is. A run that takes longer ends by itself."""
    if not _may_verify(services, worker.project_id):
        return NO_TIME
    deadline = asyncio.get_running_loop().time() + webhooks.VERIFY_MS / 1000
    how = How(verify=True, deadline=deadline)
    task = asyncio.create_task(runs.execute(services, scope, worker, key, context, how=how))
    services.verifications[task] = worker.project_id
    task.add_done_callback(services.verifications.pop)
    done, _ = await asyncio.wait((task,), timeout=webhooks.VERIFY_MS / 1000)
    if not done:
        task.add_done_callback(_drop)
        return NO_TIME
    try:
        return task.result().outcome
    except HutchError as error:
        log.info("a request of a webhook could not be verified: %s", error.message)
        return Failure(name="RunLostError", message=error.message, made_here=True)


def _may_verify(services: Services, project_id: str) -> bool:
    """Whether there is room for one more. A project has half of it at most: programs that never answer would keep out everybody
    else's webhooks."""
    most = services.settings.workers.run_concurrency
    own = sum(found == project_id for found in services.verifications.values())
    return len(services.verifications) < most and own < max(1, most // 2)


def _drop(task: asyncio.Task[Any]) -> None:
    """Nobody waits for it any more."""
    if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, HutchError):
        log.error("a verification failed", exc_info=error)


async def _counted(services: Services, scope: Scope, worker: Worker, key: str, outcome: Outcome) -> webhooks.Verified:
    """What a verification means, with its effect on the count written down."""
    async with services.database.write() as connection:
        found = await rows.find(connection, scope, worker.id, key, changing=True)
        state = found.state if found is not None else webhooks.WebhookState()
        verified = webhooks.verified(state, outcome)
        if found is not None and verified.state != state:
            await rows.save(connection, scope, worker.id, key, verified.state)
    return verified


def _said(answer: webhooks.Answer) -> Response:
    """What a worker answers. It must not be a page of this server's origin."""
    headers = {"x-content-type-options": "nosniff", "cache-control": "no-store", "content-security-policy": "sandbox"}
    media = f"{answer.content_type}; charset=utf-8"
    return Response(answer.body.encode("utf-8", "replace"), answer.status, headers | answer.headers, media)


def _refused(answer: webhooks.Answer) -> Response:
    """A refusal that is not the worker's: in the form of all errors, but for the one that the vendor documents."""
    if answer.status == 429:
        return _said(msgspec.structs.replace(answer, headers={"Retry-After": str(TRY_AGAIN_S)}))
    if answer.status == 405:
        body = {"error": {"code": "method_not_allowed", "message": "This webhook only takes POST."}}
        return JsonResponse(body, 405, [(b"allow", answer.headers["Allow"].encode())])
    errors: dict[int, HutchError] = {
        400: BadRequestError("webhook_unverified", "The worker could not verify the request."),
        403: ForbiddenError(
            "webhook_blocked", "The webhook is blocked, as verifications failed in a row. Deploy the worker again, or switch it."
        ),
        503: UnavailableError("webhook_busy", "The request could not be verified in time.", retry_after_s=webhooks.RETRY_AFTER_S),
    }
    return error_response(errors[answer.status])


def url_of(services: Services, webhook: Webhook) -> str:
    """Where a webhook is called."""
    key = quote(webhook.key, safe="")
    settings = services.settings
    own = settings.ingress_webhook_url() if services.webhooks_port is not None else services.issuer
    base = settings.workers.webhook_url or own
    return f"{base}/webhooks/worker/{webhook.project_id}/{webhook.worker_id}/{webhook.address}/{key}"


async def of_worker(services: Services, scope: Scope, worker: Worker, manifest: Manifest) -> list[Webhook]:
    """The webhooks of a manifest, with their addresses."""
    keys = [item.key for item in manifest.capabilities if item.tag == "webhook"]
    if not keys:
        return []
    async with services.database.read() as connection:
        return await rows.all_of(connection, scope, worker.id, keys)


async def addresses(services: Services, scope: Scope, worker: Worker, manifest: Manifest) -> dict[str, str]:
    """Where the webhooks of a manifest are called, by key."""
    return {one.key: url_of(services, one) for one in await of_worker(services, scope, worker, manifest)}


# -- their owners ------------------------------------------------------------------------------------


@router.get(
    "/hutch/v1/workers/{worker_id}/webhooks",
    openapi_extra=documented(query=PROJECT, answer=own.WebhookList, needs=Permission.WORKER_READ),
)
async def list_webhooks(request: Request, worker_id: str) -> Response:
    """A worker's webhooks with their addresses."""
    services, scope, worker = await worker_of(request, worker_id)
    found = await deployments.serving(services, scope, worker)
    if found is None:
        return JsonResponse({"webhooks": []})
    manifest = found[1]
    known = await of_worker(services, scope, worker, manifest)
    return JsonResponse({"webhooks": [_webhook(services, one, manifest.capability(one.key)) for one in known]})


@router.patch(
    "/hutch/v1/workers/{worker_id}/webhooks/{key:path}",
    openapi_extra=documented(
        own.ChangeWebhook,
        query=PROJECT,
        answer=own.WebhookRead,
        example={"verification": False},
        needs=Permission.WORKER_WRITE,
    ),
)
async def change_webhook(request: Request, worker_id: str, key: str) -> Response:
    """Whether a webhook's requests are verified. A change also opens one that is blocked."""
    services, scope, worker = await worker_of(request, worker_id)
    body = await read(request, own.ChangeWebhook)
    capability = await capability_of(services, scope, worker, "webhook", key)
    now = services.clock()
    async with services.database.write() as connection:
        found = await rows.find(connection, scope, worker.id, key, changing=True)
        if found is None:
            raise NotFoundError("not_found", f"The worker has no webhook '{key[:64]}'.")
        state = webhooks.switched(found.state, verifies=body.verification)
        await rows.save(connection, scope, worker.id, key, state)
        actor = await services.auth.actor(request)
        await audit_log.append(
            connection, scope.team_id, actor, "worker.webhook_changed", worker.id, now, project=scope.project_id, name=key[:256]
        )
        found = await rows.find(connection, scope, worker.id, key)
    assert found is not None
    return JsonResponse({"webhook": _webhook(services, found, capability)})


@router.get(
    "/hutch/v1/workers/{worker_id}/deliveries",
    openapi_extra=documented(
        query=PROJECT | PAGE | {"webhook": "Key of a webhook", "status": "queued, running, done, refused or dead"},
        answer=own.DeliveryPage,
        needs=Permission.WORKER_READ,
    ),
)
async def list_deliveries(request: Request, worker_id: str) -> Response:
    """Events that webhooks took, newest first. Those that are over are kept for 30 days."""
    services, scope, worker = await worker_of(request, worker_id)
    key, limit = paging.text(request, "webhook", 256), paging.limit(request)
    status = paging.choice(request, "status", "", ("", *STATUSES_OF_JOBS))
    query = f"deliveries {worker.id} {key} {status}"
    async with services.database.read() as connection:
        found = await job_rows.page(
            connection,
            scope,
            worker.id,
            kind=jobs.WEBHOOK,
            key=key,
            status=status or None,
            before=before(request, query),
            limit=limit,
        )
        shown = [job_shape(job, (await job_rows.content(connection, scope, job.id, services.sealer))[1]) for job in found]
    return JsonResponse({"deliveries": shown, "next": next_of([job.number for job in found], limit, query)})


STATUSES_OF_JOBS = (job_rows.QUEUED, job_rows.RUNNING, *job_rows.ENDED)


@router.post(
    "/hutch/v1/workers/{worker_id}/deliveries/{job_id}/redeliver",
    status_code=202,
    openapi_extra=documented(status=202, query=PROJECT, answer=own.JobRead, errors=(409,), needs=Permission.WORKER_RUN),
)
async def redeliver(request: Request, worker_id: str, job_id: str) -> Response:
    """Deliver an event that is over once more, with the same `deliveryId` and all its attempts."""
    services, scope, worker = await worker_of(request, worker_id)
    async with services.database.write() as connection:
        found = await job_rows.find(connection, scope, worker.id, job_id) if "\0" not in job_id else None
        if found is None or found.kind != jobs.WEBHOOK:
            raise NotFoundError("not_found", f"Delivery '{job_id[:64]}' not found.")
        if not await job_rows.again(connection, scope, worker.id, job_id, services.clock()):
            raise ConflictError("delivery_not_over", f"The delivery is {found.status}. It can be repeated when it is over.")
        found = await job_rows.find(connection, scope, worker.id, job_id)
    assert found is not None
    if services.jobs is not None:
        services.jobs.due.set()
    return JsonResponse({"job": job_shape(found, None)}, 202)


def _webhook(services: Services, webhook: Webhook, capability: Capability | None) -> dict[str, Any]:
    return {
        "key": webhook.key,
        "url": url_of(services, webhook),
        "can_verify": capability is not None and declares_verify(capability),
        "verification": webhook.verifies,
        "failures": webhook.failures,
        "blocked": webhook.state.blocked,
    }


def job_shape(job: Job, result: Any) -> dict[str, Any]:
    """A job as its owner sees it; `result` is what came of its last attempt."""
    shown: dict[str, Any] = {
        "id": job.id,
        "key": job.key,
        "status": job.status,
        "attempts": job.attempts,
        "created_at": job.created_at,
    }
    if job.status == job_rows.QUEUED:
        shown["not_before"] = job.not_before
    if job.ended_at is not None:
        shown["ended_at"] = job.ended_at
    if job.run_id is not None:
        shown["run_id"] = job.run_id
    if isinstance(result, dict) and result.get("status") == "error":
        shown["error"] = result["error"]
    return shown
