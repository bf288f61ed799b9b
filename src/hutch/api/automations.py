"""Automations: triggered with a token, or by a person who clicks a button on a page.

    trigger ──▶ queue ──▶ run                     the same idempotency key: the same job
    button ──▶ address ──▶ page ──click──▶ queue ──▶ page with the result

A button's page needs no account: its address is the secret. It has no scripts, nothing of it can be framed, and it sends only to
itself. Every page that is shown is one press: a reload, a second click and the way back press nothing again.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import html
import re
from typing import Any
from urllib.parse import parse_qs, urlsplit

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from hutch import ids
from hutch.api.body import read, read_body
from hutch.api.responses import JsonResponse
from hutch.api.routing import Answer, PlainRoute, documented
from hutch.api.services import Services, services_of
from hutch.api.worker_paths import PROJECT, capability_of, worker_of
from hutch.api.worker_webhooks import job_shape
from hutch.control import worker_own as own
from hutch.control.permissions import Permission
from hutch.control.records import Scope
from hutch.errors import BadRequestError, ForbiddenError, NotFoundError
from hutch.storage import audit_log
from hutch.storage import buttons as rows
from hutch.storage import worker_jobs as job_rows
from hutch.storage import workers as worker_rows
from hutch.storage.buttons import Button
from hutch.storage.worker_jobs import Job
from hutch.storage.workers import Worker
from hutch.workers import jobs
from hutch.workers.manifest import Capability

router = APIRouter(route_class=PlainRoute, tags=["workers"])

IDEMPOTENCY = "idempotency-key"
_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,100}")
_PRESS = re.compile(r"[A-Za-z0-9_-]{16,64}")
WAIT_S = 60.0
SHOWN_AFTER_S = 3.0
"""How long a click waits for the result before the page says that it goes on."""
FIRST_LOOK_S, LATER_LOOK_S = 0.05, 0.5
MAX_FORM_BYTES = 4096
HTML = "text/html"


@router.post(
    "/hutch/v1/workers/{worker_id}/automations/{key:path}/trigger",
    status_code=202,
    openapi_extra=documented(
        own.Trigger,
        status=202,
        answer=own.JobRead,
        more=(Answer(200, "application/json", own.JobRead),),
        query=PROJECT,
        headers={
            IDEMPOTENCY: (
                "1 to 100 printable ASCII characters: the same key triggers once",
                {"type": "string", "pattern": "^[!-~]{1,100}$"},
            )
        },
        errors=(409,),
        example={"event": {"actionType": "api"}, "wait": False},
        needs=Permission.WORKER_RUN,
    ),
)
async def trigger_automation(request: Request, worker_id: str, key: str) -> Response:
    """Run an automation. 202: it is queued; 200: it is over, as it is when asked to `wait` (for a minute at most) or about an
    idempotency key whose job is over."""
    services, scope, worker = await worker_of(request, worker_id)
    body = await read(request, own.Trigger)
    idempotency_key = request.headers.get(IDEMPOTENCY)
    if idempotency_key is not None and _IDEMPOTENCY_KEY.fullmatch(idempotency_key) is None:
        raise BadRequestError("bad_request", "Invalid request: `Idempotency-Key` has 1 to 100 printable ASCII characters.")
    await capability_of(services, scope, worker, "automation", key)
    event = {"actionType": "api", **body.event}
    job = await _trigger(services, scope, worker, key, event, idempotency_key and f"api:{idempotency_key}", body.retries)
    if body.wait:
        job = await _until_over(services, scope, job, WAIT_S)
    result = await _result(services, job)
    return JsonResponse({"job": job_shape(job, result)}, 200 if job.status in job_rows.ENDED else 202)


@router.get(
    "/hutch/v1/workers/{worker_id}/triggers/{job_id}",
    openapi_extra=documented(query=PROJECT, answer=own.JobRead, needs=Permission.WORKER_READ),
)
async def read_trigger(request: Request, worker_id: str, job_id: str) -> Response:
    """What became of a trigger."""
    services, scope, worker = await worker_of(request, worker_id)
    job = await _job(services, scope, worker.id, job_id)
    if job is None or job.kind != jobs.AUTOMATION:
        raise NotFoundError("not_found", f"Trigger '{job_id[:64]}' not found.")
    return JsonResponse({"job": job_shape(job, await _result(services, job))})


# -- buttons -----------------------------------------------------------------------------------------


@router.post(
    "/hutch/v1/workers/{worker_id}/automations/{key:path}/buttons",
    status_code=201,
    openapi_extra=documented(
        own.NewButton, status=201, answer=own.ButtonMade, query=PROJECT, errors=(409,), needs=Permission.WORKER_WRITE
    ),
)
async def create_button(request: Request, worker_id: str, key: str) -> Response:
    """A page with a button that triggers an automation, for whoever is told its address."""
    services, scope, worker = await worker_of(request, worker_id)
    body = await read(request, own.NewButton)
    await capability_of(services, scope, worker, "automation", key)
    now, secret = services.clock(), ids.secret()
    assert scope.project_id is not None
    button = Button(
        ids.worker_id(), worker.id, scope.team_id, scope.project_id, key, _digest(secret), now, now + body.expires_in_s * 1000
    )
    async with services.database.write() as connection:
        await rows.add(connection, scope, button)
        actor = await services.auth.actor(request)
        await audit_log.append(
            connection, scope.team_id, actor, "worker.button_created", worker.id, now, project=scope.project_id, name=key[:256]
        )
    return JsonResponse({"button": _button(button), "url": f"{services.issuer}/buttons/{secret}"}, 201)


@router.get(
    "/hutch/v1/workers/{worker_id}/automations/{key:path}/buttons",
    openapi_extra=documented(query=PROJECT, answer=own.ButtonList, needs=Permission.WORKER_READ),
)
async def list_buttons(request: Request, worker_id: str, key: str) -> Response:
    """An automation's buttons, newest first, without their addresses."""
    services, scope, worker = await worker_of(request, worker_id)
    async with services.database.read() as connection:
        found = await rows.all_of(connection, scope, worker.id, key.replace("\0", ""), services.clock())
    return JsonResponse({"buttons": [_button(one) for one in found]})


