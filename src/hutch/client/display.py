"""Objects in notebooks. All text is escaped: names and output come from where nobody is trusted."""

from __future__ import annotations

import html
from collections.abc import Iterable

MAX_CELL = 2000


def table(title: str, rows: Iterable[tuple[str, object]]) -> str:
    """A small table of names and values; empty values are left out."""
    lines = "".join(
        f"<tr><th style='text-align:left'>{html.escape(name)}</th><td><code>{_cell(value)}</code></td></tr>"
        for name, value in rows
        if value not in (None, "", {}, [])
    )
    return f"<table><caption>{html.escape(title)}</caption>{lines}</table>"


def _cell(value: object) -> str:
    text = str(value)
    return html.escape(text if len(text) <= MAX_CELL else f"{text[:MAX_CELL]}…")
