"""Buttons: pages that trigger an automation, for whoever has their address."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from hutch.control.records import Scope
from hutch.errors import ConflictError
from hutch.storage.models import ButtonModel
from hutch.storage.scoping import within

MAX_BUTTONS = 1000


@dataclass(frozen=True, slots=True)
class Button:
    id: str
    worker_id: str
    team_id: str
    project_id: str
    key: str
    secret_hash: str
    created_at: int
    expires_at: int

    @property
    def scope(self) -> Scope:
        return Scope(self.team_id, self.project_id)


_BUTTON = tuple(getattr(ButtonModel, name) for name in Button.__slots__)


async def add(connection: AsyncConnection, scope: Scope, button: Button) -> None:
    """Raises `ConflictError` when the worker has too many. Those that are over make room."""
    mine = (*within(scope, ButtonModel), ButtonModel.worker_id == button.worker_id)
    await connection.execute(delete(ButtonModel).where(*mine, ButtonModel.expires_at <= button.created_at))
    count = (await connection.execute(select(func.count()).select_from(ButtonModel).where(*mine))).scalar_one()
    if count >= MAX_BUTTONS:
        raise ConflictError("too_many_buttons", f"A worker has at most {MAX_BUTTONS} buttons. Revoke some.")
    await connection.execute(insert(ButtonModel).values(**{name: getattr(button, name) for name in Button.__slots__}))


async def all_of(connection: AsyncConnection, scope: Scope, worker_id: str, key: str, now: int) -> list[Button]:
    """An automation's, newest first, without those that are over."""
    query = select(*_BUTTON).where(*within(scope, ButtonModel), ButtonModel.worker_id == worker_id, ButtonModel.key == key)
    query = query.where(ButtonModel.expires_at > now).order_by(ButtonModel.id.desc())
    return [Button(*row) for row in await connection.execute(query)]


async def remove(connection: AsyncConnection, scope: Scope, worker_id: str, button_id: str) -> bool:
    statement = delete(ButtonModel).where(
        *within(scope, ButtonModel), ButtonModel.worker_id == worker_id, ButtonModel.id == button_id
    )
    return (await connection.execute(statement)).rowcount > 0


async def opened(connection: AsyncConnection, secret_hash: str, now: int) -> Button | None:
    """The button of a secret; None when it is over, revoked, or never was."""
    query = select(*_BUTTON).where(ButtonModel.secret_hash == secret_hash, ButtonModel.expires_at > now)
    row = (await connection.execute(query)).first()
    return Button(*row) if row is not None else None
