"""Pages of rows by the value of a column, such as the time of their creation."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, or_
from sqlalchemy.orm import InstrumentedAttribute

from hutch.control.cursor import Position

Column = InstrumentedAttribute[Any] | ColumnElement[Any]


def by_column(
    column: Column, number: Column, *, descending: bool, after: Position | None
) -> tuple[list[ColumnElement[bool]], tuple[ColumnElement[Any], ColumnElement[Any]]]:
    """What rows behind a position fulfil, and their order; rows of one value are in the order of their numbers."""
    order = (column.desc(), number.desc()) if descending else (column.asc(), number.asc())
    if after is None:
        return [], order
    beyond = column < after.value if descending else column > after.value
    tie = number < after.number if descending else number > after.number
    return [or_(beyond, (column == after.value) & tie)], order


def with_prefix(name: Column, prefix: str) -> list[ColumnElement[bool]]:
    """What rows fulfil whose name begins like this."""
    # "{" follows "z", the last character a name can have.
    return [name >= prefix, name < prefix + "{"]
