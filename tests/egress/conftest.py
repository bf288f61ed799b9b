"""One set of origins for all tests of the firewall; a gateway for each file of tests, and for each test its own guests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.egress import defences  # First: it may put another engine in the place of the installed one.

# isort: split
from tests import leaks
from tests.conftest import wait_until
from tests.egress.world import CANARY, Origins, World, world

SETTLE_S = 10.0

defences.switch_off()


@pytest.fixture(scope="session")
def origins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Origins]:
    made = Origins(tmp_path_factory.mktemp("origins"))
    made.start()
    yield made
    made.stop()


@pytest.fixture
def sealed(outside: World) -> Iterator[None]:
    """After the test the canary is nowhere but at origins, and the gateway has not panicked."""
    yield
    assert outside.spilled() == []


@pytest.fixture
async def outside(origins: Origins, tmp_path: Path) -> AsyncIterator[World]:
    """A gateway and the world outside it. Nothing of it is left afterwards."""
    before = leaks.snapshot(tmp_path)
    async with world(tmp_path, origins) as made:
        yield made
    wait_until(
        lambda: not leaks.new(before, leaks.snapshot(tmp_path)),
        SETTLE_S,
        lambda: f"left behind: {leaks.new(before, leaks.snapshot(tmp_path))}",
    )


@pytest.fixture
async def canary_stays(outside: World) -> AsyncIterator[None]:
    """For tests of credentials: afterwards the canary is nowhere but at the origin."""
    yield
    assert outside.places_of(CANARY) == []
