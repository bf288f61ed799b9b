"""The audit of a sandbox: what its egress firewall decided, and why. The host keeps it; here it is passed on."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from hutch.api import paging
from hutch.api.responses import JsonResponse
from hutch.api.routing import PlainRoute, documented
from hutch.api.sandboxes import find, scope_of
from hutch.api.services import services_of
from hutch.control import answers
from hutch.control.permissions import Permission
from hutch.host.protocol import AuditPage, AuditRead

router = APIRouter(route_class=PlainRoute, tags=["audit"])

DEFAULT_RECORDS = 100
MAX_RECORDS = 1000


@router.get(
    "/hutch/v1/sandboxes/{name}/audit",
    openapi_extra=documented(
        query={
            "projectId": "Id or slug",
            "after": "`next` of the answer before; default 0: from the first record that is kept",
            "limit": f"1 to {MAX_RECORDS}, default {DEFAULT_RECORDS}",
        },
        answer=answers.AuditPage,
        needs=Permission.EGRESS_READ,
    ),
)
async def read_audit(request: Request, name: str) -> Response:
    """Records of a sandbox, oldest first. `next` is where to read on, also when there is nothing new yet."""
    services = services_of(request)
    scope = await scope_of(request, services)
    after = paging.number(request, "after", 0, least=0, digits=18)
    limit = min(paging.number(request, "limit", DEFAULT_RECORDS, least=1), MAX_RECORDS)
    sandbox = await find(services, scope, name)
    asked = AuditRead(sandbox_id=sandbox.id, after=after, limit=limit)
    page = await services.host.call("audit.read", asked, AuditPage)
    # Byte for byte as the gateway wrote them, because each record has the hash of the one before.
    records = [msgspec.Raw(record.encode()) for record in page.records]
    return JsonResponse({"records": records, "next": page.next})