@router.delete(
    "/hutch/v1/workers/{worker_id}/buttons/{button_id}",
    status_code=204,
    openapi_extra=documented(status=204, query=PROJECT, needs=Permission.WORKER_WRITE),
)
async def revoke_button(request: Request, worker_id: str, button_id: str) -> Response:
    """Revoke a button: nothing is at its address any more."""
    services, scope, worker = await worker_of(request, worker_id)
    now = services.clock()
    async with services.database.write() as connection:
        if "\0" in button_id or not await rows.remove(connection, scope, worker.id, button_id):
            raise NotFoundError("not_found", f"Button '{button_id[:64]}' not found.")
        actor = await services.auth.actor(request)
        await audit_log.append(
            connection, scope.team_id, actor, "worker.button_revoked", worker.id, now, project=scope.project_id
        )
    return Response(status_code=204)


# -- a button's pages --------------------------------------------------------------------------------


@router.get("/buttons/{button}", openapi_extra=documented(content=HTML, public=True, errors=(404, 429)))
async def show_button(request: Request, button: str) -> Response:
    """The page with the button."""
    services = services_of(request)
    found, worker, capability = await _opened(services, request, button)
    config = capability.declared
    title = _text(config.get("title")) or found.key
    description = _text(config.get("description"))
    press = ids.secret()
    return _page(
        title,
        f"<h1>{html.escape(title)}</h1><p>{html.escape(description)}</p>"
        f'<form method="post"><input type="hidden" name="press" value="{press}">'
        f"<button>{html.escape(title)}</button></form>"
        f"<footer>{html.escape(worker.name)}</footer>",
    )


@router.post(
    "/buttons/{button}",
    status_code=303,
    openapi_extra=documented(
        status=303,
        content=HTML,
        upload="application/x-www-form-urlencoded",
        public=True,
        errors=(400, 403, 404, 409, 429),
    ),
)
async def press_button(request: Request, button: str) -> Response:
    """A click: triggers the automation, once for each page that was shown, and leads to the result."""
    services = services_of(request)
    found, worker, _ = await _opened(services, request, button)
    _check_origin(request)
    form = parse_qs((await read_body(request, MAX_FORM_BYTES)).decode("latin-1"))
    press = form.get("press", [""])[0]
    if _PRESS.fullmatch(press) is None:
        raise BadRequestError("bad_request", "Invalid request: the form has no `press`. Open the page again.")
    event = {"actionType": "button"}
    job = await _trigger(services, found.scope, worker, found.key, event, f"button:{found.id}:{press}"[:128], 0)
    await _until_over(services, found.scope, job, SHOWN_AFTER_S)
    return Response(status_code=303, headers={**_HEADERS, "location": f"{button}/presses/{job.id}"}, media_type=HTML)


