"""The computation of docs/billing.md, run as it stands there."""

from __future__ import annotations

import json
import re
from pathlib import Path

from hutch.metering import prices
from tests.conftest import CHECKOUT

PAGE = (Path(CHECKOUT) / "docs" / "billing.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_example_adds_up() -> None:
    [example] = blocks("python")
    assert "assert DEFAULT.amount_nano(used) ==" in example
    exec(compile(example, "docs/billing.md", "exec"), {})


def test_the_default_table_is_the_one_that_is_shown() -> None:
    [table] = [block for block in blocks("json") if '"rates"' in block]
    assert prices.parse(table) == prices.DEFAULT
    assert json.loads(table)["version"] == prices.DEFAULT.version
