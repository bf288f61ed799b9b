"""Whose rows a statement is about: the one place that turns a `Scope` into conditions.

Every function of this package that reads or changes rows of tenants takes a `Scope` and puts `within` into its statement, or
takes the `team_id` where it is about teams themselves. Those that do neither, because they speak for the server or go on with
what a scope has found, are listed with their reason in `tests/storage/test_scoping.py`, which looks at all functions. Nothing
outside this package makes statements.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, FromClause, select

from hutch.control.records import Scope
from hutch.storage.models import Base, ProjectModel


def within(scope: Scope, of: type[Base] | FromClause) -> tuple[ColumnElement[bool], ...]:
    """What rows of a table fulfil that are a team's, or a project's of it. Raises `TypeError` for a table that can't tell."""
    table = of if isinstance(of, FromClause) else of.__table__
    conditions: list[ColumnElement[bool]] = []
    if "team_id" in table.columns:
        conditions.append(table.columns["team_id"] == scope.team_id)
    if "project_id" in table.columns:
        if scope.project_id is not None:
            conditions.append(table.columns["project_id"] == scope.project_id)
        elif not conditions:
            of_team = select(ProjectModel.id).where(ProjectModel.team_id == scope.team_id)
            conditions.append(table.columns["project_id"].in_(of_team.scalar_subquery()))
    if not conditions or (scope.project_id is not None and "project_id" not in table.columns):
        raise TypeError(f"rows of {table} can't be told apart by {scope}")
    return tuple(conditions)
