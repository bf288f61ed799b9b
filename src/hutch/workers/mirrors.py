"""Databases of workers mirrored into Notion, one way: rows that changed become pages, pages of rows that are gone are trashed.

    due ─▶ taken ─▶ properties that are missing added ─▶ pages trashed ─▶ pages created, changed ─▶ next look in `EVERY_MS`

Which page a row has is written down twice: that its page is begun, before it is made, and its id, after. A page that was begun
and has no id is looked for before one is made, so what happens between the two makes no second page.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from hutch.api.services import Services
from hutch.errors import HutchError
from hutch.storage import worker_mirrors as table
from hutch.storage import worker_rows
from hutch.storage.worker_mirrors import Mirror, Page
from hutch.storage.worker_rows import Row, Stored, digest
from hutch.workers import notion
from hutch.workers.manifest import Property
from hutch.workers.notion_api import ATTEMPTS, AddressRefused, Notion, Refused, Unreachable
from hutch.workers.reading import shown

log = logging.getLogger(__name__)

LOOK_EVERY_S = 5.0
LEASE_MS = 180_000
"""More than the longest pause and a request take together."""
AT_ONCE = 8
ROWS = 200
"""Rows that are read at once."""
EVERY_MS = 5_000
PAUSES_MS = (10_000, 60_000, 300_000, 900_000)
"""After passes that failed one behind the other."""
MAX_WARNINGS = 50
STOPPING = frozenset({401, 403, 404})


class Lost(Exception):
    """Somebody else has the mirror, or it was set anew."""


async def keep_mirroring(services: Services) -> None:
    """For ever."""
    running: dict[asyncio.Task[None], tuple[str, str]] = {}
    try:
        while True:
            try:
                await _begin_due(services, running)
            except HutchError as error:
                log.warning("mirrors wait: %s", error.message)
            except Exception:
                log.exception("rows could not be mirrored")
            await asyncio.sleep(LOOK_EVERY_S)
            for task in [task for task in running if task.done()]:
                del running[task]
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _begin_due(services: Services, running: dict[asyncio.Task[None], tuple[str, str]]) -> None:
    now = services.clock()
    async with services.database.read() as connection:
        found = await table.due(connection, now)
        seen = [(mirror, await table.fingerprint(connection, mirror)) for mirror in found]
    for mirror, fingerprint in seen:
        if len(running) >= AT_ONCE or (mirror.worker_id, mirror.database) in running.values():
            continue
        if not mirror.failures and mirror.seen == fingerprint:
            continue
        async with services.database.write() as connection:
            taken = await table.hold(connection, mirror, now, now + LEASE_MS, take=True)
        if taken:
            mine = replace(mirror, fence=mirror.fence + 1)
            task = asyncio.ensure_future(mirrored(services, mine, fingerprint))
            running[task] = (mirror.worker_id, mirror.database)


async def mirrored(services: Services, mirror: Mirror, fingerprint: str) -> None:
    """One pass of a mirror that was taken, and what came of it. What goes wrong here is tried again when the lease is over."""
    try:
        await _mirrored(services, mirror, fingerprint)
    except Lost:
        log.info("a mirror of worker %s goes on elsewhere", mirror.worker_id)
    except HutchError as error:
        log.warning("a mirror of worker %s waits: %s", mirror.worker_id, error.message)
    except Exception:
        log.exception("a mirror of worker %s failed", mirror.worker_id)


async def _mirrored(services: Services, mirror: Mirror, fingerprint: str) -> None:
    changed: dict[str, Any]
    now = services.clock
    try:
        warnings = await Pass(services, mirror).run()
        done = {"failures": 0, "last_error": None, "last_success_at": now(), "due_at": now() + EVERY_MS}
        changed = {"seen": fingerprint, "warnings": list(warnings[:MAX_WARNINGS])} | done
    except (Refused, AddressRefused) as error:
        changed = {"stopped": True, "last_error": str(error)}
        if isinstance(error, Refused) and error.status not in STOPPING:
            changed = _later(mirror, now(), str(error))
    except Unreachable as error:
        changed = _later(mirror, now(), str(error), error.retry_after_s)
    async with services.database.write() as connection:
        await table.release(connection, mirror, **changed)


def _later(mirror: Mirror, now: int, error: str, least_s: float = 0) -> dict[str, Any]:
    pause = max(PAUSES_MS[min(mirror.failures, len(PAUSES_MS) - 1)], int(least_s * 1000))
    return {"failures": mirror.failures + 1, "last_error": error, "due_at": now + pause}


# -- one pass ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Source:
    """The data source, and how the database fits in."""

    id: str
    fit: notion.Fit


async def prepared(
    api: Notion, source_id: str, properties: Mapping[str, Property], related: Mapping[str, str], *, attempts: int = ATTEMPTS
) -> Source:
    """A data source with the properties of a database: those that are missing are added. Raises `Refused`, also where it is in
    the trash."""
    path = f"/v1/data_sources/{source_id}"
    found = await api.call("GET", path, attempts=attempts)
    if found.get("in_trash") or found.get("archived"):
        raise Refused(404, "in_trash", "the data source is in the trash")
    fit = notion.fit(properties, _types(found), related)
    if fit.missing:
        await api.call("PATCH", path, {"properties": fit.missing}, attempts=attempts)
    return Source(source_id, fit)


def _types(source: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(item.get("type")) for name, item in (source.get("properties") or {}).items() if isinstance(item, dict)}


class Pass:
    """Brings a data source up to date with the rows of a database."""

    def __init__(self, services: Services, mirror: Mirror) -> None:
        self._services = services
        self._mirror = mirror
        self._api = Notion(services, mirror.base_url, opened(services, mirror), self._hold)

    async def run(self) -> list[str]:
        """Its warnings. Raises `Refused` where the data source can't be used, `Unreachable`, `AddressRefused`, `Lost`."""
        mirror = self._mirror
        async with self._services.database.read() as connection:
            known = await worker_rows.databases(connection, mirror.scope, mirror.worker_id)
            others = await table.of_worker(connection, mirror.scope, mirror.worker_id)
        if mirror.database not in known:
            return []
        properties = worker_rows.properties(known, mirror.database)
        related = {key: other.data_source_id for key, other in others.items() if other.base_url == mirror.base_url}
        source = await prepared(self._api, mirror.data_source_id, properties, related)
        warnings = list(source.fit.warnings)
        await self._trash()
        after = 0
        while True:
            async with self._services.database.read() as connection:
                rows, more = await worker_rows.page(
                    connection, mirror.scope, mirror.worker_id, known, mirror.database, limit=ROWS, after=after
                )
                pages = await table.pages(connection, *self._place, [digest(row.key) for row in rows])
            made = await self._pages(known, properties, source, rows)
            for row in rows:
                await self._row(known, properties, source, row, made[row.key], pages.get(digest(row.key)), warnings)
            if not more:
                return warnings
            after = rows[-1].number

    @property
    def _place(self) -> tuple[Any, str, str]:
        return self._mirror.scope, self._mirror.worker_id, self._mirror.database

    async def _hold(self) -> None:
        now = self._services.clock()
        async with self._services.database.write() as connection:
            if not await table.hold(connection, self._mirror, now, now + LEASE_MS):
                raise Lost

    async def _note(self, key_digest: str, page: Page | None) -> None:
        now = self._services.clock()
        async with self._services.database.write() as connection:
            # With the mirror locked: what was set anew meanwhile has forgotten its pages.
            if not await table.hold(connection, self._mirror, now, now + LEASE_MS):
                raise Lost
            await table.put_page(connection, self._mirror, key_digest, page)

    async def _pages(
        self, known: Mapping[str, Stored], properties: Mapping[str, Property], source: Source, rows: list[Row]
    ) -> dict[str, notion.Page]:
        """The rows as pages. Relations lead to rows that have a page."""
        wanted: dict[str, set[str]] = {}
        for name in source.fit.slots:
            related = properties[name].related_database_key
            if properties[name].type == "relation" and related is not None:
                wanted.setdefault(related, set()).update(key for row in rows for key in row.properties[name])
        found: dict[tuple[str, str], str] = {}
        async with self._services.database.read() as connection:
            for related, keys in wanted.items():
                digests = {digest(key): key for key in keys}
                there = await table.pages(connection, self._mirror.scope, self._mirror.worker_id, related, digests)
                found |= {(related, digests[of]): page.page_id for of, page in there.items() if page.page_id is not None}
        return {
            row.key: notion.page(
                properties,
                source.fit.slots,
                row.properties,
                icon=row.icon,
                cover=row.cover,
                markdown=row.markdown,
                pages=found,
            )
            for row in rows
        }

    async def _row(
        self,
        known: Mapping[str, Stored],
        properties: Mapping[str, Property],
        source: Source,
        row: Row,
        made: notion.Page,
        before: Page | None,
        warnings: list[str],
    ) -> None:
        of = digest(row.key)
        if before is not None and before.digest == made.digest:
            if before.error is not None:
                warnings.append(before.error)
            if before.row_at != row.updated_at:
                await self._note(of, replace(before, row_at=row.updated_at))
            return
        page_id, error = before.page_id if before is not None else None, None
        try:
            if page_id is None or not await self._change(page_id, made):
                page_id = None
                primary = known[self._mirror.database].definition.primary_key_property
                sought = notion.sought(source.fit.slots, properties, primary, made)
                # A data source that was there before may have a page of this row already.
                begun = before is not None and before.page_id is None
                look = begun or "data_source_id" in self._mirror.parent
                await self._note(of, Page(None))
                page_id = await self._create(source, made, sought, look=look)
        except Refused as refused:
            if refused.status in STOPPING - {404}:
                raise
            if refused.status == 404:
                # Not the data source, if it is there: then a page that the row leads to.
                await self._api.call("GET", f"/v1/data_sources/{source.id}")
            error = f"Row {shown(row.key)}: {refused}"
            warnings.append(error)
        await self._note(of, Page(page_id, made.digest, row.updated_at, error))

    async def _change(self, page_id: str, made: notion.Page) -> bool:
        """False where the page is gone, or in the trash."""
        path = f"/v1/pages/{page_id}"
        try:
            answer = await self._api.call("PATCH", path, made.content)
        except Refused as refused:
            if refused.status == 404:
                return False
            if refused.status != 400:
                raise
            answer = await self._api.call("GET", path)
            if not _gone(answer):
                raise
        return not _gone(answer)

    async def _create(self, source: Source, made: notion.Page, sought: dict[str, Any] | None, *, look: bool) -> str:
        """The id of a page for a row: of one that is there already, where `look` says that there may be, or of a new one."""
        if look and sought is not None:
            for found in await self._found(source, made, sought):
                if await self._change(found, made):
                    return found
        body = {"parent": {"type": "data_source_id", "data_source_id": source.id}} | made.content
        if made.children:
            body["children"] = made.children
        answer = await self._api.call("POST", "/v1/pages", body, again=False)
        page_id = answer.get("id")
        if not notion.is_id(page_id):
            raise Unreachable("Notion's answer has no page.", unsure=True)
        return str(page_id)

    async def _found(self, source: Source, made: notion.Page, sought: dict[str, Any]) -> list[str]:
        """Pages of the data source that have the key of the row and are no other row's."""
        answer = await self._api.call("POST", f"/v1/data_sources/{source.id}/query", {"filter": sought, "page_size": 100})
        results = [item for item in answer.get("results") or () if isinstance(item, dict) and not _gone(item)]
        ids = [str(item["id"]) for item in results if notion.is_id(item.get("id")) and notion.same(made, item, sought)]
        async with self._services.database.read() as connection:
            taken = await table.taken(connection, self._mirror, ids)
        return [item for item in ids if item not in taken]

    async def _trash(self) -> None:
        """Trash the pages of rows that are gone."""
        while True:
            async with self._services.database.read() as connection:
                found = await table.orphans(connection, self._mirror)
            if not found:
                return
            for of, page in found.items():
                if page.page_id is not None:
                    try:
                        await self._api.call("PATCH", f"/v1/pages/{page.page_id}", {"in_trash": True})
                    except Refused as refused:
                        # What can't be changed is in the trash already, or gone.
                        if refused.status not in {400, 404}:
                            raise
                await self._note(of, None)


def _gone(page: Mapping[str, Any]) -> bool:
    return bool(page.get("in_trash") or page.get("archived"))


def opened(services: Services, mirror: Mirror) -> str:
    """The token."""
    token: str = services.sealer.open(mirror.token, sealed_as(mirror.worker_id, mirror.database))
    return token


def sealed_as(worker_id: str, database: str) -> str:
    return f"{worker_id}/notion/{database}"
