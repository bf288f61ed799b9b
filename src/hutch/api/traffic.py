"""What passed for a sandbox: bytes by name and by rule, as its gateway counts them, and those of its interface."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from hutch.api.responses import JsonResponse
from hutch.api.routing import PlainRoute, documented
from hutch.api.sandboxes import find, scope_of
from hutch.api.services import services_of
from hutch.control import answers
from hutch.control.permissions import Permission
from hutch.host.protocol import RULE, SessionRef, Tally, Traffic

router = APIRouter(route_class=PlainRoute, tags=["audit"])


@router.get(
    "/hutch/v1/sandboxes/{name}/traffic",
    openapi_extra=documented(query={"projectId": "Id or slug"}, answer=answers.Traffic, needs=Permission.EGRESS_READ),
)
async def read_traffic(request: Request, name: str) -> Response:
    """What passed for the current session of a sandbox until now, or until its end; 404 a day after that."""
    services = services_of(request)
    sandbox = await find(services, await scope_of(request, services), name)
    session = SessionRef(sandbox.current_session_id)
    return JsonResponse(shape(session.session_id, await services.host.call("session.traffic", session, Traffic)))


def shape(session_id: str, traffic: Traffic) -> dict[str, Any]:
    """Those with the most bytes first; `*` is what has no line of its own."""
    tallies = sorted(traffic.tallies.items(), key=lambda entry: -(entry[1].up_bytes + entry[1].down_bytes))
    return {
        "sessionId": session_id,
        "payload": {"up": traffic.up_bytes, "down": traffic.down_bytes},
        "interface": {"egress": traffic.egress_bytes, "ingress": traffic.ingress_bytes},
        "flows": traffic.flows,
        "names": [{"name": key, **_counted(tally)} for key, tally in tallies if not key.startswith(RULE)],
        "rules": [{"rule": key.removeprefix(RULE), **_counted(tally)} for key, tally in tallies if key.startswith(RULE)],
    }


def _counted(tally: Tally) -> dict[str, int]:
    return {
        "connections": tally.connections,
        "requests": tally.requests,
        "denied": tally.denied,
        "injected": tally.injected,
        "up": tally.up_bytes,
        "down": tally.down_bytes,
    }
