"""How many examples the generated tests try: few in `make test`, many in `make test-all` (`HUTCH_CAMPAIGN=full`)."""

from __future__ import annotations

import os

FULL = os.environ.get("HUTCH_CAMPAIGN") == "full"


def examples(few: int, factor: int = 50) -> int:
    """`few`, or `factor` times as many in a full campaign."""
    return few * factor if FULL else few
