"""What passed for each session, kept beyond the death of its gateway, of the host, and of the session.

    gateway ─▶ totals of a session, every `FLUSH_EVERY_S` and at its end ─▶ journal ─▶ the gateway that comes after

What is read, kept and told again are totals, never what was added: reading twice, writing twice or telling twice counts nothing
twice. What a killed gateway counted since the last reading is lost, and its successor goes on from that reading.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Sequence

import msgspec

from hutch.errors import HutchError
from hutch.host.gateway import Counted, Gateway
from hutch.host.journal import Journal
from hutch.host.network import Network, interface_bytes
from hutch.host.protocol import Traffic

log = logging.getLogger(__name__)

FLUSH_EVERY_S = 2.0
NOTHING = (0, 0)


class Totals(msgspec.Struct, frozen=True):
    """What passed for a session: payload as its gateways counted it, and bytes of its interface from and to the guest."""

    counted: Counted = Counted()
    egress_bytes: int = 0
    ingress_bytes: int = 0

    def traffic(self, flows: int = 0) -> Traffic:
        return Traffic(
            up_bytes=self.counted.up_bytes,
            down_bytes=self.counted.down_bytes,
            flows=flows,
            egress_bytes=self.egress_bytes,
            ingress_bytes=self.ingress_bytes,
            tallies=self.counted.tallies,
            unruled=self.counted.unruled,
            gateway_cpu_us=self.counted.cpu_us,
        )


class TrafficMeter:
    """Reads and keeps the totals of this host's sessions."""

    def __init__(self, gateway: Gateway, journal: Journal) -> None:
        self._gateway = gateway
        self._journal = journal
        self._live: dict[str, Totals] = {}
        self._moving: dict[str, bool] = {}

    def begin(self, session_id: str) -> None:
        """A session runs from now on."""
        self._live[session_id] = Totals()

    async def resume(self, session_id: str, network: Network) -> None:
        """Go on, for an adopted session, from what a predecessor kept."""
        totals = self._live[session_id] = await self.last(session_id) or Totals()
        self._gateway.resume_counters(network, totals.counted)

    async def read(self, session_id: str, network: Network) -> Traffic:
        """What passed for a running session until now. Raises `HutchError`."""
        counters = await self._gateway.counters(network)
        totals = self._totals(session_id, counters.counted, await _carried(network))
        await self._keep(session_id, totals)
        return totals.traffic(counters.flows)

    def known(self, session_id: str) -> Totals:
        """The totals of a running session, as they were read last."""
        return self._live.get(session_id, Totals())

    async def flush(self, sessions: Sequence[tuple[str, Network]]) -> None:
        """Keep the totals of running sessions. One on whose interface nothing moved since the last two readings has no others."""
        links = await asyncio.to_thread(interface_bytes)
        for session_id, network in sessions:
            carried = links.get(network.link, NOTHING)
            before = self._live.get(session_id, Totals())
            moving = carried != (before.egress_bytes, before.ingress_bytes)
            if moving or self._moving.get(session_id, True):
                counted = await self._counted(session_id, network)
                await self._keep(session_id, self._totals(session_id, counted, carried))
            if session_id in self._live:
                self._moving[session_id] = moving

    async def end(self, session_id: str, network: Network) -> Traffic:
        """The final totals of a session whose machine is dead and whose interface is still there."""
        if session_id not in self._live:
            self._live[session_id] = await self.last(session_id) or Totals()
        counted, carried = await self._counted(session_id, network), await _carried(network)
        totals = self._totals(session_id, counted, carried)
        # From here on nothing that was read before is kept.
        self._live.pop(session_id)
        self._moving.pop(session_id, None)
        await self._write_if_possible(session_id, totals)
        return totals.traffic()

    async def last(self, session_id: str) -> Totals | None:
        """What was kept last."""
        kept = await self._journal.traffic(session_id)
        return msgspec.msgpack.decode(kept, type=Totals) if kept is not None else None

    async def _counted(self, session_id: str, network: Network) -> Counted:
        """What the gateway counted until now; without one what the last one told."""
        try:
            return (await self._gateway.counters(network)).counted
        except HutchError as error:
            log.warning("the traffic of session %s could not be read: %s", session_id, error.message)
            return self._live.get(session_id, Totals()).counted

    def _totals(self, session_id: str, counted: Counted, carried: tuple[int, int]) -> Totals:
        """An interface that is gone has carried what it had when it was last seen."""
        before = self._live.get(session_id, Totals())
        egress, ingress = carried
        return Totals(counted, max(egress, before.egress_bytes), max(ingress, before.ingress_bytes))

    async def _keep(self, session_id: str, totals: Totals) -> None:
        before = self._live.get(session_id)
        # The session may have ended since the totals were read.
        if before is not None and totals != before:
            self._live[session_id] = totals
            await self._write_if_possible(session_id, totals)

    async def _write_if_possible(self, session_id: str, totals: Totals) -> None:
        """A full disk ends no session, and keeps nobody from reading."""
        try:
            await self._journal.put_traffic(session_id, msgspec.msgpack.encode(totals))
        except sqlite3.Error as error:
            log.error("the traffic of session %s could not be written: %s", session_id, error)


async def _carried(network: Network) -> tuple[int, int]:
    links = await asyncio.to_thread(interface_bytes)
    return links.get(network.link, NOTHING)
