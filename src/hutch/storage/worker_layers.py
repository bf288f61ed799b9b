"""Layers of installed dependencies: which snapshot a project has of a key. No project finds another one's."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from hutch.control.records import Scope
from hutch.storage.models import LayerModel
from hutch.storage.scoping import within


@dataclass(frozen=True, slots=True)
class Layer:
    key: str
    snapshot_id: str
    created_at: int
    used_at: int


_LAYER = tuple(getattr(LayerModel, name) for name in Layer.__slots__)


async def find(connection: AsyncConnection, scope: Scope, key: str) -> Layer | None:
    row = (await connection.execute(select(*_LAYER).where(*within(scope, LayerModel), LayerModel.key == key))).first()
    return Layer(*row) if row is not None else None


async def used(connection: AsyncConnection, scope: Scope, key: str, now: int) -> None:
    await connection.execute(update(LayerModel).where(*within(scope, LayerModel), LayerModel.key == key).values(used_at=now))


async def put(connection: AsyncConnection, scope: Scope, key: str, snapshot_id: str, now: int) -> list[str]:
    """Store a layer; the snapshot of one that it replaces."""
    own = (*within(scope, LayerModel), LayerModel.key == key)
    former = list((await connection.execute(select(LayerModel.snapshot_id).where(*own).with_for_update())).scalars())
    await connection.execute(delete(LayerModel).where(*own))
    values = {"team_id": scope.team_id, "project_id": scope.project_id, "key": key, "snapshot_id": snapshot_id}
    await connection.execute(insert(LayerModel).values(**values, created_at=now, used_at=now))
    return former


async def beyond(connection: AsyncConnection, scope: Scope, most: int) -> list[str]:
    """Forget those of a project that were used least lately, but for so many; their snapshots."""
    query = select(LayerModel.snapshot_id).where(*within(scope, LayerModel))
    gone = list((await connection.execute(query.order_by(LayerModel.used_at.desc(), LayerModel.key).offset(most))).scalars())
    await connection.execute(delete(LayerModel).where(*within(scope, LayerModel), LayerModel.snapshot_id.in_(gone)))
    return gone


async def unused(connection: AsyncConnection, before: int) -> list[str]:
    """Forget those that were not used since a time; their snapshots."""
    gone = list((await connection.execute(select(LayerModel.snapshot_id).where(LayerModel.used_at < before))).scalars())
    await connection.execute(delete(LayerModel).where(LayerModel.snapshot_id.in_(gone)))
    return gone
