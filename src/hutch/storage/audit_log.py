"""The audit log of teams. `append` belongs into the transaction of the change that it tells of: both are there, or neither."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from hutch.control.audit_log import DONE, Actor, Entry, Head
from hutch.storage.models import AuditLogModel, TeamModel

_TABLE = AuditLogModel.__table__


async def append(
    connection: AsyncConnection,
    team_id: str,
    actor: Actor,
    action: str,
    subject: str,
    now: int,
    *,
    outcome: str = DONE,
    **detail: Any,
) -> None:
    """Add an entry. Of two transactions at once the second waits for the first, so that the chain does not fork."""
    query = select(TeamModel.audit_seq, TeamModel.audit_hash).where(TeamModel.id == team_id).with_for_update()
    row = (await connection.execute(query)).first()
    if row is None:
        return
    entry = Entry(
        team_id=team_id,
        seq=row.audit_seq + 1,
        at=now,
        token_id=actor.token_id,
        member_id=actor.member_id,
        address=actor.address[:64],
        action=action,
        subject=subject[:128],
        outcome=outcome,
        previous=row.audit_hash,
        detail={key: value for key, value in detail.items() if value is not None},
    )
    digest = entry.digest()
    values = {name: getattr(entry, name) for name in Entry.__slots__} | {"detail": dict(entry.detail), "hash": digest}
    await connection.execute(insert(AuditLogModel).values(**values))
    await connection.execute(update(TeamModel).where(TeamModel.id == team_id).values(audit_seq=entry.seq, audit_hash=digest))


async def page(connection: AsyncConnection, team_id: str, *, after: int, until: int, limit: int) -> list[tuple[Entry, str]]:
    """Entries behind a number and not behind another, oldest first, each with its hash."""
    query = select(_TABLE).where(AuditLogModel.team_id == team_id, AuditLogModel.seq > after, AuditLogModel.seq <= until)
    rows = await connection.execute(query.order_by(AuditLogModel.seq).limit(limit))
    return [_entry(row) for row in rows]


def _entry(row: Row[Any]) -> tuple[Entry, str]:
    values = row._mapping
    return Entry(**{name: values[name] for name in Entry.__slots__}), values["hash"]


async def head(connection: AsyncConnection, team_id: str) -> Head:
    """The last entry of a team."""
    row = (await connection.execute(select(TeamModel.audit_seq, TeamModel.audit_hash).where(TeamModel.id == team_id))).first()
    return Head(*row) if row is not None else Head()
