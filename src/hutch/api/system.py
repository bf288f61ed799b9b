"""The server about itself: who asks, health, metrics, and its own documentation."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from hutch import __version__
from hutch.api import openapi
from hutch.api.metrics import CONTENT_TYPE
from hutch.api.responses import JsonResponse
from hutch.api.routing import PlainRoute, documented
from hutch.api.services import Services, services_of
from hutch.control import answers
from hutch.control.permissions import Permission
from hutch.control.shapes import Json
from hutch.errors import UnavailableError
from hutch.host.protocol import HostInfo
from hutch.storage import members, tenants

router = APIRouter(route_class=PlainRoute, tags=["system"])


@router.get("/hutch/v1/whoami", openapi_extra=documented(answer=answers.WhoAmI, needs=Permission.SELF))
async def whoami(request: Request) -> Response:
    """The team, project and role of the token."""
    services = services_of(request)
    principal = await services.auth.principal(request)
    async with services.database.read() as connection:
        team = await tenants.find_team(connection, principal.team_id)
        project = None
        if principal.project_id is not None:
            project = await tenants.find_project(connection, principal.team_id, principal.project_id)
        member = None
        if principal.member_id is not None:
            member = await members.find(connection, principal.team_id, principal.member_id)
    answer: Json = {"token_id": principal.token_id, "role": str(principal.role), "version": __version__}
    answer["permissions"] = sorted(principal.permissions)
    if principal.member_id is not None:
        answer["member_id"] = principal.member_id
    if member is not None:
        answer["member"] = {"id": member.id, "identity": member.identity, "name": member.name}
        if member.email:
            answer["member"]["email"] = member.email
    if team is not None:
        answer["team"] = {"id": team.id, "slug": team.slug}
    if project is not None:
        answer["project"] = {"id": project.id, "slug": project.slug}
    return JsonResponse(answer)


@router.get("/healthz", openapi_extra=documented(public=True, answer=answers.Alive))
async def healthz(request: Request) -> Response:
    """200 while this process answers."""
    return JsonResponse({"status": "ok"})


@router.get("/health", openapi_extra=documented(public=True, answer=answers.Alive))
async def health(request: Request) -> Response:
    """The same, where the vendor's terminal clients look for it."""
    return JsonResponse({"status": "ok"})


@router.get("/readyz", openapi_extra=documented(public=True, answer=answers.Ready))
async def readyz(request: Request) -> Response:
    """200 while a create would succeed; 503 with the reason otherwise."""
    info = await ready(services_of(request))
    return JsonResponse({"status": "ready", "isolation": info.isolation, "version": __version__})


async def ready(services: Services) -> HostInfo:
    """What the host says, if a create would succeed. Raises `UnavailableError`."""
    if services.draining:
        raise UnavailableError("shutting_down", "The server is shutting down.", retry_after_s=2)
    async with services.database.read() as connection:
        await tenants.find_team(connection, services.default_team_id)
    info = await services.host_info()
    if not info.ready:
        raise UnavailableError(
            "host_not_ready", f"The host can't start sandboxes yet: {info.reason or 'it is starting'}.", retry_after_s=1
        )
    return info


@router.get("/metrics", openapi_extra=documented(public=True, content="text/plain"))
async def metrics(request: Request) -> Response:
    """Metrics in the text format of Prometheus."""
    services = services_of(request)
    await services.refresh_metrics()
    response = Response(services.metrics.render())
    response.headers["content-type"] = CONTENT_TYPE.decode()
    return response


@router.get("/openapi.json", openapi_extra=documented(public=True, answer=Any))
async def openapi_document(request: Request) -> Response:
    """This API, described by OpenAPI."""
    app = request.app
    if app.openapi_schema is None:
        app.openapi_schema = openapi.document(app.routes)
    return JsonResponse(app.openapi_schema)
