"""What the ingress must know of sandboxes, and what projects say about their ports."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from hutch.control.records import Scope
from hutch.host.protocol import IngressRoutes
from hutch.storage.models import ProjectModel, SandboxModel


async def routes(connection: AsyncConnection, sandbox_ids: Collection[str] | None = None) -> list[IngressRoutes]:
    """Names of these sandboxes, of all without `sandbox_ids`. What exposes nothing is left out."""
    private = func.coalesce(SandboxModel.ports_private, ProjectModel.ports_private)
    query = select(SandboxModel.id, SandboxModel.routes, private, SandboxModel.wake_on_request, SandboxModel.link_epoch)
    query = query.join(ProjectModel, ProjectModel.id == SandboxModel.project_id)
    if sandbox_ids is not None:
        query = query.where(SandboxModel.id.in_(sandbox_ids))
    return [
        IngressRoutes(
            sandbox_id=identifier,
            routes=[(subdomain, port) for port, subdomain in exposed],
            private=bool(is_private),
            wake=wake,
            epoch=epoch,
        )
        for identifier, exposed, is_private, wake, epoch in await connection.execute(query)
        if exposed
    ]


async def named(connection: AsyncConnection, sandbox_id: str) -> tuple[Scope, str] | None:
    """Whose a sandbox is, and its name."""
    query = select(SandboxModel.team_id, SandboxModel.project_id, SandboxModel.name).where(SandboxModel.id == sandbox_id)
    row = (await connection.execute(query)).first()
    return (Scope(row[0], row[1]), row[2]) if row is not None else None


async def sandboxes_of(connection: AsyncConnection, project_id: str) -> list[str]:
    """Ids of a project's sandboxes."""
    return list((await connection.execute(select(SandboxModel.id).where(SandboxModel.project_id == project_id))).scalars())


async def project_is_private(connection: AsyncConnection, project_id: str) -> bool:
    """Whether ports of a project's sandboxes are private unless these say otherwise."""
    query = select(ProjectModel.ports_private).where(ProjectModel.id == project_id)
    return bool((await connection.execute(query)).scalar_one_or_none())


async def set_project(connection: AsyncConnection, project_id: str, *, private: bool) -> None:
    """Set it. Links that were made before open nothing any more."""
    await connection.execute(update(ProjectModel).where(ProjectModel.id == project_id).values(ports_private=private))
    of_project = SandboxModel.project_id == project_id
    await connection.execute(update(SandboxModel).where(of_project).values(link_epoch=SandboxModel.link_epoch + 1))


async def revoke_links(connection: AsyncConnection, sandbox_id: str) -> None:
    """Have no link that was made before open anything."""
    of_sandbox = SandboxModel.id == sandbox_id
    await connection.execute(update(SandboxModel).where(of_sandbox).values(link_epoch=SandboxModel.link_epoch + 1))
