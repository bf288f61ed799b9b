"""What holds for a session's network, where several things change it at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hutch.errors import UnavailableError
from hutch.host.egress import Egress, State
from hutch.host.gateway import Applied, Gateway
from hutch.host.journal import Journal
from hutch.host.network import Network
from hutch.host.protocol import NetworkSpec

NETWORK = cast("Network", SimpleNamespace(guest_address="100.64.0.2"))
NAMING = '{"allow":{"a.test":[{"transform":[{"headers":{"x":{"credential":"KEY"}}}]}]}}'


class SlowGateway:
    """A gateway that is told, and takes its time."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        self.refuse = False

    async def set_policy(self, network: Network, policy: dict[str, Any], *, announce: bool = True) -> Applied:
        for _ in range(3):
            await asyncio.sleep(0)
        if self.refuse:
            raise UnavailableError("gateway_unavailable", "The gateway does not answer.")
        self.told.append(policy)
        return Applied(policy["generation"], 0, 0)


@pytest.fixture
def gateway() -> SlowGateway:
    return SlowGateway()


@pytest.fixture
async def egress(tmp_path: Path, gateway: SlowGateway) -> AsyncIterator[Egress]:
    journal = Journal(tmp_path / "journal.db")
    journal.open()
    journal.start()
    made = Egress(cast("Gateway", gateway), journal, tmp_path / "secrets.key")
    await made.begin("s", NETWORK, state(NetworkSpec(policy=NAMING)), [])
    yield made
    await asyncio.to_thread(journal.close)


def state(network: NetworkSpec) -> State:
    return State(sandbox_id="sand", sandbox_name="one", team_id="team", project_id="prj", network=network)


async def test_bounds_and_credentials_that_change_at_once_are_both_kept(egress: Egress, gateway: SlowGateway) -> None:
    bounded = NetworkSpec(policy=NAMING, bounds=['{"mode":"deny-all"}'], credentials={"KEY": "old"})
    await asyncio.gather(
        egress.update("s", NETWORK, bounded),
        egress.change_credential("s", NETWORK, "KEY", "new"),
    )
    found = egress.state("s")
    assert found is not None
    assert (found.network.bounds, found.network.credentials) == (bounded.bounds, {"KEY": "new"})
    assert (gateway.told[-1]["bounds"], gateway.told[-1]["credentials"]) == (bounded.bounds, {"KEY": "new"})


async def test_bounds_that_the_gateway_does_not_take_leave_what_was(egress: Egress, gateway: SlowGateway, tmp_path: Path) -> None:
    gateway.refuse = True
    with pytest.raises(UnavailableError):
        await egress.update("s", NETWORK, NetworkSpec(policy=NAMING, bounds=['"deny-all"']))
    found = egress.state("s")
    assert found is not None
    assert found.network.bounds == []


async def test_a_host_that_starts_again_has_the_bounds(egress: Egress, gateway: SlowGateway, tmp_path: Path) -> None:
    bounds = ['{"mode":"allow-all","block":["a.test"]}', '{"mode":"deny-all"}']
    # The same generation: bounds have none of their own.
    assert (await egress.update("s", NETWORK, NetworkSpec(policy=NAMING, bounds=bounds))).generation == 1
    again = Egress(cast("Gateway", gateway), egress._journal, tmp_path / "secrets.key")
    again.load()
    found = again.state("s")
    assert found is not None
    assert found.network.bounds == bounds
    await again.resume("s", NETWORK)
    assert gateway.told[-1]["bounds"] == bounds
