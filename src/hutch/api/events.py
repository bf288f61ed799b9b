"""Events: what owners of budgets are told. Taken from the host as its usage windows are, written once, listed, sent to webhooks.

The cursor of what was written is in the transaction of the events, and an event that is told twice is the same one.
"""

from __future__ import annotations

import asyncio
import logging

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from hutch.api import paging
from hutch.api.responses import JsonResponse
from hutch.api.routing import PlainRoute, documented
from hutch.api.services import Services, services_of
from hutch.control import answers, shapes
from hutch.control.permissions import Permission
from hutch.errors import HutchError
from hutch.metering.notices import NumberedNotice
from hutch.storage import budget_events as rows
from hutch.storage import hosts
from hutch.wire import Stream
from hutch.wire.connection import ConnectionClosed, Message

log = logging.getLogger(__name__)

router = APIRouter(route_class=PlainRoute, tags=["usage"])

DEFAULT_EVENTS = 100
MAX_EVENTS = 1000
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0
BATCH = 256


@router.get(
    "/hutch/v1/events",
    openapi_extra=documented(
        query={
            "projectId": "Id or slug; default: the token's, or with a token of a team all of it",
            "after": "`next` of the answer before; default 0: from the first event",
            "limit": f"1 to {MAX_EVENTS}, default {DEFAULT_EVENTS}",
        },
        answer=answers.EventPage,
        needs=Permission.BUDGET_READ,
    ),
)
async def read_events(request: Request) -> Response:
    """What owners of budgets were told: thresholds, soft limits and limits that were reached, oldest first."""
    services = services_of(request)
    principal = await services.auth.principal(request)
    scope = await services.auth.scope(request, principal, request.query_params.get("projectId"), one=False)
    after = paging.number(request, "after", 0, least=0, digits=18)
    limit = min(paging.number(request, "limit", DEFAULT_EVENTS, least=1), MAX_EVENTS)
    async with services.database.read() as connection:
        found = await rows.page(connection, scope, after=after, limit=limit)
    return JsonResponse({"events": [shapes.budget_event(event) for event in found], "next": found[-1].seq if found else after})


async def follow(services: Services) -> None:
    """Take notices for ever, connecting again when the host restarts."""
    pause = FIRST_PAUSE_S
    while True:
        try:
            await _follow(services)
        except HutchError:
            # `host_events` says that the host does not answer.
            pass
        except Exception:
            log.exception("events could not be written")
        await asyncio.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE_S)


async def _follow(services: Services) -> None:
    cursor = f"{(await services.host_info()).host_id}:notices"
    async with services.database.read() as connection:
        after = await hosts.cursor(connection, cursor)
    stream = await services.host.open("budget.notices", {"after": after})
    try:
        stream.send_end()
        await stream.reply()
        while True:
            told = await _batch(stream)
            async with services.database.write() as connection:
                made = await rows.apply(connection, [numbered.notice for numbered in told])
                await hosts.set_cursor(connection, cursor, max(numbered.seq for numbered in told))
            if made:
                services.webhooks_due.set()
    finally:
        stream.cancel()


async def _batch(stream: Stream) -> list[NumberedNotice]:
    """At least one notice, and what else has arrived."""
    told: list[NumberedNotice] = []
    while not told or (stream.waiting_items and len(told) < BATCH):
        item = await stream.next()
        if item is None:
            raise ConnectionClosed("the host ended its notices")
        if isinstance(item, Message):
            told.append(item.decode(NumberedNotice))
    return told
