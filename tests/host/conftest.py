"""A real host for each test that asks for one; nothing of it may be left afterwards."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from hutch.host.service import Service
from tests import leaks
from tests.conftest import wait_until
from tests.host.guest import Guest, guest, real_host

SETTLE_S = 10.0
"""A mount namespace that another process made in the meantime may hold a loop device for a moment."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Who asks for a host that leaves nothing starts sandboxes: `make test-all` has them run on virtual machines too.
    for item in items:
        if item.path.parent == Path(__file__).parent and "no_leaks" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.sandbox)


@pytest.fixture
def no_leaks(tmp_path: Path) -> Iterator[Path]:
    """A data directory, and the check that nothing of its instance is left."""
    mask = os.umask(0o022)
    before = leaks.snapshot(tmp_path)
    yield tmp_path / "data"
    os.umask(mask)
    wait_until(
        lambda: not leaks.new(before, leaks.snapshot(tmp_path / "data")) and not leaks.new(before, leaks.snapshot(tmp_path)),
        SETTLE_S,
        lambda: f"left behind: {leaks.new(before, leaks.snapshot(tmp_path / 'data'))}",
    )


@pytest.fixture
async def host(no_leaks: Path) -> AsyncIterator[Service]:
    async with real_host(no_leaks) as service:
        yield service


@pytest.fixture
async def box(host: Service) -> Guest:
    """A running session of `host`."""
    return await guest(host)
