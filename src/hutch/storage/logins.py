"""Logins that go on. Each step is one statement with a condition, so that of two at once one finds nothing: what holds once is
used once, whatever process is asked."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Row, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from hutch.control.records import Login
from hutch.errors import UnavailableError
from hutch.storage.models import LoginModel

_TABLE = LoginModel.__table__
MOST = 10_000
"""Logins at once. They are of people who are not known yet, so there have to be bounds."""


def _login(row: Row[Any]) -> Login:
    return Login(**row._mapping)


async def begin(connection: AsyncConnection, login: Login, *, most: int = MOST) -> None:
    """Write a new login, and forget those that are over. Raises `UnavailableError` (`too_many_logins`)."""
    await connection.execute(delete(LoginModel).where(LoginModel.expires_at <= login.created_at))
    count = (await connection.execute(select(func.count()).select_from(LoginModel))).scalar_one()
    if count >= most:
        raise UnavailableError("too_many_logins", "Too many logins go on at once. Try again in a minute.", retry_after_s=60)
    values = {name: getattr(login, name) for name in Login.__slots__}
    try:
        async with connection.begin_nested():
            await connection.execute(insert(LoginModel).values(**values))
    except IntegrityError as error:
        # A code for people to read is short, and this one is taken.
        raise UnavailableError("too_many_logins", "This login could not begin. Try again.", retry_after_s=1) from error


async def opened(connection: AsyncConnection, now: int, browser_hash: str, *, id: str = "", user_code: str = "") -> Login | None:
    """Give a login to a browser; None where there is none that waits for one. Another browser had it at most until now."""
    which = LoginModel.id == id if id else LoginModel.user_code == user_code
    values = {"browser_hash": browser_hash, "returned_at": None, "identity": None}
    return await _changed(connection, now, which, values, LoginModel.decided_at.is_(None))


async def returned(connection: AsyncConnection, now: int, browser_hash: str) -> Login | None:
    """The provider sent a browser back: the login that it has; None where it has none, or came back before."""
    which = LoginModel.browser_hash == browser_hash
    return await _changed(connection, now, which, {"returned_at": now}, LoginModel.returned_at.is_(None))


async def identified(connection: AsyncConnection, now: int, browser_hash: str, identity: str) -> Login | None:
    """Write who came back."""
    return await _changed(
        connection, now, LoginModel.browser_hash == browser_hash, {"identity": identity}, LoginModel.returned_at.is_not(None)
    )


async def decided(
    connection: AsyncConnection,
    now: int,
    browser_hash: str,
    *,
    member_id: str | None,
    code_hash: str | None,
    project: str | None = None,
) -> Login | None:
    """Somebody said yes, as a member, or no. `code_hash`: of a code that was made for that; `project`: one that they chose."""
    values: dict[str, Any] = {"decided_at": now, "member_id": member_id}
    if code_hash is not None:
        values["code_hash"] = code_hash
    if project is not None:
        values["project"] = project
    which = LoginModel.browser_hash == browser_hash
    return await _changed(connection, now, which, values, LoginModel.identity.is_not(None), LoginModel.decided_at.is_(None))


async def decided_with_token(
    connection: AsyncConnection, now: int, user_code: str, *, token_id: str | None, project: str | None
) -> Login | None:
    """Somebody with a token said yes to a login of `ntn`, for a project, or no (None)."""
    values = {"decided_at": now, "token_id": token_id, "project": project}
    waits = (LoginModel.challenge == "", LoginModel.decided_at.is_(None))
    return await _changed(connection, now, LoginModel.user_code == user_code, values, *waits)


async def of_browser(connection: AsyncConnection, now: int, browser_hash: str) -> Login | None:
    """The login that a browser has."""
    return await _found(connection, now, LoginModel.browser_hash == browser_hash)


async def of_code(connection: AsyncConnection, now: int, code_hash: str) -> Login | None:
    """The login whose code that is."""
    return await _found(connection, now, LoginModel.code_hash == code_hash)


async def end(connection: AsyncConnection, login_id: str) -> bool:
    """Remove a login; whether it was there until now."""
    return (await connection.execute(delete(LoginModel).where(LoginModel.id == login_id))).rowcount == 1


async def _found(connection: AsyncConnection, now: int, which: ColumnElement[bool]) -> Login | None:
    row = (await connection.execute(select(_TABLE).where(which, LoginModel.expires_at > now))).first()
    return _login(row) if row is not None else None


async def _changed(
    connection: AsyncConnection, now: int, which: ColumnElement[bool], values: dict[str, Any], *more: ColumnElement[bool]
) -> Login | None:
    changing = update(LoginModel).where(which, LoginModel.expires_at > now, *more).values(**values).returning(*_TABLE.columns)
    row = (await connection.execute(changing)).first()
    return _login(row) if row is not None else None
