"""What a sync or an AI connector wants to be written: a batch, as one run returns it, read and bounded.

The SDK looks at none of it. What is wrong with the batch's form is the author's error, and the batch is not applied: the sync
stops where it was, and says why. (What is wrong with a single value is another matter: `hutch.workers.values`.)
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, TypeAlias

import msgspec

from hutch.workers.reading import shown

MAX_CHANGES = 10_000
MAX_KEY = 1024
"""Characters of a row's key."""
MAX_STATE_BYTES = 2**20
MAX_MARKDOWN = 2**20
"""Characters of a page's body."""
MAX_PACERS = 1000


class Upsert(msgspec.Struct, frozen=True, kw_only=True):
    """A row to be made, or changed where `properties` says so. `database` is None for the sync's own."""

    key: str
    properties: dict[str, Any]
    database: str | None = None
    upstream_updated_at_ms: int | None = None
    icon: dict[str, Any] | None = None
    cover: dict[str, Any] | None = None
    markdown: str | None = None


class Delete(msgspec.Struct, frozen=True, kw_only=True):
    key: str
    database: str | None = None


class TableUpsert(msgspec.Struct, frozen=True):
    """A complete row of an XLDB."""

    values: dict[str, Any]


class TableDelete(msgspec.Struct, frozen=True):
    """The columns of an XLDB's upsert key."""

    key: dict[str, Any]


class RecordUpsert(msgspec.Struct, frozen=True, kw_only=True):
    """A record of an AI connector."""

    key: str
    record: dict[str, Any]


Change: TypeAlias = Upsert | Delete | TableUpsert | TableDelete | RecordUpsert


class PacerState(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """How far a pacer has been used: `last_scheduled_at_ms` may lie in the future."""

    last_scheduled_at_ms: float
    allowed_requests: float
    interval_ms: float


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """What one run of a sync returned. A `state` of None is what the author calls `undefined` (or null, which means the same)."""

    changes: tuple[Change, ...]
    has_more: bool
    state: Any
    pacers: dict[str, PacerState]


def batch(value: Any, tag: str) -> Batch:
    """A batch from the value of a run of a `sync` or an `ai_connector`. Raises `ValueError` with what is wrong."""
    if not isinstance(value, dict) or not isinstance(value.get("changes"), list):
        raise ValueError("it should return an object with the list `changes`")
    sent = value["changes"]
    if len(sent) > MAX_CHANGES:
        raise ValueError(f"it returned {len(sent)} changes; return at most {MAX_CHANGES} at once, and `hasMore`")
    has_more = value.get("hasMore")
    if has_more is not None and not isinstance(has_more, bool):
        raise ValueError("`hasMore` should be true or false")
    state = value.get("nextUserContext")
    size = len(msgspec.json.encode(state))
    if size > MAX_STATE_BYTES:
        raise ValueError(f"`nextState` has {size} bytes; there may be {MAX_STATE_BYTES}")
    read = _record if tag == "ai_connector" else _change
    changes = []
    for index, item in enumerate(sent):
        try:
            changes.append(read(item))
        except ValueError as error:
            raise ValueError(f"`changes[{index}]` {error}") from None
    return Batch(changes=tuple(changes), has_more=bool(has_more), state=state, pacers=_pacers(value.get("nextPacerStates")))


def _change(item: Any) -> Change:
    if not isinstance(item, dict):
        raise ValueError("should be an object")
    kind = item.get("type")
    if kind not in ("upsert", "delete"):
        raise ValueError('should have the type "upsert" or "delete"')
    if kind == "upsert" and "values" in item:
        return TableUpsert(_object(item, "values"))
    if kind == "delete" and isinstance(item.get("key"), dict):
        return TableDelete(_object(item, "key"))
    database = _text(item, "targetDatabaseKey", MAX_KEY)
    if kind == "delete":
        return Delete(key=_key(item), database=database)
    return Upsert(
        key=_key(item),
        properties=_object(item, "properties"),
        database=database,
        upstream_updated_at_ms=_time(item),
        icon=_optional(item, "icon"),
        cover=_optional(item, "cover"),
        markdown=_text(item, "pageContentMarkdown", MAX_MARKDOWN),
    )


def _record(item: Any) -> Change:
    if not isinstance(item, dict) or item.get("type") != "upsert":
        raise ValueError('should be an object with the type "upsert"')
    return RecordUpsert(key=_key(item), record=_object(item, "record"))


def _key(item: dict[str, Any]) -> str:
    key = item.get("key")
    if not isinstance(key, str) or not key:
        raise ValueError("should have a `key`, a string that is not empty")
    if len(key) > MAX_KEY or "\x00" in key:
        raise ValueError(f"has the key {shown(key)}: a key has at most {MAX_KEY} characters, and no NUL")
    return key


def _object(item: dict[str, Any], name: str) -> dict[str, Any]:
    value = item.get(name)
    if not isinstance(value, dict):
        raise ValueError(f"should have an object as `{name}`")
    return value


def _optional(item: dict[str, Any], name: str) -> dict[str, Any] | None:
    return None if item.get(name) is None else _object(item, name)


def _text(item: dict[str, Any], name: str, most: int) -> str | None:
    value = item.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"should have a string as `{name}`")
    if len(value) > most:
        raise ValueError(f"has {len(value)} characters in `{name}`; there may be {most}")
    return value


def _time(item: dict[str, Any]) -> int | None:
    text = _text(item, "upstreamUpdatedAt", 64)
    if text is None:
        return None
    try:
        return timestamp_ms(text)
    except ValueError:
        raise ValueError(f"has {shown(text)} as `upstreamUpdatedAt`; it should be a time such as 2026-01-31T12:00:00Z") from None


def timestamp_ms(text: str) -> int:
    """Milliseconds since the epoch of an ISO 8601 time; UTC where it names no zone. Raises `ValueError`."""
    found = datetime.fromisoformat(text)
    if found.tzinfo is None:
        found = found.replace(tzinfo=UTC)
    try:
        since = found - _EPOCH
    except OverflowError as error:
        raise ValueError(str(error)) from error
    return (since.days * 86_400 + since.seconds) * 1000 + since.microseconds // 1000


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _pacers(value: Any) -> dict[str, PacerState]:
    """The states that make sense. What does not is no reason to lose a batch: the pacer keeps its old state."""
    found: dict[str, PacerState] = {}
    for key, item in list(value.items())[:MAX_PACERS] if isinstance(value, dict) else ():
        try:
            found[key] = msgspec.convert(item, PacerState)
        except msgspec.ValidationError:
            continue
    return found
