"""One batch as a list of writes, each row once: the later of two changes of one key counts.

It is as if the changes were applied one after the other, without a look at `upstreamUpdatedAt` between them: what a later upsert
leaves out is as an earlier one of the batch says, and a row that was deleted before it begins empty. That time is compared once,
with the row that is stored.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import msgspec

from hutch.workers.changes import Change, Delete, Upsert
from hutch.workers.reading import shown

replace = msgspec.structs.replace


class Write(msgspec.Struct, frozen=True, kw_only=True):
    """`upsert` is None for a row that goes. `fresh` when nothing of a stored row is kept."""

    database: str
    key: str
    upsert: Upsert | None
    fresh: bool = False


def merged(changes: Iterable[Change], own: str, declared: Collection[str]) -> tuple[list[Write], list[str]]:
    """The writes of a sync to databases, in the order of their last change, and warnings for changes that lead nowhere. `own` is
    the sync's database, `declared` are those that the worker has."""
    found: dict[tuple[str, str], Write] = {}
    warnings = []
    for change in changes:
        if not isinstance(change, Upsert | Delete):
            warnings.append("A change of a table was returned for a database, and was not written.")
            continue
        database = change.database if change.database is not None else own
        if database not in declared:
            warnings.append(f"Row {shown(change.key)}: the database {shown(database)} is not declared; it was not written.")
            continue
        place = (database, change.key)
        before = found.pop(place, None)
        if isinstance(change, Delete):
            found[place] = Write(database=database, key=change.key, upsert=None, fresh=True)
        else:
            found[place] = Write(
                database=database,
                key=change.key,
                upsert=_over(before.upsert, change) if before and before.upsert else change,
                fresh=before is not None and before.fresh,
            )
    return list(found.values()), warnings


def _over(earlier: Upsert, later: Upsert) -> Upsert:
    return replace(
        later,
        properties=earlier.properties | later.properties,
        icon=later.icon if later.icon is not None else earlier.icon,
        cover=later.cover if later.cover is not None else earlier.cover,
        markdown=later.markdown if later.markdown is not None else earlier.markdown,
    )
