"""Removing a deleted team or project: everything that it has, here and on the host, until nothing of it is left.

    marked, tokens and secrets gone ─▶ sandboxes ended ─▶ snapshots, drives, images ─▶ output, commands, audits, usage ─▶ rows ─▶
    files rewritten ─▶ mark gone

The mark is the first that is written and the last that goes, and every step may be done twice: whatever dies in between, the next
start goes on. What somebody adds meanwhile, whose request was under way, keeps the mark there, and it begins anew.
"""

from __future__ import annotations

import asyncio
import logging

from hutch.api import drives, sandboxes
from hutch.api.services import Services
from hutch.api.sessions import stop
from hutch.control.audit_log import Actor
from hutch.control.records import Scope
from hutch.errors import HutchError, NotFoundError, UnavailableError
from hutch.host.protocol import Forget, ImageRecord, ImageRemove, SnapshotRef
from hutch.metering.budgets import project_key, team_key
from hutch.storage import audit_log
from hutch.storage import drives as drive_rows
from hutch.storage import removals as rows
from hutch.storage import sessions as session_rows
from hutch.storage import snapshots as snapshot_rows
from hutch.workers import builds

log = logging.getLogger(__name__)

LOOK_EVERY_S = 60.0
RETRY_S = 2.0


async def keep_removing(services: Services) -> None:
    """For ever: remove what was deleted. One that can't be removed yet keeps no other from it."""
    while True:
        services.deletions_due.clear()
        pause = RETRY_S
        try:
            async with services.database.read() as connection:
                due = await rows.due(connection)
            if all([await _removed(services, scope) for scope in due]):
                pause = LOOK_EVERY_S
        except HutchError as error:
            log.warning("what was deleted can't be looked for: %s", error.message)
        try:
            async with asyncio.timeout(pause):
                await services.deletions_due.wait()
        except TimeoutError:
            continue


async def _removed(services: Services, scope: Scope) -> bool:
    try:
        await remove(services, scope)
    except HutchError as error:
        log.warning("%s is deleted and not removed yet: %s", scope.project_id or scope.team_id, error.message)
        return False
    except Exception:
        log.exception("%s is deleted and could not be removed", scope.project_id or scope.team_id)
        return False
    return True


async def remove(services: Services, scope: Scope) -> None:
    """All of it. Raises `HutchError` when it has to be tried again."""
    await _end_sandboxes(services, scope)
    await _end_sessions(services, scope)
    await _remove_snapshots(services, scope)
    await _remove_drives(services, scope)
    await _remove_images(services, scope)
    await _forget_sessions(services, scope)
    await _forget_usage(services, scope)
    async with services.database.write() as connection:
        await rows.remove_rows(connection, scope)
    await builds.drop_archives(services)
    await services.host.call("host.scrub", {})
    await services.database.scrub()
    async with services.database.write() as connection:
        await rows.finish(connection, scope)
        log_of = services.default_team_id if scope.project_id is None else scope.team_id
        action = "team.removed" if scope.project_id is None else "project.removed"
        await audit_log.append(connection, log_of, Actor(), action, scope.project_id or scope.team_id, services.clock())
    log.info("%s is removed", scope.project_id or scope.team_id)


async def _end_sandboxes(services: Services, scope: Scope) -> None:
    while True:
        async with services.database.read() as connection:
            found = await rows.sandboxes(connection, scope)
        if not found:
            return
        for project_id, name in found:
            own = Scope(scope.team_id, project_id)
            try:
                record, session = await sandboxes.find_with_session(services, own, name)
                await sandboxes.delete(services, own, record, session)
            except NotFoundError:
                # Whoever made it gave up meanwhile.
                continue


async def _end_sessions(services: Services, scope: Scope) -> None:
    """Those that no sandbox has any more."""
    async with services.database.read() as connection:
        live = await session_rows.live(connection, services.sealer, scope)
    for row in live:
        if row.id in services.starting:
            raise UnavailableError("host_not_ready", f"Session {row.id} is just starting.", retry_after_s=1)
        await stop(services, row, "delete")


async def _remove_snapshots(services: Services, scope: Scope) -> None:
    async with services.database.write() as connection:
        found = await rows.snapshots(connection, scope)
        for snapshot_id in found:
            await snapshot_rows.mark_deleted(connection, snapshot_id, services.clock())
    for snapshot_id in found:
        await services.host.call("snapshot.delete", SnapshotRef(snapshot_id))
        async with services.database.write() as connection:
            await snapshot_rows.purged(connection, snapshot_id, services.clock())


async def _remove_drives(services: Services, scope: Scope) -> None:
    async with services.database.write() as connection:
        found = await rows.drives(connection, scope)
        for drive_id in found:
            await drive_rows.set_deleting(connection, drive_id, services.clock())
    for drive_id in found:
        await drives.finish_deleting(services, drive_id)


async def _remove_images(services: Services, scope: Scope) -> None:
    async with services.database.read() as connection:
        projects = await rows.projects(connection, scope)
    for project_id in projects:
        for record in await services.host.collect("image.list", {"project_id": project_id}, ImageRecord):
            if not record.shared:
                await services.host.call("image.remove", ImageRemove(name=record.name, project_id=project_id, needed=True))


async def _forget_sessions(services: Services, scope: Scope) -> None:
    after = 0
    while True:
        async with services.database.read() as connection:
            found = await rows.sessions(connection, scope, after)
        if not found:
            return
        after = found[-1][0]
        sessions = [session_id for _, session_id, _ in found]
        await services.host.call("session.forget", Forget(sessions, sorted({sandbox_id for _, _, sandbox_id in found})))


async def _forget_usage(services: Services, scope: Scope) -> None:
    async with services.database.read() as connection:
        owners = [project_key(project_id) for project_id in await rows.projects(connection, scope)]
    if scope.project_id is None:
        owners.append(team_key(scope.team_id))
    await services.host.call("session.forget", Forget([], [], owners))
