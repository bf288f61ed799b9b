"""Relations between rows: sets of pairs, of which a row sees those whose other end exists.

A sync names related rows by primary key, often before they exist. Such a pair is kept and *pending*: nobody sees it until the
other row appears. Where the relation goes both ways, the other side is another view of the same pairs, so that the two never
disagree, and writing either side replaces that row's pairs. When a row is deleted, the pairs from it go with it; those that lead
to it are pending again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import msgspec


class Difference(msgspec.Struct, frozen=True):
    """Pairs `(from, to)` to add and to remove."""

    added: frozenset[tuple[str, str]]
    removed: frozenset[tuple[str, str]]


def written(key: str, before: Collection[str], after: Iterable[str]) -> Difference:
    """A row's own side becomes `after`."""
    new, old = set(after), set(before)
    return Difference(frozenset((key, to) for to in new - old), frozenset((key, to) for to in old - new))


def written_back(key: str, before: Collection[str], after: Iterable[str]) -> Difference:
    """The other side of a relation both ways, written at the row that is pointed to."""
    new, old = set(after), set(before)
    return Difference(frozenset((origin, key) for origin in new - old), frozenset((origin, key) for origin in old - new))


def seen(key: str, pairs: Iterable[tuple[str, str]], existing: Collection[str]) -> list[str]:
    """What a row shows: the rows that it points to and that exist, by key."""
    return sorted(to for origin, to in pairs if origin == key and to in existing)


def seen_back(key: str, pairs: Iterable[tuple[str, str]], existing: Collection[str]) -> list[str]:
    """What the other side shows: the rows that point to it and exist."""
    return sorted(origin for origin, to in pairs if to == key and origin in existing)


def pending(key: str, pairs: Iterable[tuple[str, str]], existing: Collection[str]) -> list[str]:
    """What a row points to that does not exist yet."""
    return sorted(to for origin, to in pairs if origin == key and to not in existing)


def deleted(key: str, pairs: Iterable[tuple[str, str]]) -> Difference:
    """What goes with a row."""
    return Difference(frozenset(), frozenset(pair for pair in pairs if pair[0] == key))
