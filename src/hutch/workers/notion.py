"""Rows of a worker's database as Notion's API takes them (2025-09-03): properties of a data source, and values of a page.

    title → title          text, place → rich_text      select, status → select     multi_select → multi_select
    number → number        checkbox → checkbox          date → date                 file → files, addresses only
    url, email, phone_number → the same                 relation → relation, to a database that is mirrored too

People are left out: the API takes ids of its workspace's members, not addresses. A status is made as a select, as its groups
can't be made by the API; a property that is a status in Notion gets one. Lengths are counted as Notion counts them:
in UTF-16 units.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from hutch.workers import values
from hutch.workers.manifest import Option, Property
from hutch.workers.reading import shown

MAX_TEXT = 2000
MAX_ITEMS = 100
"""Pieces of a text, items of a list, options of a declaration, paragraphs of a page."""
MAX_NAME = 100
"""Of an option or a file."""
MAX_ADDRESS = 2000
MAX_ID = 64
MAX_SHORT = 200
"""Of an email address or a phone number."""
COLORS = frozenset("default gray brown orange yellow green blue purple pink red".split())
FORMATS = frozenset("number number_with_commas percent dollar euro pound yen rupee won yuan".split())
_MADE = {"text": "rich_text", "place": "rich_text", "status": "select", "file": "files"} | {
    kind: kind
    for kind in ("title", "url", "email", "phone_number", "checkbox", "number", "date", "select", "multi_select", "relation")
}
_ALSO = {("status", "status"), ("select", "status"), ("url", "rich_text"), ("email", "rich_text"), ("phone_number", "rich_text")}
"""Types of properties that exist and take what would be made as another."""
_SOUGHT = frozenset({"title", "rich_text", "url", "email", "phone_number", "number", "select"})


class Slot(msgspec.Struct, frozen=True):
    """The property of a data source that has the values of one of ours."""

    name: str
    type: str


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """How a database goes into a data source: slots by our properties, `missing` properties to add, and what is left out."""

    slots: dict[str, Slot]
    missing: dict[str, dict[str, Any]]
    warnings: tuple[str, ...]


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """A row as a page. `children` are for its creation only."""

    properties: dict[str, Any]
    icon: dict[str, Any] | None
    cover: dict[str, Any] | None
    children: list[dict[str, Any]]

    @property
    def content(self) -> dict[str, Any]:
        """What a change sends."""
        found: dict[str, Any] = {"properties": self.properties}
        return found | {name: value for name, value in (("icon", self.icon), ("cover", self.cover)) if value is not None}

    @property
    def digest(self) -> str:
        return hashlib.sha256(msgspec.json.encode(self.content, order="sorted")).hexdigest()


# -- properties --------------------------------------------------------------------------------------


def declaration(item: Property, related: Mapping[str, str]) -> dict[str, Any] | None:
    """A property as it is added, None where it can't be. `related` are data sources by databases that are mirrored."""
    made = _MADE.get(item.type)
    if made is None:
        return None
    if made == "relation":
        source = related.get(item.related_database_key or "")
        return None if source is None else {"relation": {"data_source_id": source, "single_property": {}}}
    if made in {"select", "multi_select"}:
        return {made: {"options": _declared_options(item)}}
    if made == "number":
        return {"number": {"format": item.format if item.format in FORMATS else "number"}}
    return {made: {}}


def _declared_options(item: Property) -> list[dict[str, str]]:
    options = item.options or [option for group in item.groups or () for option in group.options]
    named: dict[str, Option] = {}
    for option in options:
        if name := option_name(option.name):
            named.setdefault(name, option)
    return [
        {"name": name} | ({"color": option.color} if option.color in COLORS else {})
        for name, option in list(named.items())[:MAX_ITEMS]
    ]


def fit(properties: Mapping[str, Property], there: Mapping[str, str], related: Mapping[str, str]) -> Fit:
    """`there` are the types of a data source's properties by name. The title is the title, whatever its name."""
    slots, missing, warnings = {}, {}, []
    title = next((name for name, kind in there.items() if kind == "title"), None)
    for name, item in properties.items():
        made = _MADE.get(item.type)
        if made is None:
            warnings.append(f"The property {shown(name)} is not mirrored: Notion takes no {shown(item.type)} from others.")
        elif made == "title" and title is not None:
            slots[name] = Slot(title, "title")
        elif name in there:
            if there[name] == made or (item.type, there[name]) in _ALSO:
                slots[name] = Slot(name, there[name])
            else:
                warnings.append(f"The property {shown(name)} is not mirrored: it is a {shown(there[name])} in Notion.")
        elif (added := declaration(item, related)) is not None:
            slots[name], missing[name] = Slot(name, made), added
        else:
            warnings.append(f"The property {shown(name)} is not mirrored: the database that it leads to is not.")
    return Fit(slots=slots, missing=missing, warnings=tuple(warnings))


# -- values ------------------------------------------------------------------------------------------


def page(
    properties: Mapping[str, Property],
    slots: Mapping[str, Slot],
    row: Mapping[str, Any],
    *,
    icon: Mapping[str, Any] | None = None,
    cover: Mapping[str, Any] | None = None,
    markdown: str | None = None,
    pages: Mapping[tuple[str, str], str] | None = None,
) -> Page:
    """A row's plain values as a page. `pages` are ids of pages by database and key."""
    known = pages or {}
    found = {}
    for name, slot in slots.items():
        item, value = properties[name], row.get(name)
        if item.type == "relation":
            related = item.related_database_key or ""
            value = [known[related, key] for key in value or () if (related, key) in known]
        found[slot.name] = {slot.type: _value(item.type, slot.type, value)}
    return Page(properties=found, icon=_icon(icon), cover=_image(cover), children=paragraphs(markdown or ""))


