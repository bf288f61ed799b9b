"""Workers' databases that are mirrored into Notion: where to, how far, and which page each row has.

A mirror is taken for a time, which its taker prolongs; each taking, and each setting anew, raises its `fence`. What a taker
writes counts as long as the fence is its own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from hutch.control.records import Scope
from hutch.storage.models import WorkerMirrorModel, WorkerMirrorPageModel, WorkerModel, WorkerRowModel
from hutch.storage.scoping import within
from hutch.storage.worker_rows import CHUNK

LATE = 50
"""Pages of rows that are gone, at once."""


@dataclass(frozen=True, slots=True)
class Mirror:
    """`seen` is what there was when all of it was mirrored last (`fingerprint`). `stopped`: nothing is tried until it is set
    anew. `parent` is as it was asked for."""

    worker_id: str
    database: str
    team_id: str
    project_id: str
    token: bytes
    base_url: str
    parent: dict[str, str]
    database_id: str | None
    data_source_id: str
    seen: str = ""
    warnings: tuple[str, ...] = ()
    failures: int = 0
    stopped: bool = False
    last_success_at: int | None = None
    last_error: str | None = None
    due_at: int = 0
    leased_until: int = 0
    fence: int = 0

    @property
    def scope(self) -> Scope:
        return Scope(self.team_id, self.project_id)


@dataclass(frozen=True, slots=True)
class Page:
    page_id: str | None
    digest: str | None = None
    row_at: int | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Counts:
    """Rows. `waiting`: changed since they were mirrored, or not mirrored yet; `failed`: Notion did not take them."""

    mirrored: int
    waiting: int
    failed: int


_NAMES = tuple(Mirror.__dataclass_fields__)
_COLUMNS = tuple(getattr(WorkerMirrorModel, name) for name in _NAMES)
_PAGE = tuple(getattr(WorkerMirrorPageModel, name) for name in Page.__dataclass_fields__)


async def of_worker(connection: AsyncConnection, scope: Scope, worker_id: str) -> dict[str, Mirror]:
    """By the databases' keys."""
    query = select(*_COLUMNS).where(*within(scope, WorkerMirrorModel), WorkerMirrorModel.worker_id == worker_id)
    return {row.database: _read(row) for row in await connection.execute(query)}


async def put(connection: AsyncConnection, mirror: Mirror, *, pages: bool) -> None:
    """Over the one that there was; `pages`: what was mirrored stays known."""
    own = _is(mirror)
    fence = (await connection.execute(select(WorkerMirrorModel.fence).where(*own))).scalar_one_or_none()
    if not pages:
        await _forget_pages(connection, mirror.scope, mirror.worker_id, mirror.database)
    await connection.execute(delete(WorkerMirrorModel).where(*own))
    written = {name: getattr(mirror, name) for name in _NAMES} | {"warnings": list(mirror.warnings), "fence": (fence or 0) + 1}
    await connection.execute(insert(WorkerMirrorModel).values(**written))


async def remove(connection: AsyncConnection, scope: Scope, worker_id: str, database: str) -> bool:
    """Whether there was one."""
    await _forget_pages(connection, scope, worker_id, database)
    own = (*within(scope, WorkerMirrorModel), WorkerMirrorModel.worker_id == worker_id, WorkerMirrorModel.database == database)
    return (await connection.execute(delete(WorkerMirrorModel).where(*own))).rowcount > 0


async def counts(connection: AsyncConnection, scope: Scope, worker_id: str, database: str) -> Counts:
    page = WorkerMirrorPageModel
    waits = or_(page.row_at.is_(None), page.row_at < WorkerRowModel.updated_at)
    failed = page.error.is_not(None)
    query = (
        select(
            func.count().filter(and_(~waits, ~failed)),
            func.count().filter(waits),
            func.count().filter(and_(~waits, failed)),
        )
        .select_from(WorkerRowModel)
        .outerjoin(page, _page_of_row())
    )
    rows = (*within(scope, WorkerRowModel), WorkerRowModel.worker_id == worker_id, WorkerRowModel.database == database)
    found = (await connection.execute(query.where(*rows))).one()
    return Counts(found[0], found[1], found[2])


# -- taking ------------------------------------------------------------------------------------------


async def due(connection: AsyncConnection, now: int) -> list[Mirror]:
    """Mirrors that nobody has and that are not stopped, those that wait longest first."""
    query = select(*_COLUMNS).where(
        WorkerMirrorModel.stopped.is_(False), WorkerMirrorModel.due_at <= now, WorkerMirrorModel.leased_until < now
    )
    return [_read(row) for row in await connection.execute(query.order_by(WorkerMirrorModel.due_at))]


