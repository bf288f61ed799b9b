"""What passed for sessions: kept as totals, whatever dies, and counted once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import msgspec
import pytest

from hutch.errors import UnavailableError
from hutch.host import traffic
from hutch.host.gateway import Counted, Counters, Gateway
from hutch.host.journal import Journal
from hutch.host.network import Network
from hutch.host.protocol import RuleTraffic, Tally
from hutch.host.traffic import TrafficMeter

NETWORK = cast("Network", SimpleNamespace(guest_address="100.64.0.2", link="h-none"))


class CountingGateway:
    """A gateway that counts what a test says, or is away; `gate` holds its answers back."""

    def __init__(self) -> None:
        self.counted = Counted()
        self.resumed = Counted()
        self.away = False
        self.asked = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def counters(self, network: Network) -> Counters:
        self.asked += 1
        counted = self.counted
        await self.gate.wait()
        if self.away:
            raise UnavailableError("gateway_unavailable", "The gateway does not run.")
        return Counters(3, counted.up_bytes, counted.down_bytes, counted.tallies, counted.rules, counted.unruled, counted.cpu_us)

    def resume_counters(self, network: Network, counted: Counted) -> None:
        self.resumed = counted


@pytest.fixture
def gateway() -> CountingGateway:
    return CountingGateway()


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    made = Journal(tmp_path / "journal.db")
    made.open()
    made.start()
    yield made
    await asyncio.to_thread(made.close)


@pytest.fixture
def interface(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the session's interface counted: from and to the guest."""
    counted = [0, 0]
    monkeypatch.setattr(traffic, "interface_bytes", lambda: {NETWORK.link: (counted[0], counted[1])})
    return counted


def meter(gateway: CountingGateway, journal: Journal) -> TrafficMeter:
    return TrafficMeter(cast("Gateway", gateway), journal)


def passed(up_bytes: int) -> Counted:
    tallies = {"a.test": Tally(up_bytes=up_bytes), "rule:00ff": Tally(up_bytes=up_bytes - 1, requests=1)}
    return Counted(up_bytes, 0, tallies, {"00ff": (up_bytes, 0)}, Tally(up_bytes=1, connections=2), up_bytes * 1000)


async def test_a_host_that_was_killed_goes_on_from_what_was_flushed(
    gateway: CountingGateway, journal: Journal, interface: list[int]
) -> None:
    first = meter(gateway, journal)
    first.begin("s")
    gateway.counted, interface[:] = passed(10), [100, 50]
    await first.flush([("s", NETWORK)])
    second = meter(gateway, journal)
    await second.resume("s", NETWORK)
    assert gateway.resumed == passed(10)
    # The gateway's totals are what counts, not their sum with those that were kept.
    gateway.counted = passed(12)
    assert (await second.read("s", NETWORK)).up_bytes == 12
    gateway.counted = passed(13)
    final = await second.end("s", NETWORK)
    assert (final.up_bytes, final.egress_bytes, final.ingress_bytes, final.flows) == (13, 100, 50, 0)
    assert final.gateway_cpu_us == 13_000
    assert final.network == {
        "00ff": RuleTraffic(sent_bytes=12, requests=1),
        "": RuleTraffic(sent_bytes=1, connections=2),
    }
    assert (await meter(gateway, journal).last("s") or traffic.Totals()).traffic() == final


async def test_a_session_that_ends_without_a_gateway_has_what_the_last_one_told(
    gateway: CountingGateway, journal: Journal, interface: list[int]
) -> None:
    made = meter(gateway, journal)
    made.begin("s")
    gateway.counted, interface[0] = passed(10), 5
    await made.flush([("s", NETWORK)])
    gateway.away, interface[0] = True, 7
    with pytest.raises(UnavailableError):
        await made.read("s", NETWORK)
    final = await made.end("s", NETWORK)
    assert (final.up_bytes, final.egress_bytes) == (10, 7)


async def test_an_interface_that_is_gone_keeps_what_it_counted(
    gateway: CountingGateway, journal: Journal, interface: list[int]
) -> None:
    made = meter(gateway, journal)
    made.begin("s")
    interface[:] = [100, 50]
    await made.flush([("s", NETWORK)])
    # The machine that all ran on was started again: no gateway, no interface.
    gateway.away, interface[:] = True, [0, 0]
    final = await meter(gateway, journal).end("s", NETWORK)
    assert (final.egress_bytes, final.ingress_bytes) == (100, 50)


async def test_what_was_read_before_the_end_does_not_replace_it(
    gateway: CountingGateway, journal: Journal, interface: list[int]
) -> None:
    made = meter(gateway, journal)
    made.begin("s")
    gateway.counted, interface[0] = passed(10), 1
    gateway.gate.clear()
    late = asyncio.ensure_future(made.flush([("s", NETWORK)]))
    async with asyncio.timeout(10):
        while not gateway.asked:
            await asyncio.sleep(0)
        held, gateway.gate = gateway.gate, asyncio.Event()
        gateway.gate.set()
        gateway.counted = passed(20)
        assert (await made.end("s", NETWORK)).up_bytes == 20
        held.set()
        await late
    totals = await made.last("s")
    assert totals is not None
    assert totals.counted.up_bytes == 20


async def test_a_quiet_session_is_not_asked_for(gateway: CountingGateway, journal: Journal, interface: list[int]) -> None:
    made = meter(gateway, journal)
    made.begin("s")
    interface[0] = 1
    for _ in range(5):
        await made.flush([("s", NETWORK)])
    # Once for what moved, and once for what was counted after the last packet.
    assert gateway.asked == 2


async def test_nothing_is_kept_of_what_was_forgotten(gateway: CountingGateway, journal: Journal, interface: list[int]) -> None:
    made = meter(gateway, journal)
    made.begin("s")
    await made.end("s", NETWORK)
    assert await made.last("s") is not None
    await journal.delete_session("s")
    assert await made.last("s") is None


async def test_what_a_former_release_kept_is_read(gateway: CountingGateway, journal: Journal, interface: list[int]) -> None:
    tally = {"connections": 1, "requests": 1, "denied": 0, "injected": 0, "up_bytes": 5, "down_bytes": 0}
    counted = {"up_bytes": 5, "down_bytes": 0, "tallies": {"rule:00ff": tally}, "rules": {}}
    kept = msgspec.msgpack.encode({"counted": counted, "egress_bytes": 9, "ingress_bytes": 1})
    await journal.put_traffic("s", kept)
    totals = await meter(gateway, journal).last("s")
    assert totals is not None
    assert (totals.egress_bytes, totals.counted.cpu_us) == (9, 0)
    assert totals.traffic().network == {"00ff": RuleTraffic(sent_bytes=5, connections=1, requests=1)}


def test_a_gateway_that_an_older_host_started_is_told_nothing_new() -> None:
    """It refuses what it does not know."""
    assert Counted().message == {"up_bytes": 0, "down_bytes": 0, "tallies": {}, "rules": {}}
    told = passed(5).message
    assert (told["cpu_us"], told["unruled"]["connections"]) == (5000, 2)