@router.get("/buttons/{button}/presses/{job_id}", openapi_extra=documented(content=HTML, public=True, errors=(404, 429)))
async def show_press(request: Request, button: str, job_id: str) -> Response:
    """What became of a click; while it goes on the page loads itself again."""
    services = services_of(request)
    found, _, capability = await _opened(services, request, button)
    job = await _job(services, found.scope, found.worker_id, job_id)
    if job is None or not (job.idempotency_key or "").startswith(f"button:{found.id}:"):
        raise NotFoundError("not_found", "There is no such press of this button.")
    title = _text(capability.declared.get("title")) or found.key
    result = await _result(services, job)
    over = job.status in job_rows.ENDED
    state = "Done." if job.status == job_rows.DONE else "It failed." if over else "Working…"
    detail = ""
    if over and isinstance(result, dict) and result.get("status") == "error":
        detail = f"<pre>{html.escape(str(result['error']['name']))}: {html.escape(str(result['error']['message'])[:2000])}</pre>"
    again = f'<p><a href="../../{html.escape(button)}">Back</a></p>' if over else ""
    return _page(
        title,
        f'<h1>{html.escape(title)}</h1><p class="{job.status}" role="status">{state}</p>{detail}{again}',
        reload=not over,
    )


_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:32rem;margin:15vh auto;padding:0 1rem;color:#1f2328;background:#fff}
h1{font-size:1.5rem;margin:0 0 .5rem}button{font:inherit;font-weight:600;color:#fff;background:#1f6feb;border:0;border-radius:8px;
padding:.7rem 1.4rem;cursor:pointer}button:focus-visible{outline:3px solid #9ec5fe}
footer{margin-top:3rem;color:#656d76;font-size:.85rem}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:#f6f8fa;padding:.8rem;border-radius:8px}.done{color:#1a7f37}
.dead,.refused{color:#cf222e}@media(prefers-color-scheme:dark){body{background:#0d1117;color:#e6edf3}pre{background:#161b22}}
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_HEADERS = {
    "content-security-policy": f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "x-robots-tag": "noindex",
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
}


def _page(title: str, content: str, *, reload: bool = False) -> Response:
    head = '<meta http-equiv="refresh" content="2">' if reload else ""
    text = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{head}'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body><main>{content}</main></body></html>"
    )
    return Response(text.encode("utf-8", "replace"), 200, _HEADERS, "text/html; charset=utf-8")


def _check_origin(request: Request) -> None:
    """A click comes from the page itself. Raises `ForbiddenError`."""
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    mine = request.headers.get("host", "")
    if (site is not None and site != "same-origin") or (origin is not None and urlsplit(origin).netloc != mine):
        raise ForbiddenError("cross_origin", "A button is pressed on its own page. Open its address.")


async def _opened(services: Services, request: Request, secret: str) -> tuple[Button, Worker, Capability]:
    """The button at an address. Raises `NotFoundError`."""
    unknown = NotFoundError("not_found", "There is no button at this address, or not any more.")
    async with services.database.read() as connection:
        found = await rows.opened(connection, _digest(secret), services.clock())
        worker = await worker_rows.find(connection, found.scope, found.worker_id) if found is not None else None
    if found is None or worker is None:
        services.auth.count_unauthorized(request)
        raise unknown
    try:
        return found, worker, await capability_of(services, found.scope, worker, "automation", found.key)
    except NotFoundError as error:
        raise unknown from error


# -- common ------------------------------------------------------------------------------------------


async def _trigger(
    services: Services, scope: Scope, worker: Worker, key: str, event: dict[str, Any], idempotency_key: str | None, retries: int
) -> Job:
    job, _ = await jobs.enqueue(
        services, scope, worker.id, jobs.AUTOMATION, key, event, idempotency_key=idempotency_key, retries=retries
    )
    return job


async def _until_over(services: Services, scope: Scope, job: Job, wait_s: float) -> Job:
    """The job when it is over, or as it is after so long."""
    loop = asyncio.get_running_loop()
    end, pause = loop.time() + wait_s, FIRST_LOOK_S
    while job.status not in job_rows.ENDED and loop.time() < end:
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, LATER_LOOK_S)
        found = await _job(services, scope, job.worker_id, job.id)
        if found is None:
            raise NotFoundError("not_found", "The worker was deleted.")
        job = found
    return job


async def _job(services: Services, scope: Scope, worker_id: str, job_id: str) -> Job | None:
    if "\0" in job_id:
        return None
    async with services.database.read() as connection:
        return await job_rows.find(connection, scope, worker_id, job_id)


async def _result(services: Services, job: Job) -> Any:
    async with services.database.read() as connection:
        return (await job_rows.content(connection, job.scope, job.id, services.sealer))[1]


def _button(button: Button) -> dict[str, Any]:
    return {"id": button.id, "created_at": button.created_at, "expires_at": button.expires_at}


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
