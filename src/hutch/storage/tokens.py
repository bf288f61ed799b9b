"""Issued tokens and their revocation. The tokens themselves are not kept: they verify by signature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from hutch.control.records import TokenRecord, TokenRole
from hutch.storage.models import TokenModel

_COLUMNS = (
    TokenModel.id,
    TokenModel.team_id,
    TokenModel.project_id,
    TokenModel.role,
    TokenModel.name,
    TokenModel.created_at,
    TokenModel.expires_at,
    TokenModel.revoked_at,
)


def _record(row: Sequence[Any]) -> TokenRecord:
    identifier, team_id, project_id, role, name, created_at, expires_at, revoked_at = row
    return TokenRecord(identifier, team_id, project_id, TokenRole(role), name, created_at, expires_at, revoked_at)


async def add(connection: AsyncConnection, record: TokenRecord) -> None:
    values = {column.key: getattr(record, column.key) for column in _COLUMNS} | {"role": str(record.role)}
    await connection.execute(insert(TokenModel).values(**values))


async def find(connection: AsyncConnection, token_id: str) -> TokenRecord | None:
    row = (await connection.execute(select(*_COLUMNS).where(TokenModel.id == token_id))).first()
    return _record(row) if row is not None else None


async def list_for_team(connection: AsyncConnection, team_id: str | None, *, limit: int = 1000) -> list[TokenRecord]:
    """The newest tokens of a team, or of all teams."""
    query = select(*_COLUMNS).order_by(TokenModel.created_at.desc(), TokenModel.id).limit(limit)
    if team_id is not None:
        query = query.where(TokenModel.team_id == team_id)
    return [_record(row) for row in await connection.execute(query)]


async def revoke(connection: AsyncConnection, token_id: str, team_id: str | None, now: int) -> TokenRecord | None:
    """Revoke a token of a team (None: of any); the record, or None when there is no such token. Idempotent."""
    query = update(TokenModel).where(TokenModel.id == token_id, TokenModel.revoked_at.is_(None)).values(revoked_at=now)
    if team_id is not None:
        query = query.where(TokenModel.team_id == team_id)
    await connection.execute(query)
    record = await find(connection, token_id)
    return record if record is not None and (team_id is None or record.team_id == team_id) else None
