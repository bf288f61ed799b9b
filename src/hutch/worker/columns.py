"""Columns of tables (`hutch.worker.tables`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from hutch.worker.errors import WorkerError

Scalar = Literal["text", "number", "checkbox", "date", "timestamp"]
_SCALARS = ("text", "number", "checkbox", "date", "timestamp")


@dataclass(frozen=True, slots=True)
class Column:
    """A column, as the manifest has it but for its name. Without a title it has its name as one."""

    declared: dict[str, Any]
    title: str = ""

    @property
    def type(self) -> str:
        return str(self.declared["type"])


def text(title: str = "") -> Column:
    return Column({"type": "text"}, title)


def number(title: str = "") -> Column:
    return Column({"type": "number"}, title)


def checkbox(title: str = "") -> Column:
    return Column({"type": "checkbox"}, title)


def date(title: str = "") -> Column:
    """A day: a `date`, or `YYYY-MM-DD`."""
    return Column({"type": "date"}, title)


def timestamp(title: str = "") -> Column:
    """A moment: a `datetime` with a time zone, or a text of ISO 8601."""
    return Column({"type": "timestamp"}, title)


def json(title: str = "") -> Column:
    """Anything that JSON can say."""
    return Column({"type": "json"}, title)


def select(*options: str | tuple[str, str], title: str = "") -> Column:
    """One of some texts. An option is its name, or its name and its color."""
    return Column({"type": "select", **_options(options)}, title)


def multi_select(*options: str | tuple[str, str], title: str = "") -> Column:
    """Some of some texts."""
    return Column({"type": "multi_select", **_options(options)}, title)


def array(of: Scalar, title: str = "") -> Column:
    """A list of values of one type. Raises `WorkerError`."""
    if of not in _SCALARS:
        raise WorkerError(f"There are no arrays of {of!r}; there are those of {', '.join(_SCALARS)}.")
    return Column({"type": f"array_{of}"}, title)


def _options(options: tuple[str | tuple[str, str], ...]) -> dict[str, Any]:
    if not options:
        return {}
    named = [(one, None) if isinstance(one, str) else one for one in options]
    return {
        "selectOptions": [{"name": name, "title": name, **({} if color is None else {"color": color})} for name, color in named]
    }
