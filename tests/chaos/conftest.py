"""How long campaigns run."""

from __future__ import annotations

import os

import pytest

from tests.host.conftest import no_leaks

__all__ = ["no_leaks"]


@pytest.fixture
def full_campaign() -> bool:
    """Whether this is `make test-all`."""
    return os.environ.get("HUTCH_CAMPAIGN") == "full"
