"""Stored credentials of projects. Values are sealed; they leave the database for a host and for nobody else."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from sqlalchemy import ColumnElement, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from hutch.control.records import CredentialRecord, Scope
from hutch.errors import BadRequestError
from hutch.storage.models import CredentialModel
from hutch.storage.scoping import within
from hutch.storage.sealing import Sealer

MAX_PER_PROJECT = 1000


async def put(connection: AsyncConnection, scope: Scope, name: str, value: str, sealer: Sealer, now: int) -> None:
    """Store a value under a name, over the one that is there. Raises `BadRequestError` when the project has too many."""
    values = {"value": sealer.seal(value, _row_id(scope, name)), "updated_at": now}
    overwrite = update(CredentialModel).where(*_named(scope, name)).values(**values)
    if (await connection.execute(overwrite)).rowcount:
        return
    count = select(func.count()).select_from(CredentialModel).where(*within(scope, CredentialModel))
    if (await connection.execute(count)).scalar_one() >= MAX_PER_PROJECT:
        raise BadRequestError(
            "too_many_credentials", f"The project has {MAX_PER_PROJECT} credentials, the most that are kept. Delete some."
        )
    row = {"project_id": scope.project_id, "name": name, "created_at": now, **values}
    try:
        async with connection.begin_nested():
            await connection.execute(insert(CredentialModel).values(**row))
    except IntegrityError:
        # Somebody else's was first; ours is the later one.
        await connection.execute(overwrite)


async def list_names(connection: AsyncConnection, scope: Scope, *, prefix: str = "") -> list[CredentialRecord]:
    """Names and times, sorted by name: of those whose names begin with `prefix`, shown without it; without one, of those that
    rules can name, which have no colon."""
    columns = (CredentialModel.name, CredentialModel.created_at, CredentialModel.updated_at)
    query = select(*columns).where(*within(scope, CredentialModel)).order_by(CredentialModel.name)
    records = [CredentialRecord(*row) for row in await connection.execute(query)]
    if not prefix:
        return [record for record in records if ":" not in record.name]
    return [replace(record, name=record.name.removeprefix(prefix)) for record in records if record.name.startswith(prefix)]


async def remove(connection: AsyncConnection, scope: Scope, name: str) -> bool:
    """False when there was none."""
    return (await connection.execute(delete(CredentialModel).where(*_named(scope, name)))).rowcount > 0


async def values(connection: AsyncConnection, scope: Scope, names: Iterable[str], sealer: Sealer) -> dict[str, str]:
    """The values of those of `names` that there are."""
    query = select(CredentialModel.name, CredentialModel.value).where(
        *within(scope, CredentialModel), CredentialModel.name.in_(list(names))
    )
    return {name: sealer.open(sealed, _row_id(scope, name)) for name, sealed in await connection.execute(query)}


def _named(scope: Scope, name: str) -> tuple[ColumnElement[bool], ...]:
    return *within(scope, CredentialModel), CredentialModel.name == name


def _row_id(scope: Scope, name: str) -> str:
    return f"{scope.project_id}/{name}"
