"""API processes that share a database: who lives, so that what a dead one was at can be given up."""

from __future__ import annotations

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from hutch.storage.models import ProcessModel


async def seen(connection: AsyncConnection, process_id: str, now: int) -> None:
    """It lives."""
    statement = update(ProcessModel).where(ProcessModel.id == process_id).values(seen_at=now)
    if (await connection.execute(statement)).rowcount == 0:
        await connection.execute(insert(ProcessModel).values(id=process_id, seen_at=now))


async def alive(connection: AsyncConnection, since: int) -> set[str]:
    """Those that were seen since a time. Others are forgotten."""
    await connection.execute(delete(ProcessModel).where(ProcessModel.seen_at < since))
    return set((await connection.execute(select(ProcessModel.id))).scalars())


async def gone(connection: AsyncConnection, process_ids: list[str]) -> None:
    """They are known to be over."""
    await connection.execute(delete(ProcessModel).where(ProcessModel.id.in_(process_ids)))
