"""What a deployment changes, by comparing two manifests: shown before it counts, and printed after it."""

from __future__ import annotations

import enum
from typing import Any

import msgspec

from hutch.workers.manifest import Manifest


class Change(enum.StrEnum):
    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"
    SAME = "same"


class Difference(msgspec.Struct, frozen=True):
    """One item. `tag` is the kind of a capability, or `database`, `xldb`, `pacer`, `credential`. Contents are not part of it:
    they may be secret."""

    change: Change
    tag: str
    key: str


def compare(old: Manifest | None, new: Manifest) -> list[Difference]:
    """Every item of both, in the order of the new one, then what is gone. Items are the same when kind and key are."""
    before = _items(old) if old else {}
    after = _items(new)
    found = []
    for place, content in after.items():
        change = Change.ADDED if place not in before else Change.SAME if before[place] == content else Change.CHANGED
        found.append(Difference(change, *place))
    return found + [Difference(Change.REMOVED, *place) for place in before if place not in after]


def _items(manifest: Manifest) -> dict[tuple[str, str], Any]:
    found: dict[tuple[str, str], Any] = {(item.tag, item.key): item.declared for item in manifest.capabilities}
    groups = (
        ("database", manifest.databases),
        ("xldb", manifest.xldbs),
        ("pacer", manifest.pacers),
        ("credential", manifest.credentials),
    )
    for tag, group in groups:
        found |= {(tag, item.key): item for item in group}
    return found
