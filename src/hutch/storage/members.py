"""Members of teams. A team that has an owner keeps one."""

from __future__ import annotations

from typing import Any

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from hutch.control.permissions import TokenRole
from hutch.control.records import Member
from hutch.errors import ConflictError
from hutch.storage.models import MemberModel, TeamModel, TokenModel

_COLUMNS = tuple(MemberModel.__table__.columns)


def _member(row: Any) -> Member:
    values = row._mapping
    return Member(**{name: values[name] for name in Member.__slots__ if name != "role"}, role=TokenRole(values["role"]))


async def add(connection: AsyncConnection, member: Member) -> None:
    """Raises `ConflictError` when the team has a member of that identity."""
    values = {name: getattr(member, name) for name in Member.__slots__} | {"role": str(member.role)}
    try:
        async with connection.begin_nested():
            await connection.execute(insert(MemberModel).values(**values))
    except IntegrityError as error:
        raise ConflictError("conflict", f"The team has a member '{member.identity}' already.") from error


async def find(connection: AsyncConnection, team_id: str, member_id: str) -> Member | None:
    query = select(*_COLUMNS).where(MemberModel.team_id == team_id, MemberModel.id == member_id)
    row = (await connection.execute(query)).first()
    return _member(row) if row is not None else None


async def page(connection: AsyncConnection, team_id: str, *, after: str, limit: int) -> list[Member]:
    """Members behind an id, in the order of their ids."""
    query = select(*_COLUMNS).where(MemberModel.team_id == team_id, MemberModel.id > after)
    return [_member(row) for row in await connection.execute(query.order_by(MemberModel.id).limit(limit))]


async def change(
    connection: AsyncConnection,
    team_id: str,
    member_id: str,
    *,
    now: int,
    role: TokenRole | None = None,
    name: str | None = None,
    disabled: bool | None = None,
) -> Member | None:
    """The changed member; None when there is none. One who is disabled loses their tokens for good. Raises `ConflictError`
    (`last_owner`)."""
    found = await _locked(connection, team_id, member_id)
    if found is None:
        return None
    if (role is not None and role is not found.role) or (disabled and found.disabled_at is None):
        await _keep_an_owner(connection, found)
    values: dict[str, Any] = {
        "role": str(role if role is not None else found.role),
        "name": name if name is not None else found.name,
        "disabled_at": found.disabled_at,
    }
    if disabled is not None:
        values["disabled_at"] = (found.disabled_at or now) if disabled else None
    await connection.execute(update(MemberModel).where(MemberModel.id == member_id).values(**values))
    if disabled:
        await _revoke_tokens(connection, found, now)
    return await find(connection, team_id, member_id)


async def remove(connection: AsyncConnection, team_id: str, member_id: str, now: int) -> Member | None:
    """The removed member, whose tokens are revoked with that; None when there is none. Raises `ConflictError` (`last_owner`)."""
    found = await _locked(connection, team_id, member_id)
    if found is None:
        return None
    await _keep_an_owner(connection, found)
    await _drop(connection, found, now)
    return found


async def _drop(connection: AsyncConnection, leaving: Member, now: int) -> None:
    await _revoke_tokens(connection, leaving, now)
    await connection.execute(delete(MemberModel).where(MemberModel.id == leaving.id))


async def _revoke_tokens(connection: AsyncConnection, of: Member, now: int) -> None:
    theirs = TokenModel.team_id == of.team_id, TokenModel.member_id == of.id, TokenModel.revoked_at.is_(None)
    await connection.execute(update(TokenModel).where(*theirs).values(revoked_at=now))


# -- by a provider ----------------------------------------------------------------------------------


async def of_identity(connection: AsyncConnection, identity: str) -> list[Member]:
    """Where somebody whom a provider vouches for is a member, in the order in which they became one; in teams that are there."""
    query = select(*_COLUMNS).join(TeamModel, TeamModel.id == MemberModel.team_id)
    query = query.where(MemberModel.identity == identity, TeamModel.deleting_at.is_(None))
    return [_member(row) for row in await connection.execute(query.order_by(MemberModel.created_at, MemberModel.id))]


async def logged_in(connection: AsyncConnection, member: Member, values: dict[str, Any]) -> None:
    """Write what a login says of a member. The provider decides, also about the last owner."""
    await connection.execute(update(MemberModel).where(MemberModel.id == member.id).values(**values))


async def dismissed(connection: AsyncConnection, member: Member, now: int) -> None:
    """A provider does not vouch for a member any more: they go with their tokens, even the last owner."""
    await _drop(connection, member, now)


async def _locked(connection: AsyncConnection, team_id: str, member_id: str) -> Member | None:
    """A member, with the team's members held still: two owners who remove each other must not both succeed."""
    await connection.execute(select(TeamModel.id).where(TeamModel.id == team_id).with_for_update())
    return await find(connection, team_id, member_id)


async def _keep_an_owner(connection: AsyncConnection, leaving: Member) -> None:
    if leaving.role is not TokenRole.OWNER or leaving.disabled_at is not None:
        return
    others = (
        select(func.count())
        .where(MemberModel.team_id == leaving.team_id, MemberModel.role == str(TokenRole.OWNER), MemberModel.id != leaving.id)
        .where(MemberModel.disabled_at.is_(None))
    )
    if (await connection.execute(others)).scalar_one() == 0:
        raise ConflictError("last_owner", "The team's last owner stays one. Make another member an owner first.")
