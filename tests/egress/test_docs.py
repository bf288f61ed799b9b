"""The policies in the documentation are policies."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hutch.egress.policy import check
from tests.conftest import CHECKOUT

PAGE = CHECKOUT / "docs" / "network.md"
BLOCKS = re.findall(r"```json\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("text", BLOCKS)
def test_every_policy_on_the_page_is_one(text: str) -> None:
    checked = check(text, role="bounds" if '"block"' in text else "tenant")
    # A value with an ellipsis is too short to be searched for; a credential for a name that many share wants a narrow match.
    assert {warning.code for warning in checked.warnings} <= {"value_too_short_to_scrub", "multi_tenant"}


def test_the_page_shows_policies(tmp_path: Path) -> None:
    assert len(BLOCKS) >= 4
