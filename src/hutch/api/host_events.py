"""Following what happens to sessions on the host: timeouts, crashes, stops that nobody here asked for.

On each new connection the database is first compared with the host's own listing, because events may be lost with a host's
journal and sessions with a host; then events are applied as they come. Both are idempotent (`control.lifecycle.merge`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence

from hutch.api import budgets, drives, forwarding, network_bounds, network_policy, snapshots
from hutch.api.services import Services
from hutch.control.lifecycle import is_live, merge
from hutch.control.records import Scope, SessionRow
from hutch.errors import GoneError, HutchError, NotFoundError
from hutch.host.protocol import PersistRequest, SessionEvent, SessionRecord, SessionRef, SessionStatus, StopRequest
from hutch.storage import hosts, sandboxes, sessions
from hutch.storage import reports as session_reports
from hutch.wire import Stream
from hutch.wire.connection import ConnectionClosed, Message

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0
BATCH = 256
BATCH_PAUSE_S = 0.02
"""How long one event waits for others, so that a burst of creates costs a few transactions and not one each."""


async def follow_host(services: Services) -> None:
    """Follow the host for ever, connecting again when it restarts."""
    pause, up = FIRST_PAUSE_S, True
    while True:
        try:
            async for _ in _followed(services):
                if not up:
                    log.info("the host answers again")
                pause, up = FIRST_PAUSE_S, True
        except HutchError as error:
            if up:
                log.warning("the host does not answer: %s", error.message)
            up = False
        except Exception:
            log.exception("an event of the host could not be applied")
        await asyncio.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE_S)


async def _followed(services: Services) -> AsyncIterator[None]:
    """Reconcile, then apply events; yields after each step that went well."""
    info = await services.host_info()
    async with services.database.read() as connection:
        after = await hosts.cursor(connection, info.host_id)
    stream = await services.host.open("events", {"after": after})
    try:
        stream.send_end()
        await stream.reply()
        await forwarding.announce(services)
        await budgets.settle(services)
        services.announcer.everything()
        await reconcile(services)
        yield
        while True:
            await apply(services, info.host_id, await _batch(stream))
            yield
    finally:
        stream.cancel()


async def _batch(stream: Stream) -> list[SessionEvent]:
    """At least one event, and what else has arrived."""
    events: list[SessionEvent] = []
    while not events or (stream.waiting_items and len(events) < BATCH):
        item = await stream.next()
        if item is None:
            raise ConnectionClosed("the host ended its events")
        if isinstance(item, Message):
            events.append(item.decode(SessionEvent))
            if len(events) == 1:
                await asyncio.sleep(BATCH_PAUSE_S)
    return events


async def apply(services: Services, host_id: str, events: list[SessionEvent]) -> None:
    """Write events and how far we got."""
    await _write(services, [event.session for event in events], (host_id, max(event.seq for event in events)))
    services.metrics.host_events.inc(len(events))


async def reconcile(services: Services) -> None:
    """Make what we believe about live sessions what the host says."""
    async with services.database.read() as connection:
        believed = {row.id: row for row in await sessions.live(connection, services.sealer)}
    reports = {report.session_id: report for report in await services.host.collect("session.list", {}, SessionRecord)}
    now = services.clock()
    news = [report for report in reports.values() if _is_news(believed.get(report.session_id), report, now)]
    if news:
        await _write(services, news)
    for row in believed.values():
        if row.id not in reports and row.id not in services.starting:
            await _ended_unseen(services, row)
    for report in reports.values():
        if report.session_id not in believed and is_live(report.status):
            await _stop_if_over(services, report.session_id)
    await snapshots.reconcile(services)
    await drives.settle(services)
    live = [row for row in believed.values() if row.id in reports]
    await network_policy.settle(services, live)
    await network_bounds.settle(services, live)


def _is_news(row: SessionRow | None, report: SessionRecord, now: int) -> bool:
    return row is not None and merge(row, report, now).changed


async def _write(services: Services, reports: Sequence[SessionRecord], cursor: tuple[str, int] | None = None) -> None:
    """Write reports, and how far the host's events were applied, in one transaction."""
    now = services.clock()
    async with services.database.write() as connection:
        for report in reports:
            await session_reports.apply(connection, report, services.sealer, now)
        if cursor is not None:
            await hosts.set_cursor(connection, *cursor)


async def _ended_unseen(services: Services, row: SessionRow) -> None:
    """A session that is not in the host's listing: it may still remember how it ended."""
    try:
        await services.apply(await services.host.call("session.get", SessionRef(row.id), SessionRecord))
        return
    except (NotFoundError, GoneError):
        pass
    log.warning("session %s of sandbox %s is unknown to the host", row.id, row.sandbox_name)
    await services.mark_lost(row.id)
    if row.status is SessionStatus.PENDING:
        # Its create was never answered, so nobody knows of the sandbox; its name must not stay taken.
        async with services.database.write() as connection:
            await sandboxes.remove(connection, Scope(row.team_id, row.project_id), row.sandbox_id, services.clock())


async def _stop_if_over(services: Services, session_id: str) -> None:
    """A session that runs although it is written as over (a create that was given up while the host was away) is stopped. One
    that is not in the database at all is left to its timeout: maybe it is the database that is the wrong one."""
    async with services.database.read() as connection:
        row = await sessions.find_any(connection, session_id, services.sealer)
    if session_id in services.starting or (row is not None and is_live(row.status)):
        return
    if row is None:
        log.warning("the host runs session %s, which this database does not know", session_id)
        return
    try:
        if row.fetching:
            # Its source may have come in the very moment: nobody was told, and nobody goes on from it.
            await services.host.call("session.persist", PersistRequest(session_id, persistent=False), SessionRecord)
        await services.host.call("session.stop", StopRequest(session_id, "given up"), SessionRecord)
    except HutchError as error:
        log.warning("session %s can't be stopped: %s", session_id, error.message)
