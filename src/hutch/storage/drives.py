"""Drives by name or id, and who has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, delete, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from hutch.control.cursor import Position
from hutch.control.records import Drive, DriveHolder, Scope
from hutch.errors import ConflictError
from hutch.host.protocol import DriveMode, SessionStatus
from hutch.storage.models import DriveModel, SessionModel
from hutch.storage.paging import by_column, with_prefix
from hutch.storage.scoping import within

_TABLE = DriveModel.__table__
_PLAIN = tuple(name for name in Drive.__slots__ if name != "number")
_HOLDING = tuple(str(status) for status in (SessionStatus.RUNNING, SessionStatus.STOPPING, SessionStatus.SNAPSHOTTING))

SORT_COLUMNS: dict[str, ColumnElement[Any]] = {
    "createdAt": DriveModel.created_at.expression,
    "updatedAt": DriveModel.updated_at.expression,
    "name": DriveModel.name.expression,
}


@dataclass(frozen=True, slots=True)
class DriveQuery:
    """Which drives of a scope, in which order."""

    sort_by: str
    descending: bool
    name_prefix: str | None
    after: Position | None
    limit: int


def _drive(row: Row[Any]) -> Drive:
    values = row._mapping
    return Drive(number=values["number"], **{name: values[name] for name in _PLAIN})


async def add(connection: AsyncConnection, drive: Drive) -> None:
    """Take the name. Raises `ConflictError` when the project has a drive of that name."""
    try:
        await connection.execute(insert(DriveModel).values(**{name: getattr(drive, name) for name in _PLAIN}))
    except IntegrityError as error:
        raise taken(drive.name) from error


def taken(name: str) -> ConflictError:
    return ConflictError("conflict", f"A drive named '{name}' already exists in this project. Choose another name.")


async def find(connection: AsyncConnection, scope: Scope, name: str, *, by_id: bool = False) -> Drive | None:
    """A drive, also one that is being removed; `by_id`, if no name is like that, by its id."""
    query = select(_TABLE).where(*within(scope, DriveModel))
    row = (await connection.execute(query.where(DriveModel.name == name))).first()
    if row is None and by_id:
        row = (await connection.execute(query.where(DriveModel.id == name))).first()
    return _drive(row) if row is not None else None


async def there(connection: AsyncConnection, key: str) -> list[str]:
    """Drives of a team or project, by the key of its budget, that its host has."""
    kind, _, own = key.partition(":")
    column = DriveModel.team_id if kind == "team" else DriveModel.project_id
    query = select(DriveModel.id).where(column == own, DriveModel.made_at.is_not(None), DriveModel.deleting_at.is_(None))
    return list((await connection.execute(query)).scalars())


async def page(connection: AsyncConnection, scope: Scope, query: DriveQuery) -> tuple[list[Drive], Position | None]:
    """One page, and where the next begins."""
    column = SORT_COLUMNS[query.sort_by]
    behind, order = by_column(column, DriveModel.number, descending=query.descending, after=query.after)
    conditions = [*within(scope, DriveModel), *behind, DriveModel.deleting_at.is_(None)]
    if query.name_prefix is not None:
        conditions += with_prefix(DriveModel.name, query.name_prefix)
    statement = select(_TABLE, column.label("sort_value")).where(*conditions).order_by(*order).limit(query.limit + 1)
    rows = (await connection.execute(statement)).all()
    found = [_drive(row) for row in rows[: query.limit]]
    end = rows[query.limit - 1]._mapping if len(rows) > query.limit else None
    return found, Position(end["sort_value"], end["number"]) if end is not None else None


async def holders(connection: AsyncConnection, drives: list[Drive]) -> dict[str, DriveHolder]:
    """By id, who has these drives read-write."""
    if not drives:
        return {}
    wanted = {drive.id for drive in drives}
    query = select(SessionModel.id, SessionModel.sandbox_name, SessionModel.mounts).where(
        SessionModel.project_id.in_({drive.project_id for drive in drives}),
        SessionModel.status.in_(_HOLDING),
        SessionModel.mounts.is_not(None),
    )
    found = {}
    for session_id, sandbox_name, mounts in await connection.execute(query):
        for mount in mounts:
            if mount["drive_id"] in wanted and mount["mode"] == DriveMode.READ_WRITE:
                found[mount["drive_id"]] = DriveHolder(session_id, sandbox_name)
    return found


async def made(connection: AsyncConnection, drive_id: str, now: int) -> bool:
    """Its host has it. False when it was deleted meanwhile."""
    return await _set(connection, drive_id, made_at=now)


async def used(connection: AsyncConnection, drive_ids: list[str], now: int) -> None:
    """Sessions begin that may change them."""
    await connection.execute(update(DriveModel).where(DriveModel.id.in_(drive_ids)).values(updated_at=now))


async def set_deleting(connection: AsyncConnection, drive_id: str, at: int | None) -> None:
    """Have it be there for nobody any more, or again."""
    await _set(connection, drive_id, deleting_at=at)


async def _set(connection: AsyncConnection, drive_id: str, **values: int | None) -> bool:
    return (await connection.execute(update(DriveModel).where(DriveModel.id == drive_id).values(**values))).rowcount > 0


async def remove(connection: AsyncConnection, drive_id: str) -> None:
    """Forget it, and free its name."""
    await connection.execute(delete(DriveModel).where(DriveModel.id == drive_id))


async def deleting(connection: AsyncConnection) -> list[str]:
    """Drives of all teams whose removal has begun: for telling a host again, never for a caller."""
    return list((await connection.execute(select(DriveModel.id).where(DriveModel.deleting_at.is_not(None)))).scalars())
