"""How far each host's events were applied."""

from __future__ import annotations

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from hutch.storage.models import HostCursorModel


async def cursor(connection: AsyncConnection, host_id: str) -> int:
    """The last applied event; 0 before the first."""
    seq = await connection.scalar(select(HostCursorModel.seq).where(HostCursorModel.host_id == host_id))
    return seq or 0


async def set_cursor(connection: AsyncConnection, host_id: str, seq: int) -> None:
    query = update(HostCursorModel).where(HostCursorModel.host_id == host_id).values(seq=seq)
    if (await connection.execute(query)).rowcount == 0:
        await connection.execute(insert(HostCursorModel).values(host_id=host_id, seq=seq))
