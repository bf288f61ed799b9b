"""Pages of rows by the time of their creation."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, or_
from sqlalchemy.orm import InstrumentedAttribute

from hutch.control.cursor import Position

Column = InstrumentedAttribute[int]


def by_creation(
    created: Column, number: Column, *, descending: bool, after: Position | None
) -> tuple[list[ColumnElement[bool]], tuple[ColumnElement[Any], ColumnElement[Any]]]:
    """What rows behind a position fulfil, and their order; rows of one millisecond are in the order of their numbers."""
    order = (created.desc(), number.desc()) if descending else (created.asc(), number.asc())
    if after is None:
        return [], order
    beyond = created < after.value if descending else created > after.value
    tie = number < after.number if descending else number > after.number
    return [or_(beyond, (created == after.value) & tie)], order
