"""Named sandboxes. A name is unique in its project; taking it is what makes concurrent creates of one name safe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from hutch.control.cursor import Position
from hutch.control.records import Route, SandboxConfig, SandboxRecord, Scope
from hutch.errors import ConflictError
from hutch.storage import network_policies
from hutch.storage.models import SandboxModel, SandboxTagModel, SessionModel
from hutch.storage.paging import by_column, with_prefix
from hutch.storage.scoping import within
from hutch.storage.sealing import Sealer

_TABLE = SandboxModel.__table__
_PLAIN_CONFIG = (
    "image",
    "timeout_ms",
    "vcpus",
    "memory_mb",
    "persistent",
    "runtime",
    "region",
    "cwd",
    "tags",
    "snapshot_expiration_ms",
    "keep_last_snapshots",
    "disk_bytes",
    "mounts",
    "ports_private",
    "wake_on_request",
    "budget",
    "isolation",
)
_PLAIN = (
    "id",
    "team_id",
    "project_id",
    "name",
    "status",
    "status_updated_at",
    "created_at",
    "updated_at",
    "current_session_id",
    "current_snapshot_id",
    "total_active_cpu_us",
    "total_duration_ms",
    "total_ingress_bytes",
    "total_egress_bytes",
    "network_generation",
    "link_epoch",
    "worker_id",
)

SORT_COLUMNS: dict[str, ColumnElement[Any]] = {
    "createdAt": SandboxModel.created_at.expression,
    "name": SandboxModel.name.expression,
    "statusUpdatedAt": SandboxModel.status_updated_at.expression,
    "currentSnapshotId": func.coalesce(SandboxModel.current_snapshot_id, ""),
}


@dataclass(frozen=True, slots=True)
class SandboxQuery:
    """Which sandboxes of a scope, in which order."""

    sort_by: str = "createdAt"
    descending: bool = True
    name_prefix: str | None = None
    tag: tuple[str, str] | None = None
    status: str | None = None
    after: Position | None = None
    limit: int = 20


def config_values(config: SandboxConfig, sandbox_id: str, sealer: Sealer) -> dict[str, Any]:
    """Columns of a configuration."""
    values: dict[str, Any] = {name: getattr(config, name) for name in _PLAIN_CONFIG}
    values["failover_regions"] = list(config.failover_regions)
    values["env"] = sealer.seal(config.env, sandbox_id)
    values["network_policy"] = network_policies.seal(config.network_policy, sandbox_id, sealer)
    return values


def _record(row: Row[Any], sealer: Sealer) -> SandboxRecord:
    values = row._mapping
    identifier = values["id"]
    config = SandboxConfig(
        env=sealer.open(values["env"], identifier),
        network_policy=network_policies.opened(values["network_policy"], identifier, sealer),
        failover_regions=tuple(values["failover_regions"]),
        **{name: values[name] for name in _PLAIN_CONFIG},
    )
    routes = tuple(Route(port, subdomain) for port, subdomain in values["routes"])
    return SandboxRecord(config=config, routes=routes, number=values["number"], **{name: values[name] for name in _PLAIN})


async def add(connection: AsyncConnection, record: SandboxRecord, sealer: Sealer) -> None:
    """Take the name. Raises `ConflictError` when the project has a sandbox of that name."""
    values = {name: getattr(record, name) for name in _PLAIN} | config_values(record.config, record.id, sealer)
    values["routes"] = [[route.port, route.subdomain] for route in record.routes]
    try:
        await connection.execute(insert(SandboxModel).values(**values))
    except IntegrityError as error:
        raise ConflictError(
            "conflict",
            f"A sandbox named '{record.name}' already exists in this project. Choose another name, or get or delete that one.",
        ) from error
    await _replace_tags(connection, record.id, record.config.tags)


async def find(
    connection: AsyncConnection, scope: Scope, name: str, sealer: Sealer, *, lock: bool = False
) -> SandboxRecord | None:
    """The sandbox; with `lock` nobody else changes it until the transaction ends."""
    query = select(_TABLE).where(*within(scope, SandboxModel), SandboxModel.name == name)
    row = (await connection.execute(query.with_for_update() if lock else query)).first()
    return _record(row, sealer) if row is not None else None


async def of_workers(connection: AsyncConnection) -> list[tuple[Scope, str]]:
    """All that were made for workers: whose, and their names."""
    query = select(SandboxModel.team_id, SandboxModel.project_id, SandboxModel.name).where(SandboxModel.worker_id.is_not(None))
    return [(Scope(row[0], row[1]), row[2]) for row in await connection.execute(query)]


async def page(
    connection: AsyncConnection, scope: Scope, query: SandboxQuery, sealer: Sealer
) -> tuple[list[SandboxRecord], Position | None]:
    """One page, without those of workers, and where the next begins."""
    column = SORT_COLUMNS[query.sort_by]
    behind, order = by_column(column, SandboxModel.number, descending=query.descending, after=query.after)
    conditions = [*within(scope, SandboxModel), SandboxModel.worker_id.is_(None), *behind]
    if query.name_prefix:
        conditions += with_prefix(SandboxModel.name, query.name_prefix)
    if query.tag is not None:
        tag_key, tag_value = query.tag
        tagged = select(SandboxTagModel.sandbox_id).where(SandboxTagModel.key == tag_key, SandboxTagModel.value == tag_value)
        conditions.append(SandboxModel.id.in_(tagged))
    if query.status is not None:
        conditions.append(SandboxModel.status == query.status)
    statement = select(_TABLE, column.label("sort_value")).where(*conditions).order_by(*order).limit(query.limit + 1)
    rows = (await connection.execute(statement)).all()
    records = [_record(row, sealer) for row in rows[: query.limit]]
    if len(rows) <= query.limit:
        return records, None
    last_row = rows[query.limit - 1]._mapping
    return records, Position(last_row["sort_value"], last_row["number"])


async def save(connection: AsyncConnection, record: SandboxRecord, sealer: Sealer) -> None:
    """Write what an update may change: configuration, routes, `current_snapshot_id`, `updated_at`."""
    values = config_values(record.config, record.id, sealer)
    values["routes"] = [[route.port, route.subdomain] for route in record.routes]
    values["current_snapshot_id"] = record.current_snapshot_id
    values["updated_at"] = record.updated_at
    values["link_epoch"] = record.link_epoch
    await connection.execute(update(SandboxModel).where(SandboxModel.id == record.id).values(**values))
    await connection.execute(delete(SandboxTagModel).where(SandboxTagModel.sandbox_id == record.id))
    await _replace_tags(connection, record.id, record.config.tags)


async def set_session(connection: AsyncConnection, record: SandboxRecord) -> None:
    """Make another session a sandbox's current one."""
    names = ("current_session_id", "status", "status_updated_at")
    values = {name: getattr(record, name) for name in names}
    await connection.execute(update(SandboxModel).where(SandboxModel.id == record.id).values(**values))


