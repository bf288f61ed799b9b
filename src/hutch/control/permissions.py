"""Who may do what: the one table.

    role ─▶ permissions of the role ─▶ those of its scopes, where a token names some ─▶ what a token may do

Every endpoint says which permission it takes (`hutch.api.routing.documented`), and that is checked before it is called. Which
teams and projects a token reaches is another question (`hutch.api.auth`): a permission never reaches beyond them.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import Literal


class TokenRole(enum.StrEnum):
    """What a token or a member is for.

    VIEWER sees what there is, but nothing from within a sandbox, and no secret. BILLING sees usage and sets budgets. DEVELOPER
    does everything with sandboxes; MEMBER is its name in tokens of before. OWNER also manages its team. ADMIN may act for every
    team.
    """

    VIEWER = "viewer"
    BILLING = "billing"
    MEMBER = "member"
    DEVELOPER = "developer"
    OWNER = "owner"
    ADMIN = "admin"


Role = Literal["viewer", "billing", "member", "developer", "owner", "admin"]
"""`TokenRole` as the API writes it."""
MemberRole = Literal["viewer", "billing", "developer", "owner"]
"""What a member of a team can be."""


class Permission(enum.StrEnum):
    """What can be allowed. `read` shows records; what a guest wrote takes `command.read` or `file.read`."""

    SELF = "self"
    """Ask who one is, and revoke the token that one uses. Every token may."""

    SANDBOX_READ = "sandbox.read"
    SANDBOX_WRITE = "sandbox.write"
    """Create, change, resume, stop and delete sandboxes."""
    COMMAND_READ = "command.read"
    """Commands with their arguments and what they wrote: both may hold secrets."""
    COMMAND_RUN = "command.run"
    FILE_READ = "file.read"
    """Files of sandboxes, and archives of snapshots."""
    FILE_WRITE = "file.write"
    SNAPSHOT_READ = "snapshot.read"
    SNAPSHOT_WRITE = "snapshot.write"
    DRIVE_READ = "drive.read"
    DRIVE_WRITE = "drive.write"
    IMAGE_READ = "image.read"
    IMAGE_WRITE = "image.write"
    CREDENTIAL_READ = "credential.read"
    """Names of stored credentials and logins; values are shown to nobody."""
    CREDENTIAL_WRITE = "credential.write"
    INGRESS_WRITE = "ingress.write"
    """Links to private ports, and whether a project's ports are private."""
    EGRESS_READ = "egress.read"
    """What sandboxes asked of the network: names, addresses, paths."""
    POLICY_READ = "policy.read"
    POLICY_WRITE = "policy.write"
    """The network policies that bound those of a team's and a project's sandboxes."""

    WORKER_READ = "worker.read"
    """Workers, what they can do, their runs, names of their secrets."""
    WORKER_LOGS = "worker.logs"
    """What runs wrote and answered, and rows of databases."""
    WORKER_WRITE = "worker.write"
    """Deploy and delete workers, store their secrets, pause and reset syncs."""
    WORKER_SECRETS = "worker.secrets"
    """Values of workers' secrets."""
    WORKER_RUN = "worker.run"

    USAGE_READ = "usage.read"
    BUDGET_READ = "budget.read"
    BUDGET_WRITE = "budget.write"

    TEAM_READ = "team.read"
    TEAM_WRITE = "team.write"
    """Rename and delete the team."""
    TEAM_CREATE = "team.create"
    PROJECT_WRITE = "project.write"
    """Create, rename and delete projects."""
    MEMBER_READ = "member.read"
    MEMBER_WRITE = "member.write"
    TOKEN_READ = "token.read"  # noqa: S105 - a permission
    TOKEN_WRITE = "token.write"  # noqa: S105 - a permission
    AUDIT_READ = "audit.read"
    """The log of who changed what in the team."""


_VIEWER = frozenset(
    {
        Permission.SELF,
        Permission.SANDBOX_READ,
        Permission.SNAPSHOT_READ,
        Permission.DRIVE_READ,
        Permission.IMAGE_READ,
        Permission.POLICY_READ,
        Permission.WORKER_READ,
        Permission.USAGE_READ,
        Permission.BUDGET_READ,
        Permission.TEAM_READ,
    }
)
_BILLING = frozenset(
    {Permission.SELF, Permission.USAGE_READ, Permission.BUDGET_READ, Permission.BUDGET_WRITE, Permission.TEAM_READ}
)
_DEVELOPER = _VIEWER | {
    Permission.SANDBOX_WRITE,
    Permission.COMMAND_READ,
    Permission.COMMAND_RUN,
    Permission.FILE_READ,
    Permission.FILE_WRITE,
    Permission.SNAPSHOT_WRITE,
    Permission.DRIVE_WRITE,
    Permission.IMAGE_WRITE,
    Permission.CREDENTIAL_READ,
    Permission.CREDENTIAL_WRITE,
    Permission.INGRESS_WRITE,
    Permission.EGRESS_READ,
    Permission.WORKER_LOGS,
    Permission.WORKER_WRITE,
    Permission.WORKER_SECRETS,
    Permission.WORKER_RUN,
}
_ADMIN = frozenset(Permission)
_OWNER = _ADMIN - {Permission.TEAM_CREATE}

PERMISSIONS: Mapping[TokenRole, frozenset[Permission]] = {
    TokenRole.VIEWER: _VIEWER,
    TokenRole.BILLING: _BILLING,
    TokenRole.MEMBER: _DEVELOPER,
    TokenRole.DEVELOPER: _DEVELOPER,
    TokenRole.OWNER: _OWNER,
    TokenRole.ADMIN: _ADMIN,
}

TEAM_WIDE = frozenset(
    {
        Permission.POLICY_WRITE,
        Permission.BUDGET_WRITE,
        Permission.TEAM_WRITE,
        Permission.TEAM_CREATE,
        Permission.PROJECT_WRITE,
        Permission.MEMBER_READ,
        Permission.MEMBER_WRITE,
        Permission.AUDIT_READ,
    }
)
"""What no token for a single project may do, whatever its role: it would reach beyond that project, or lift what bounds it.
An administrator's may."""

ADMINISTRATION = TEAM_WIDE | {Permission.TOKEN_READ, Permission.TOKEN_WRITE}
"""What manages a team. Attempts without the permission are in the team's audit log."""


def granted(role: TokenRole, scopes: Iterable[str] | None = None, *, one_project: bool = False) -> frozenset[Permission]:
    """What a token may do. `scopes` never add anything; those that this version does not know grant nothing."""
    permissions = PERMISSIONS[role]
    if one_project and role is not TokenRole.ADMIN:
        permissions -= TEAM_WIDE
    if scopes is not None:
        permissions &= {*scopes, Permission.SELF}
    return permissions


def roles_with(permission: Permission) -> list[TokenRole]:
    """Which roles have it, weakest first."""
    return [role for role in TokenRole if permission in PERMISSIONS[role]]


def refusal(permission: Permission, role: TokenRole, *, one_project: bool) -> str:
    """Why a token of this role is refused, and which would not be."""
    if permission not in PERMISSIONS[role]:
        allowed = ", ".join(one for one in roles_with(permission) if one is not TokenRole.MEMBER)
        return f"This takes the permission '{permission}', which the role '{role}' does not have. Roles that do: {allowed}."
    if one_project and permission in TEAM_WIDE and role is not TokenRole.ADMIN:
        return f"This takes the permission '{permission}', which a token that is bound to a project does not have."
    return f"This takes the permission '{permission}', which is not among the token's scopes."
