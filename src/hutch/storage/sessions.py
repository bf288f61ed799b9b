"""Runs of sandboxes, and what hosts report about them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import ColumnElement, Row, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from hutch.control.cursor import Position
from hutch.control.lifecycle import Merged, duration_ms, sandbox_status
from hutch.control.records import Scope, SessionRow
from hutch.host.protocol import LIVE, SessionStatus
from hutch.storage import network_policies
from hutch.storage.models import SandboxModel, SessionModel
from hutch.storage.paging import by_column
from hutch.storage.scoping import within
from hutch.storage.sealing import Sealer

_TABLE = SessionModel.__table__
_PLAIN = tuple(name for name in SessionRow.__slots__ if name not in ("number", "network_policy", "status"))
_LIVE = tuple(str(status) for status in LIVE)


def _values(session: SessionRow, sealer: Sealer) -> dict[str, Any]:
    values = {name: getattr(session, name) for name in _PLAIN}
    return values | {
        "status": str(session.status),
        "network_policy": network_policies.seal(session.network_policy, session.id, sealer),
    }


def _row(row: Row[Any], sealer: Sealer) -> SessionRow:
    values = row._mapping
    return SessionRow(
        status=SessionStatus(values["status"]),
        network_policy=network_policies.opened(values["network_policy"], values["id"], sealer),
        number=values["number"],
        **{name: values[name] for name in _PLAIN},
    )


async def count_live(connection: AsyncConnection, scope: Scope) -> int:
    """How many sessions are not over."""
    query = (
        select(func.count())
        .select_from(_TABLE)
        .where(*within(scope, SessionModel), SessionModel.deleted_at.is_(None), SessionModel.status.in_(_LIVE))
    )
    return int((await connection.execute(query)).scalar_one())


async def add(connection: AsyncConnection, session: SessionRow, sealer: Sealer) -> None:
    await connection.execute(insert(SessionModel).values(**_values(session, sealer)))


async def find(
    connection: AsyncConnection, scope: Scope, session_id: str, sealer: Sealer, *, lock: bool = False
) -> SessionRow | None:
    """The session; with `lock` nobody else changes it until the transaction ends."""
    query = select(_TABLE).where(*within(scope, SessionModel), SessionModel.deleted_at.is_(None), SessionModel.id == session_id)
    row = (await connection.execute(query.with_for_update() if lock else query)).first()
    return _row(row, sealer) if row is not None else None


async def find_any(connection: AsyncConnection, session_id: str, sealer: Sealer) -> SessionRow | None:
    """A session of whatever team, also of a deleted sandbox: for comparing with a host, never for a caller."""
    row = (await connection.execute(select(_TABLE).where(SessionModel.id == session_id))).first()
    return _row(row, sealer) if row is not None else None


async def find_many(connection: AsyncConnection, scope: Scope, session_ids: list[str], sealer: Sealer) -> dict[str, SessionRow]:
    if not session_ids:
        return {}
    rows = await connection.execute(
        select(_TABLE).where(*within(scope, SessionModel), SessionModel.deleted_at.is_(None), SessionModel.id.in_(session_ids))
    )
    return {row._mapping["id"]: _row(row, sealer) for row in rows}


async def owner(connection: AsyncConnection, session_id: str) -> tuple[str, str] | None:
    """Team and project of a session, whoever asks: the caller compares them. Deleted sandboxes' sessions are included."""
    row = (
        await connection.execute(select(SessionModel.team_id, SessionModel.project_id).where(SessionModel.id == session_id))
    ).first()
    return (row[0], row[1]) if row is not None else None


async def page(
    connection: AsyncConnection,
    scope: Scope,
    sealer: Sealer,
    *,
    sandbox_name: str | None,
    descending: bool,
    after: Position | None,
    limit: int,
) -> tuple[list[SessionRow], Position | None]:
    """One page by time of creation, and where the next begins."""
    behind, order = by_column(SessionModel.created_at, SessionModel.number, descending=descending, after=after)
    conditions = [*within(scope, SessionModel), SessionModel.deleted_at.is_(None), *behind]
    if sandbox_name is None:
        # Those of workers are seen where somebody asks for one by its name.
        conditions.append(SessionModel.worker_id.is_(None))
    if sandbox_name is not None:
        conditions.append(SessionModel.sandbox_name == sandbox_name)
    rows = (await connection.execute(select(_TABLE).where(*conditions).order_by(*order).limit(limit + 1))).all()
    sessions = [_row(row, sealer) for row in rows[:limit]]
    more = len(rows) > limit
    return sessions, Position(sessions[-1].created_at, sessions[-1].number) if more else None


async def live(connection: AsyncConnection, sealer: Sealer, scope: Scope | None = None) -> list[SessionRow]:
    """Every session that is thought to be alive, those of deleted sandboxes included. Without a scope those of all teams: what a
    host's listing is compared with."""
    conditions: list[ColumnElement[bool]] = [SessionModel.status.in_(_LIVE)]
    if scope is not None:
        conditions += within(scope, SessionModel)
    rows = await connection.execute(select(_TABLE).where(*conditions))
    return [_row(row, sealer) for row in rows]


async def fetching(connection: AsyncConnection, sealer: Sealer) -> list[SessionRow]:
    """Every session whose source is not there yet."""
    rows = await connection.execute(select(_TABLE).where(SessionModel.status.in_(_LIVE), SessionModel.fetching))
    return [_row(row, sealer) for row in rows]


async def change(
    connection: AsyncConnection, session_id: str, sealer: Sealer, decide: Callable[[SessionRow], Merged]
) -> SessionRow | None:
    """Let `decide` change a session, and write what follows for its sandbox: status, and usage once it ended.

    The row is locked meanwhile, so that two reports of one end are added up once. None when there is no such session.
    """
    row = (await connection.execute(select(_TABLE).where(SessionModel.id == session_id).with_for_update())).first()
    if row is None:
        return None
    before = _row(row, sealer)
    merged = decide(before)
    if not merged.changed:
        return before
    session = merged.session
    await connection.execute(update(SessionModel).where(SessionModel.id == session_id).values(**_values(session, sealer)))
    if merged.ended:
        await _add_usage(connection, session)
    if session.status is not before.status or session.cwd != before.cwd:
        status = sandbox_status(session.status)
        values: dict[str, Any] = {"cwd": session.cwd}
        if status != sandbox_status(before.status):
            values |= {"status": status, "status_updated_at": session.updated_at}
        current = SandboxModel.current_session_id == session_id
        await connection.execute(update(SandboxModel).where(SandboxModel.id == session.sandbox_id, current).values(**values))
    return session


async def _add_usage(connection: AsyncConnection, session: SessionRow) -> None:
    # In milliseconds, as each session shows it: whoever adds these up has the same sum.
    active_cpu_us = -(-(session.active_cpu_us or 0) // 1000) * 1000
    statement = (
        update(SandboxModel)
        .where(SandboxModel.id == session.sandbox_id)
        .values(
            total_active_cpu_us=SandboxModel.total_active_cpu_us + active_cpu_us,
            total_duration_ms=SandboxModel.total_duration_ms + (duration_ms(session) or 0),
            total_ingress_bytes=SandboxModel.total_ingress_bytes + (session.ingress_bytes or 0),
            total_egress_bytes=SandboxModel.total_egress_bytes + (session.egress_bytes or 0),
        )
    )
    await connection.execute(statement)