def _value(kind: str, into: str, value: Any) -> Any:
    if into in {"title", "rich_text"}:
        return pieces(values.text(kind, value))
    if into in {"select", "status"}:
        name = option_name(value or "")
        return {"name": name} if name else None
    if into == "multi_select":
        names = dict.fromkeys(option_name(one) for one in value or ())
        return [{"name": name} for name in names if name][:MAX_ITEMS]
    if into == "relation":
        return [{"id": page_id} for page_id in value[:MAX_ITEMS]]
    if into == "files":
        return [
            {"name": cut(item["name"], MAX_NAME), "type": "external", "external": {"url": item["url"]}}
            for item in value or ()
            if is_address(item["url"])
        ][:MAX_ITEMS]
    if into == "date":
        return _date(value)
    if into == "checkbox":
        return bool(value)
    if into in {"url", "email", "phone_number"}:
        most = MAX_ADDRESS if into == "url" else MAX_SHORT
        return value if value and units(value) <= most else None
    return value


def _date(value: Mapping[str, str] | None) -> dict[str, str | None] | None:
    if value is None:
        return None
    start, end = value["start"], value.get("end")
    timed = "T" in start or "T" in (end or "")

    def moment(side: str) -> str:
        # A range has times at both ends or at none, and days have no time zone.
        if not timed:
            return side
        return f"{side}:00" if "T" in side else f"{side}T00:00:00"

    zone = value.get("timeZone") if timed else None
    return {"start": moment(start), "end": None if end is None else moment(end), "time_zone": zone}


def _icon(icon: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if icon is not None and icon.get("type") == "emoji":
        return {"type": "emoji", "emoji": icon["value"]}
    return _image(icon)


def _image(image: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if image is None or image.get("type") != "image" or not is_address(image["url"]):
        return None
    return {"type": "external", "external": {"url": image["url"]}}


def paragraphs(markdown: str) -> list[dict[str, Any]]:
    """The body of a page: its paragraphs as they are written, the first hundred."""
    written = [part.strip() for part in markdown.replace("\r\n", "\n").split("\n\n")]
    return [{"object": "block", "type": "paragraph", "paragraph": {"rich_text": pieces(part)}} for part in written if part][
        :MAX_ITEMS
    ]


def pieces(text: str) -> list[dict[str, Any]]:
    """A text as rich text: at most a hundred pieces, the rest is cut."""
    found: list[dict[str, Any]] = []
    while text and len(found) < MAX_ITEMS:
        first = cut(text, MAX_TEXT)
        found.append({"type": "text", "text": {"content": first}})
        text = text[len(first) :]
    return found


def option_name(name: str) -> str:
    """As Notion takes it: without commas, and not too long."""
    return cut(name.replace(",", " ").strip(), MAX_NAME).strip()


def units(text: str) -> int:
    """UTF-16 units."""
    return len(text) + sum(letter > "\uffff" for letter in text)


def cut(text: str, most: int) -> str:
    """The beginning of a text, of at most so many units."""
    head = text[:most]
    while units(head) > most:
        head = head[: len(head) - max(1, (units(head) - most) // 2)]
    return head


def is_address(text: str) -> bool:
    return text.startswith(("https://", "http://")) and units(text) <= MAX_ADDRESS


# -- finding -----------------------------------------------------------------------------------------


def sought(slots: Mapping[str, Slot], properties: Mapping[str, Property], primary: str, made: Page) -> dict[str, Any] | None:
    """The filter of a query that finds a row's page by its primary key, or else its title; None where neither has a value."""
    title = next((name for name, item in properties.items() if item.type == "title"), primary)
    for name in (primary, title):
        slot = slots.get(name)
        value = made.properties[slot.name][slot.type] if slot is not None else None
        if slot is None or slot.type not in _SOUGHT or value in (None, []):
            continue
        if slot.type == "select":
            return {"property": slot.name, "select": {"equals": value["name"]}}
        if slot.type not in {"title", "rich_text"}:
            return {"property": slot.name, "rich_text" if slot.type == "url" else slot.type: {"equals": value}}
        compare: Literal["equals", "starts_with"] = "equals" if len(value) == 1 else "starts_with"
        return {"property": slot.name, slot.type: {compare: value[0]["text"]["content"]}}
    return None


def same(wanted: Page, there: Mapping[str, Any], filter_: Mapping[str, Any]) -> bool:
    """Whether a page that a query found has just the value that was sought: Notion's filters compare without case."""
    name = filter_["property"]
    slot, value = next(iter(wanted.properties[name].items()))
    found = (there.get("properties") or {}).get(name, {}).get(slot)
    return bool(_plain(found) == _plain(value))


def is_id(value: Any) -> bool:
    """Whether an answer has an id there."""
    return isinstance(value, str) and 0 < len(value) <= MAX_ID and value.isascii() and value.replace("-", "").isalnum()


def _plain(value: Any) -> Any:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "".join(part.get("plain_text") or (part.get("text") or {}).get("content", "") for part in value)
    return value.get("name") if isinstance(value, Mapping) else value