async def next_generation(connection: AsyncConnection, sandbox_id: str) -> int:
    """The number of a sandbox's next network policy, be it the record's or a session's."""
    following = SandboxModel.network_generation + 1
    query = update(SandboxModel).where(SandboxModel.id == sandbox_id).values(network_generation=following)
    found: int | None = (await connection.execute(query.returning(SandboxModel.network_generation))).scalar_one_or_none()
    # Without a record there is no session that anybody could change.
    assert found is not None
    return found


async def remove(connection: AsyncConnection, scope: Scope, sandbox_id: str, now: int) -> bool:
    """Delete the record and free its name; its sessions stay for accounting. False when it was gone."""
    await connection.execute(delete(SandboxTagModel).where(SandboxTagModel.sandbox_id == sandbox_id))
    result = await connection.execute(delete(SandboxModel).where(*within(scope, SandboxModel), SandboxModel.id == sandbox_id))
    if result.rowcount == 0:
        return False
    await connection.execute(update(SessionModel).where(SessionModel.sandbox_id == sandbox_id).values(deleted_at=now))
    return True


async def _replace_tags(connection: AsyncConnection, sandbox_id: str, tags: dict[str, str]) -> None:
    if tags:
        rows = [{"sandbox_id": sandbox_id, "key": key, "value": value} for key, value in tags.items()]
        await connection.execute(insert(SandboxTagModel), rows)