async def fingerprint(connection: AsyncConnection, mirror: Mirror) -> str:
    """Another one whenever rows, declarations or pages that rows lead to may be others."""
    query = select(WorkerModel.mark, WorkerModel.deployment_id).where(
        *within(mirror.scope, WorkerModel), WorkerModel.id == mirror.worker_id
    )
    row = (await connection.execute(query)).first()
    pages = select(func.count(WorkerMirrorPageModel.page_id)).where(
        *within(mirror.scope, WorkerMirrorPageModel), WorkerMirrorPageModel.worker_id == mirror.worker_id
    )
    count = (await connection.execute(pages)).scalar_one()
    return f"{row.mark}/{row.deployment_id}/{count}" if row is not None else ""


async def hold(connection: AsyncConnection, mirror: Mirror, now: int, until: int, *, take: bool = False) -> bool:
    """Take a mirror as it was read, or keep it, until then; False when somebody else has it, or it was set anew."""
    own = (*_is(mirror), WorkerMirrorModel.fence == mirror.fence)
    if not take:
        return (await connection.execute(update(WorkerMirrorModel).where(*own).values(leased_until=until))).rowcount > 0
    free = (*own, WorkerMirrorModel.leased_until < now)
    statement = update(WorkerMirrorModel).where(*free).values(leased_until=until, fence=mirror.fence + 1)
    return (await connection.execute(statement)).rowcount > 0


async def release(connection: AsyncConnection, mirror: Mirror, **changed: Any) -> None:
    """Write what came of it, and let others have it."""
    statement = update(WorkerMirrorModel).where(*_is(mirror), WorkerMirrorModel.fence == mirror.fence)
    await connection.execute(statement.values(leased_until=0, **changed))


# -- pages -------------------------------------------------------------------------------------------


async def pages(
    connection: AsyncConnection, scope: Scope, worker_id: str, database: str, digests: Collection[str]
) -> dict[str, Page]:
    """By the digests of rows' keys."""
    found: dict[str, Page] = {}
    wanted = list(digests)
    for start in range(0, len(wanted), CHUNK):
        query = select(WorkerMirrorPageModel.key_digest, *_PAGE).where(
            *_pages_of(scope, worker_id, database), WorkerMirrorPageModel.key_digest.in_(wanted[start : start + CHUNK])
        )
        found |= {row[0]: Page(*row[1:]) for row in await connection.execute(query)}
    return found


async def taken(connection: AsyncConnection, mirror: Mirror, page_ids: Collection[str]) -> set[str]:
    """Those of the pages that rows have."""
    query = select(WorkerMirrorPageModel.page_id).where(
        *_pages_of(mirror.scope, mirror.worker_id, mirror.database), WorkerMirrorPageModel.page_id.in_(page_ids)
    )
    return {str(found) for found in (await connection.execute(query)).scalars()}


async def put_page(connection: AsyncConnection, mirror: Mirror, key_digest: str, page: Page | None) -> None:
    """What is known of a row's page from now on; None: nothing."""
    own = _pages_of(mirror.scope, mirror.worker_id, mirror.database)
    await connection.execute(delete(WorkerMirrorPageModel).where(*own, WorkerMirrorPageModel.key_digest == key_digest))
    if page is not None:
        owner = {name: getattr(mirror, name) for name in ("worker_id", "database", "team_id", "project_id")}
        written: Mapping[str, Any] = {name: getattr(page, name) for name in Page.__dataclass_fields__}
        await connection.execute(insert(WorkerMirrorPageModel).values(**owner, key_digest=key_digest, **written))


async def orphans(connection: AsyncConnection, mirror: Mirror) -> dict[str, Page]:
    """Some pages of rows that are not there any more."""
    query = (
        select(WorkerMirrorPageModel.key_digest, *_PAGE)
        .outerjoin(WorkerRowModel, _page_of_row())
        .where(*_pages_of(mirror.scope, mirror.worker_id, mirror.database), WorkerRowModel.number.is_(None))
        .limit(LATE)
    )
    return {row[0]: Page(*row[1:]) for row in await connection.execute(query)}


async def _forget_pages(connection: AsyncConnection, scope: Scope, worker_id: str, database: str) -> None:
    await connection.execute(delete(WorkerMirrorPageModel).where(*_pages_of(scope, worker_id, database)))


def _page_of_row() -> ColumnElement[bool]:
    page = WorkerMirrorPageModel
    return and_(
        page.worker_id == WorkerRowModel.worker_id,
        page.database == WorkerRowModel.database,
        page.key_digest == WorkerRowModel.key_digest,
    )


def _pages_of(scope: Scope, worker_id: str, database: str) -> tuple[ColumnElement[bool], ...]:
    model = WorkerMirrorPageModel
    return (*within(scope, model), model.worker_id == worker_id, model.database == database)


def _is(mirror: Mirror) -> tuple[ColumnElement[bool], ...]:
    model = WorkerMirrorModel
    return (*within(mirror.scope, model), model.worker_id == mirror.worker_id, model.database == mirror.database)


def _read(row: Any) -> Mirror:
    found = dict(row._mapping)
    return Mirror(**found | {"warnings": tuple(found["warnings"])})
