"""Webhooks of workers: their addresses, and what is counted of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from hutch.control.records import Scope
from hutch.storage.models import WebhookModel
from hutch.storage.scoping import within
from hutch.workers.webhooks import WebhookState


@dataclass(frozen=True, slots=True)
class Webhook:
    """`address` is the part of its URL that nobody guesses."""

    worker_id: str
    key: str
    team_id: str
    project_id: str
    address: str
    failures: int
    verifies: bool
    created_at: int

    @property
    def state(self) -> WebhookState:
        return WebhookState(failures=self.failures, verifies=self.verifies)


_WEBHOOK = tuple(getattr(WebhookModel, name) for name in Webhook.__slots__)


async def ensure(
    connection: AsyncConnection, scope: Scope, worker_id: str, addresses: dict[str, str], now: int, *, deployed: bool
) -> None:
    """Give the webhooks of these keys an address if they have none. `deployed`: the counts of all begin anew."""
    mine = (*within(scope, WebhookModel), WebhookModel.worker_id == worker_id)
    # Held until the end of the transaction, so that two deploys don't add the same.
    known = set((await connection.execute(select(WebhookModel.key).where(*mine).with_for_update())).scalars())
    for key, address in addresses.items():
        if key not in known:
            owner = {"worker_id": worker_id, "team_id": scope.team_id, "project_id": scope.project_id}
            values = {"key": key, "address": address, "failures": 0, "verifies": True, "created_at": now}
            await connection.execute(insert(WebhookModel).values(**owner, **values))
    if deployed:
        await connection.execute(update(WebhookModel).where(*mine).values(failures=0))


async def all_of(connection: AsyncConnection, scope: Scope, worker_id: str, keys: Collection[str]) -> list[Webhook]:
    """Those of these keys."""
    query = select(*_WEBHOOK).where(
        *within(scope, WebhookModel), WebhookModel.worker_id == worker_id, WebhookModel.key.in_(list(keys))
    )
    return [Webhook(*row) for row in await connection.execute(query.order_by(WebhookModel.key))]


async def find(connection: AsyncConnection, scope: Scope, worker_id: str, key: str, *, changing: bool = False) -> Webhook | None:
    """`changing`: nobody else changes it until the end of the transaction."""
    query = select(*_WEBHOOK).where(*within(scope, WebhookModel), WebhookModel.worker_id == worker_id, WebhookModel.key == key)
    row = (await connection.execute(query.with_for_update() if changing else query)).first()
    return Webhook(*row) if row is not None else None


async def addressed(connection: AsyncConnection, project_id: str, worker_id: str, key: str) -> Webhook | None:
    """Whoever asks; the caller compares the address."""
    query = select(*_WEBHOOK).where(
        WebhookModel.project_id == project_id, WebhookModel.worker_id == worker_id, WebhookModel.key == key
    )
    row = (await connection.execute(query)).first()
    return Webhook(*row) if row is not None else None


async def save(connection: AsyncConnection, scope: Scope, worker_id: str, key: str, state: WebhookState) -> None:
    statement = update(WebhookModel).where(
        *within(scope, WebhookModel), WebhookModel.worker_id == worker_id, WebhookModel.key == key
    )
    await connection.execute(statement.values(failures=state.failures, verifies=state.verifies))
