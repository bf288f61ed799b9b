"""Hutch's own: who changed what in a team. Entries are chained (`hutch.control.audit_log`)."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from hutch.api import paging
from hutch.api.responses import JsonResponse
from hutch.api.routing import PlainRoute, documented
from hutch.api.services import services_of
from hutch.control import answers, shapes
from hutch.control.permissions import Permission
from hutch.storage import audit_log as rows

router = APIRouter(route_class=PlainRoute, tags=["teams"])

DEFAULT_ENTRIES = 100
MAX_ENTRIES = 1000


@router.get(
    "/hutch/v1/teams/{team}/audit-log",
    openapi_extra=documented(
        query={
            "after": "`next` of the answer before; default 0: from the first entry",
            "limit": f"1 to {MAX_ENTRIES}, default {DEFAULT_ENTRIES}",
        },
        answer=answers.LogPage,
        needs=Permission.AUDIT_READ,
    ),
)
async def read_audit_log(request: Request, team: str) -> Response:
    """Entries of a team's audit log, oldest first."""
    services = services_of(request)
    found = await services.auth.named_team(request, await services.auth.principal(request), team)
    after = paging.number(request, "after", 0, least=0, digits=18)
    limit = min(paging.number(request, "limit", DEFAULT_ENTRIES, least=1), MAX_ENTRIES)
    async with services.database.read() as connection:
        head = await rows.head(connection, found.id)
        entries = await rows.page(connection, found.id, after=after, until=head.seq, limit=limit)
    answer = {
        "entries": [shapes.log_entry(entry, digest) for entry, digest in entries],
        "next": entries[-1][0].seq if entries else after,
        "head": {"seq": head.seq, "hash": head.hash},
    }
    return JsonResponse(answer)
