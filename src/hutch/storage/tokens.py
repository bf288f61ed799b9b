"""Issued tokens and their revocation. The tokens themselves are not kept: they verify by signature."""

from __future__ import annotations

from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from hutch.control.permissions import TokenRole
from hutch.control.records import TokenRecord
from hutch.storage.models import MemberModel, TokenModel

_COLUMNS = tuple(TokenModel.__table__.columns)
_MEMBER_ROLE = MemberModel.role.label("member_role")
_QUERY = select(*_COLUMNS, _MEMBER_ROLE).outerjoin(
    MemberModel,
    (MemberModel.id == TokenModel.member_id) & (MemberModel.team_id == TokenModel.team_id) & MemberModel.disabled_at.is_(None),
)


def _record(row: Any) -> TokenRecord:
    values = dict(row._mapping)
    values["role"] = TokenRole(values["role"])
    values["scopes"] = tuple(values["scopes"]) if values["scopes"] is not None else None
    values["member_role"] = TokenRole(values["member_role"]) if values["member_role"] is not None else None
    return TokenRecord(**values)


async def add(connection: AsyncConnection, record: TokenRecord) -> None:
    values = {column.key: getattr(record, column.key) for column in _COLUMNS} | {"role": str(record.role)}
    values["scopes"] = list(record.scopes) if record.scopes is not None else None
    await connection.execute(insert(TokenModel).values(**values))


async def find(connection: AsyncConnection, token_id: str) -> TokenRecord | None:
    row = (await connection.execute(_QUERY.where(TokenModel.id == token_id))).first()
    return _record(row) if row is not None else None


async def list_for_team(connection: AsyncConnection, team_id: str | None, *, limit: int = 1000) -> list[TokenRecord]:
    """The newest tokens of a team, or of all teams."""
    query = _QUERY.order_by(TokenModel.created_at.desc(), TokenModel.id).limit(limit)
    if team_id is not None:
        query = query.where(TokenModel.team_id == team_id)
    return [_record(row) for row in await connection.execute(query)]


async def used(connection: AsyncConnection, token_id: str, count: int, at: int, address: str) -> None:
    """A token was used so many times more, the last time then and from there."""
    values = {"use_count": TokenModel.use_count + count, "last_used_at": at, "last_used_address": address[:64]}
    await connection.execute(update(TokenModel).where(TokenModel.id == token_id).values(**values))


async def revoke(connection: AsyncConnection, token_id: str, team_id: str | None, now: int) -> TokenRecord | None:
    """Revoke a token of a team (None: of any); the record, or None when there is no such token. Idempotent."""
    query = update(TokenModel).where(TokenModel.id == token_id, TokenModel.revoked_at.is_(None)).values(revoked_at=now)
    if team_id is not None:
        query = query.where(TokenModel.team_id == team_id)
    await connection.execute(query)
    record = await find(connection, token_id)
    return record if record is not None and (team_id is None or record.team_id == team_id) else None
