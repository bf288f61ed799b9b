"""What a deployment does to databases that exist: the steps from one declaration to the next, and what they lose.

Gaps of the contract and what fills them:

- Nothing is renamed, as nothing says so, but the title: there is exactly one, so another name is a new name for it.
- A property of another type keeps what its text can be read as; `relation`, `people`, `place` and `file` begin empty.
- Options that are not declared any more stay while rows have them. A number's or date's format loses nothing.
- Another primary key gives each row the text of that property as its key; rows without one, and all but one of equal ones, go.
- A database that is not declared any more stays with its rows. So does a property of an attached one, which then is its users'.
- A user's own property that is declared now becomes the declared one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import msgspec

from hutch.workers import values
from hutch.workers.manifest import Database, Property, RelationConfig
from hutch.workers.reading import shown

Properties: TypeAlias = Mapping[str, Property]
_TEXTS = frozenset({"title", "text", "url", "email", "phone_number"})
_FROM_TEXT = _TEXTS | {"number", "checkbox", "date", "select", "status", "multi_select"}
_TO_TEXT = _FROM_TEXT | {"people", "file", "place"}


class Create(msgspec.Struct, frozen=True, tag="create"):
    """A database that does not exist yet. Its title is only ever set here."""

    title: str
    icon: Any = None


class Add(msgspec.Struct, frozen=True, tag="add"):
    name: str
    property: Property


class Drop(msgspec.Struct, frozen=True, tag="drop"):
    """The property and its values go."""

    name: str


class Release(msgspec.Struct, frozen=True, tag="release"):
    """The property of an attached database belongs to its users from now on."""

    name: str


class Rename(msgspec.Struct, frozen=True, tag="rename"):
    """The title, under another name."""

    name: str
    to: str


class Retype(msgspec.Struct, frozen=True, tag="retype"):
    """Each value goes through `convert(was, property.type, value)`."""

    name: str
    was: str
    property: Property


class Reconfigure(msgspec.Struct, frozen=True, tag="reconfigure"):
    """Options, formats: values stay."""

    name: str
    property: Property


class Rekey(msgspec.Struct, frozen=True, tag="rekey"):
    """Rows get other keys: those that `rekey` gives."""

    was: str
    name: str


class Undeclare(msgspec.Struct, frozen=True, tag="undeclare"):
    """The database stays, and no sync writes to it."""


Step: TypeAlias = Create | Add | Drop | Release | Rename | Retype | Reconfigure | Rekey | Undeclare


class Migration(msgspec.Struct, frozen=True, kw_only=True):
    """What happens to one database, in order. `losses` are sentences for whoever has to agree."""

    key: str
    steps: tuple[Step, ...]
    losses: tuple[str, ...]


def effective(databases: Sequence[Database]) -> dict[str, dict[str, Property]]:
    """The properties of each database: those declared, and the other sides of relations both ways (`subItems` is one within a
    database)."""
    found = {item.key: dict(item.schema.properties) for item in databases}
    for item in databases:
        items = item.schema.sub_items
        if items is not None:
            parent, child = items.parent_property_name, items.child_property_name
            found[item.key].setdefault(parent, _two_way(item.key, child))
            found[item.key].setdefault(child, _two_way(item.key, parent))
        for name, declared in item.schema.properties.items():
            config = declared.config
            other = declared.related_database_key
            if declared.type == "relation" and config and config.two_way and config.related_property_name and other in found:
                found[other].setdefault(config.related_property_name, _two_way(item.key, name))
    return found


def _two_way(key: str, name: str) -> Property:
    return Property(type="relation", related_database_key=key, config=RelationConfig(two_way=True, related_property_name=name))


def migrate(old: Sequence[Database], new: Sequence[Database], extra: Mapping[str, Properties] | None = None) -> list[Migration]:
    """What a deployment does to the databases of a worker. `extra` are properties that users added, by database.

    Databases that stay as they are are not part of it.
    """
    before, after = effective(old), effective(new)
    were = {item.key: item for item in old}
    found = [
        _migration(were.get(item.key), item, before.get(item.key, {}), after[item.key], (extra or {}).get(item.key, {}))
        for item in new
    ]
    gone = [Migration(key=item.key, steps=(Undeclare(),), losses=()) for item in old if item.key not in after]
    return [item for item in [*found, *gone] if item.steps]


def _migration(old: Database | None, new: Database, before: Properties, after: Properties, extra: Properties) -> Migration:
    steps: list[Step] = []
    losses: list[str] = []
    if old is None:
        steps.append(Create(new.initial_title or new.key, new.schema.database_icon))
    attached = new.type == "attached"
    names = dict(before)
    title, was_title = _title(after), _title(before)
    if title is not None and was_title is not None and title != was_title:
        if title in names or title in extra:
            steps.append(Drop(title))
            losses.append(f"The property {shown(title)} gives its name to the title: its values are deleted.")
        steps.append(Rename(was_title, title))
        names[title] = names.pop(was_title)
    for name, item in after.items():
        was = names.get(name) or extra.get(name)
        if was is None:
            steps.append(Add(name, item))
        elif not _same_kind(was, item):
            steps.append(Retype(name, was.type, item))
            losses.append(_loss(name, was, item))
        elif was != item or name not in names:
            steps.append(Reconfigure(name, item))
    for name in names:
        if name not in after:
            steps.append(Release(name) if attached else Drop(name))
            if not attached:
                losses.append(f"The property {shown(name)} and its values are deleted.")
    if old is not None and old.primary_key_property != new.primary_key_property:
        renamed = old.primary_key_property == was_title and new.primary_key_property == title
        if not renamed:
            steps.append(Rekey(old.primary_key_property, new.primary_key_property))
            losses.append(
                f"Rows are told apart by {shown(new.primary_key_property)} instead of {shown(old.primary_key_property)}: "
                "those without it, and all but one of those that share it, are deleted."
            )
    return Migration(key=new.key, steps=tuple(steps), losses=tuple(losses))


def _title(properties: Properties) -> str | None:
    return next((name for name, item in properties.items() if item.type == "title"), None)


def _same_kind(was: Property, item: Property) -> bool:
    """Whether values mean the same. Relations to another database do not."""
    return was.type == item.type and (was.type != "relation" or was.related_database_key == item.related_database_key)


def _loss(name: str, was: Property, item: Property) -> str:
    if was.type == item.type:
        return f"The relation {shown(name)} leads to another database: its values are deleted."
    if not converts(was.type, item.type):
        return f"The property {shown(name)} becomes a {item.type} instead of a {was.type}: its values are deleted."
    return f"The property {shown(name)} becomes a {item.type} instead of a {was.type}: values that can't be read so are deleted."


def converts(was: str, kind: str) -> bool:
    """Whether a property of one type may keep values when it becomes another."""
    return was == kind != "relation" or (was in _TO_TEXT and kind in _FROM_TEXT)


def convert(was: str, kind: str, cell: values.Cell) -> values.Cell:
    """A value after its property became another type; the empty one where that can't be."""
    if was in _TEXTS and kind in _TEXTS:
        return cell
    if not converts(was, kind):
        return values.Cell(values.empty(kind))
    if was == kind:
        return cell
    if was == "multi_select" and kind in {"select", "status"}:
        return values.Cell(cell.value[0] if cell.value else None)
    written = values.text(was, cell.value)
    if was == "date" and kind != "date" and cell.value is not None and "end" not in cell.value and "timeZone" not in cell.value:
        written = cell.value["start"]
    if not written:
        return values.Cell(values.empty(kind))
    return values.Cell(values.decode(kind, [[written]]).cell.value)


def rekey(kind: str, rows: Mapping[str, Any]) -> dict[str, str | None]:
    """New keys by old ones, from the plain values of the new primary key property, whose type is `kind`; None for a row that
    goes. Of rows that share one the first stays."""
    found: dict[str, str | None] = {}
    taken: set[str] = set()
    for key, value in rows.items():
        written = values.text(kind, value) or None
        found[key] = None if written in taken else written
        if written is not None:
            taken.add(written)
    return found
