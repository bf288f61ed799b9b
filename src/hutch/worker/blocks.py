"""Custom blocks: a front end of the project's own that somebody's page shows. The platform lists them; they are not run.

worker.custom_block(
    "board", path="blocks/board", name="Issue board", slash_command="issues",
    data_sources={"issues": data_source("Issues", properties={"title": block_property("Title", "title")})},
)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from hutch.worker.errors import WorkerError
from hutch.worker.properties import present

MAX_NAME, MAX_DESCRIPTION = 128, 1024
PROPERTY_TYPES = frozenset(
    "title rich_text number select multi_select status date people files checkbox url email phone_number formula relation rollup"
    " created_time created_by last_edited_time last_edited_by last_visited_time button unique_id location verification"
    " place".split()
)
_COMMAND = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


def data_source(
    name: str,
    *,
    description: str | None = None,
    icon: str | None = None,
    properties: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, Any]:
    """A data source that a block wants; which one it is, is said where the block stands. `icon` is an emoji, or an address of an
    image."""
    declared = {
        "name": name,
        "description": description,
        "icon": None if icon is None else {"type": "external", "url": icon} if "://" in icon else _emoji(icon),
        "properties": {key: dict(one) for key, one in properties.items()} if properties is not None else None,
    }
    return present(declared)


def block_property(name: str, type: str, *, description: str | None = None) -> dict[str, str]:
    """A property that a data source should have, by the names of the public API. Raises `WorkerError`."""
    if type not in PROPERTY_TYPES:
        raise WorkerError(f"There is no property of the type {type!r}; there are {', '.join(sorted(PROPERTY_TYPES))}.")
    return present({"name": name, "description": description, "type": type})


def declared(
    key: str,
    path: str,
    kind: Literal["project", "static"],
    command: str | None,
    output: str | None,
    name: str | None,
    description: str | None,
    icon: str | None,
    slash_command: str | None,
    data_sources: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """A custom block as the manifest has it. Raises `WorkerError`."""
    if not path:
        raise WorkerError(f"Custom block {key!r} should say where its files are (`path`).")
    if kind not in ("project", "static"):
        raise WorkerError(f"Custom block {key!r} should be a `project` that is built, or `static`.")
    if kind == "static" and (command is not None or output is not None):
        raise WorkerError(f"Custom block {key!r} is static: nothing is built, so it has no `command` and no `output`.")
    for what, text, most in (("name", name, MAX_NAME), ("description", description, MAX_DESCRIPTION)):
        if text is not None and len(text.encode("utf-16-le")) // 2 > most:
            raise WorkerError(f"Custom block {key!r}: its {what} should have at most {most} characters.")
    if slash_command is not None:
        slash_command = slash_command.removeprefix("/")
        if not _COMMAND.fullmatch(slash_command):
            raise WorkerError(
                f"Custom block {key!r}: its slash command should be 1 to 64 lowercase letters, digits, hyphens and underscores, "
                "the first one a letter or a digit."
            )
    shown = {
        "name": name,
        "description": description,
        "icon": None if icon is None else _emoji(icon),
        "slashCommand": slash_command,
    }
    return {
        "source": present({"type": kind, "path": path, "command": command, "output": output}),
        "manifest": {"version": 1, **present(shown), "dataSources": {name: dict(one) for name, one in data_sources.items()}},
    }


def _emoji(text: str) -> dict[str, str]:
    # Which texts are one emoji is the platform's to say; that one is no word can be seen here.
    if not text or text.isascii() or text.isalpha() or any(letter.isspace() for letter in text):
        raise WorkerError(f"An icon should be one emoji, not {text!r}.")
    return {"type": "emoji", "emoji": text}
