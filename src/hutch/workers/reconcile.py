"""What a deployment that begins to serve changes: databases are migrated, syncs come, go, or get another schedule.

States of syncs and rows of databases survive deployments, also of those that are not declared any more, which may come back.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy.ext.asyncio import AsyncConnection

from hutch.control.records import Scope
from hutch.storage import worker_rows, worker_syncs
from hutch.storage.sealing import Sealer
from hutch.workers import schema, tables
from hutch.workers.manifest import AiConnector, Manifest, Sync
from hutch.workers.reading import shown
from hutch.workers.schema import Migration
from hutch.workers.sync import Deploy, Restart, SyncConfig, advance, new


def configs(manifest: Manifest) -> Iterator[tuple[str, SyncConfig]]:
    """The syncs of a manifest and its AI connectors, by key."""
    syncs = {item.key for item in manifest.capabilities if item.tag == "sync"}
    for item in manifest.capabilities:
        config, database = item.config, tables.written(manifest, item)
        if database is None:
            continue
        if isinstance(config, Sync):
            yield item.key, SyncConfig(schedule=config.schedule, replaces=config.replaces, database=database)
        elif isinstance(config, AiConnector) and item.key not in syncs:
            yield item.key, SyncConfig(schedule=config.schedule, replaces=False, database=database)


async def losses(connection: AsyncConnection, scope: Scope, worker_id: str, manifest: Manifest) -> list[str]:
    """What `apply` would delete, in sentences."""
    before = await worker_rows.databases(connection, scope, worker_id)
    found = schema.migrate([item.definition for item in before.values()], tables.databases(manifest))
    return [f"database {shown(item.key)}: {sentence}" for item in found for sentence in item.losses]


async def lock(connection: AsyncConnection, scope: Scope, worker_id: str, sealer: Sealer, now: int) -> None:
    """Wait for whoever writes for a worker or has it served, and have them wait for the end of this transaction."""
    # In the order in which everybody does.
    await worker_syncs.of_worker(connection, scope, worker_id, sealer, lock=True)
    await worker_syncs.next_mark(connection, scope, worker_id, now)


async def apply(
    connection: AsyncConnection, scope: Scope, worker_id: str, manifest: Manifest, sealer: Sealer, now: int
) -> list[Migration]:
    """Have databases and syncs be as a manifest declares them, in the transaction that has its deployment serve."""
    known = await worker_syncs.of_worker(connection, scope, worker_id, sealer, lock=True)
    await worker_syncs.next_mark(connection, scope, worker_id, now)
    migrations = await worker_rows.migrate(connection, scope, worker_id, tables.databases(manifest), now)
    declared = dict(configs(manifest))
    for key, config in declared.items():
        stored = known.get(key)
        if stored is None:
            await worker_syncs.add(connection, scope, worker_id, key, new(config, now), sealer)
            continue
        state = stored.state
        if not stored.declared:
            await worker_syncs.revive(connection, stored)
            state, _ = advance(state, Restart(now_ms=now))
        state, _ = advance(state, Deploy(now_ms=now, config=config))
        await worker_syncs.put(connection, stored, state, sealer)
    for key, stored in known.items():
        if key not in declared and stored.declared:
            await worker_syncs.retire(connection, stored)
    return migrations
