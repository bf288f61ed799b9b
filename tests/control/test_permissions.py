"""Roles and scopes."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as some

from hutch.control.permissions import (
    PERMISSIONS,
    TEAM_WIDE,
    Permission,
    Role,
    TokenRole,
    granted,
    refusal,
    roles_with,
)

SECRETS = {
    Permission.COMMAND_READ,
    Permission.COMMAND_RUN,
    Permission.FILE_READ,
    Permission.CREDENTIAL_READ,
    Permission.EGRESS_READ,
}


def test_every_role_has_a_row_and_every_permission_somebody() -> None:
    assert set(PERMISSIONS) == set(TokenRole)
    assert set(get_args(Role)) == {str(role) for role in TokenRole}
    assert all(roles_with(permission) for permission in Permission)


def test_a_viewer_changes_nothing_and_sees_no_secret() -> None:
    viewer = granted(TokenRole.VIEWER)
    assert not viewer & SECRETS
    assert {one for one in viewer if not one.endswith(".read")} == {Permission.SELF}


def test_billing_sees_usage_and_sets_budgets_and_nothing_else() -> None:
    assert granted(TokenRole.BILLING) == {
        Permission.SELF,
        Permission.USAGE_READ,
        Permission.BUDGET_READ,
        Permission.BUDGET_WRITE,
        Permission.TEAM_READ,
    }


def test_a_developer_manages_nobody() -> None:
    managing = {Permission.MEMBER_WRITE, Permission.TOKEN_WRITE, Permission.TEAM_WRITE, Permission.POLICY_WRITE}
    assert not granted(TokenRole.DEVELOPER) & managing
    assert granted(TokenRole.MEMBER) == granted(TokenRole.DEVELOPER)


def test_an_owner_does_everything_but_make_teams() -> None:
    assert set(Permission) - granted(TokenRole.OWNER) == {Permission.TEAM_CREATE}
    assert granted(TokenRole.ADMIN) == set(Permission)


def test_a_token_of_one_project_reaches_nothing_of_the_whole_team_unless_it_is_an_administrators() -> None:
    assert not granted(TokenRole.OWNER, one_project=True) & TEAM_WIDE
    assert granted(TokenRole.ADMIN, one_project=True) == set(Permission)


@given(
    role=some.sampled_from(TokenRole),
    scopes=some.lists(some.one_of(some.sampled_from([str(one) for one in Permission]), some.text(max_size=5))),
    one_project=some.booleans(),
)
def test_scopes_only_take_away(role: TokenRole, scopes: list[str], one_project: bool) -> None:
    whole, part = granted(role, one_project=one_project), granted(role, scopes, one_project=one_project)
    assert part <= whole
    assert part == {one for one in whole if one in scopes or one is Permission.SELF}


@pytest.mark.parametrize(
    ("permission", "role", "one_project", "why"),
    [
        (
            Permission.COMMAND_RUN,
            TokenRole.VIEWER,
            False,
            "role 'viewer' does not have. Roles that do: developer, owner, admin",
        ),
        (Permission.MEMBER_WRITE, TokenRole.OWNER, True, "bound to a project"),
        (Permission.COMMAND_RUN, TokenRole.OWNER, True, "not among the token's scopes"),
    ],
)
def test_a_refusal_says_why(permission: Permission, role: TokenRole, one_project: bool, why: str) -> None:
    assert why in refusal(permission, role, one_project=one_project)
