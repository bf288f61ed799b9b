"""docs/python.md as a notebook: its cells run one after another, with a loop that runs."""

from __future__ import annotations

import ast
import inspect
import re
from types import CodeType
from typing import Any

import pytest

from hutch.client import Client
from tests.conftest import CHECKOUT, RunningServer

GUIDE = CHECKOUT / "docs" / "python.md"
README = CHECKOUT / "README.md"


def cells(text: str) -> list[CodeType]:
    """The Python of a document; positions are its own, so that a failure names the line."""
    found = []
    for match in re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        above = text[: match.start(1)].count("\n")
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        found.append(compile("\n" * above + match[1], "document", "exec", flags=flags, dont_inherit=True))
    return found


async def run(code: CodeType, names: dict[str, Any]) -> None:
    if code.co_flags & inspect.CO_COROUTINE:
        await eval(code, names)
    else:
        exec(code, names)


async def test_every_cell_of_the_guide_does_what_it_says(
    server: RunningServer, leak_check: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUTCH_URL", server.where.url)
    monkeypatch.setenv("HUTCH_TOKEN", server.where.token)
    found = cells(GUIDE.read_text(encoding="utf-8"))
    assert len(found) >= 12
    names: dict[str, Any] = {"__name__": "guide"}
    try:
        for code in found:
            await run(code, names)
    finally:
        with Client(server.where) as client:
            for record in client.query_sandboxes():
                client.sandboxes.delete(record.name)


async def test_the_readme_does_what_it_says(server: RunningServer, leak_check: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUTCH_URL", server.where.url)
    monkeypatch.setenv("HUTCH_TOKEN", server.where.token)
    names: dict[str, Any] = {"__name__": "readme"}
    ran = 0
    # The others are the vendor's.
    for block in re.findall(r"^```python\n(import hutch\n.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        await run(compile(block, "README.md", "exec"), names)
        ran += 1
    assert ran == 1
