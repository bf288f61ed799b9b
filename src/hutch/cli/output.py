"""Lines for people, JSON for programs. What comes from a server is never interpreted, neither by Rich nor by the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hutch.cli.errors import printable


def write_json(value: object) -> None:
    """One JSON document on standard output. Structs get the field names of the API."""
    print(json.dumps(msgspec.to_builtins(value), indent=2 if sys.stdout.isatty() else None))


def write_line(text: str) -> None:
    print(printable(text))


def note(text: str) -> None:
    """A remark on standard error, where it never mixes with output."""
    print(f"hutch: {printable(text)}", file=sys.stderr)


def note_warnings(policy: dict[str, Any] | None) -> None:
    """What a server says about a network policy, as `networkPolicy` has it."""
    for warning in (policy or {}).get("hutch", {}).get("warnings", ()):
        note(f"warning: {warning['pointer'] or 'the policy'} {warning['message']} ({warning['code']})")


def write_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table for people; piped, it keeps its full width so that `cut` and `awk` see whole names."""
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    if sys.stdout.isatty():
        console.print(table)
    else:
        Console(width=10_000, highlight=False).print(table)


def moment(at_ms: int | None) -> str:
    """A time for people, in their time zone."""
    if at_ms is None:
        return "-"
    return datetime.fromtimestamp(at_ms / 1000, tz=UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def size(count: int) -> str:
    """Bytes for people."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def json_text(value: Any) -> str:
    """A value of an API as one line: texts as they are, everything else as JSON."""
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(msgspec.to_builtins(value), ensure_ascii=False)


def text_of(value: Any) -> str:
    """A setting or field as one word."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return json.dumps([str(item) for item in value])
    return str(value)
