"""How much the generated tests try: few examples, always the same, in `make test`; many and new ones in `make test-all`."""

from __future__ import annotations

import os

from hypothesis import settings

FULL = os.environ.get("HUTCH_CAMPAIGN") == "full"


def examples(few: int, factor: int = 50) -> int:
    """`few`, or `factor` times as many in a full campaign."""
    return few * factor if FULL else few


def campaign(few: int, factor: int = 50, steps: int = 50) -> settings:
    """Hypothesis settings with that many examples, and no time limit for one: the machine may be busy."""
    return settings(max_examples=examples(few, factor), derandomize=not FULL, deadline=None, stateful_step_count=steps)
