"""Usage of running sessions: where their counters are read, and when.

Sessions ─▶ counters of machine and interface ─▶ Usage (windows, budgets)
                                                   └─ used up ─▶ end
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable

import msgspec

from hutch.clock import now_ms
from hutch.errors import HutchError, NotFoundError
from hutch.host.background import Background
from hutch.host.journal import Journal
from hutch.host.machine import Counters, Machine, Machines
from hutch.host.network import interface_bytes
from hutch.host.protocol import CommandUsage, SessionSpec, SessionUsage, Traffic
from hutch.host.sessions import Session, Sessions
from hutch.host.traffic import TrafficMeter
from hutch.host.usage import Usage
from hutch.metering.budgets import MINUTE_MS, UsageOwner, keys
from hutch.metering.pace import Pace
from hutch.metering.quantities import Quantities
from hutch.metering.windows import Reading

log = logging.getLogger(__name__)


class Metered:
    """The meters of one host's sessions."""

    def __init__(
        self,
        sessions: Sessions,
        machines: Machines,
        traffic: TrafficMeter,
        usage: Usage,
        journal: Journal,
        background: Background,
    ) -> None:
        self._sessions = sessions
        self._journal = journal
        self._machines = machines
        self._traffic = traffic
        self.usage = usage
        self._background = background

    def start(self, end: Callable[[Session], Awaitable[object]]) -> None:
        """Read meters from now on, and `end` sessions whose budget is used up."""

        def stop(session_id: str, what: str) -> None:
            session = self._sessions.find(session_id)
            if session is not None and session.live and session.ending is None and session.machine is not None:
                log.info("session %s has used up its budget: %s", session_id, what)
                self._background.spawn(_ended(end, session))

        self._background.spawn(self.usage.sample_for_ever(self._running, self._readings))
        self._background.spawn(self.usage.budgets.watch_for_ever(self._readings, stop))

    async def admit(self, spec: SessionSpec) -> None:
        """Hold a sandbox to its budget, and let it begin: it counts from now on, unless it is given back. Raises
        `PaymentRequiredError` (`budget_exceeded`) when one of those it has is used up."""
        owner = UsageOwner(spec.team_id, spec.project_id, spec.sandbox_id or spec.session_id)
        await self.usage.budgets.put_of_sandbox(owner, spec.budget)
        self.usage.budgets.admit(spec.session_id, owner)

    def give_back(self, session_id: str) -> None:
        """A session that was let in did not begin. Nothing happens when it did."""
        self.usage.budgets.admissions.give_back(session_id)

    def recall(self) -> None:
        """Know again who began before this host did, once sessions are known again."""
        now = now_ms()
        for session in sorted(self._sessions, key=lambda session: session.record.requested_at):
            record = session.record
            if record.requested_at > now - MINUTE_MS:
                owner = UsageOwner(record.team_id, record.project_id, record.sandbox_id)
                self.usage.budgets.admissions.recall(keys(owner), record.requested_at)

    async def memory_bytes(self, machine: Machine) -> int:
        """What a machine holds as its session begins."""
        [counters] = await self._machines.counters([machine])
        return counters.memory_bytes if counters is not None else 0

    def begin(self, session: Session, memory_bytes: int = 0) -> None:
        """A session runs, or was found again: then nothing begins anew."""
        record, entry = session.record, session.entry
        assert entry is not None
        self.usage.begin(
            record.session_id,
            UsageOwner(record.team_id, record.project_id, record.sandbox_id),
            record.started_at or record.requested_at,
            memory_bytes=memory_bytes,
            startup_cpu_us=entry.cpu_zero_us,
            pace=Pace.of(record.vcpus, record.memory_mb),
        )

    async def end(self, session: Session, cpu_us: int, passed: Traffic) -> Quantities:
        """Close the last window of a session whose machine is dead, with its final counters; what it used in all."""
        assert session.entry is not None
        self.begin(session)
        disk_bytes = await self._machines.disk_bytes(session.entry.machine_id)
        return await self.usage.end(
            session.record.session_id,
            at_ms=now_ms(),
            active_cpu_us=cpu_us,
            ingress_bytes=passed.ingress_bytes,
            egress_bytes=passed.egress_bytes,
            gateway_cpu_us=passed.gateway_cpu_us,
            disk_bytes=disk_bytes,
            network=passed.network,
        )

    async def read(self, session_id: str) -> SessionUsage:
        """What a session used until now, or until its end. Raises `NotFoundError`."""
        session = self._sessions.find(session_id)
        if session is not None and session.machine is not None and session.ending is None:
            with contextlib.suppress(HutchError):
                # Without a gateway it is what the last one told.
                await self._traffic.read(session_id, session.machine.network)
        for _, reading in await self._readings([session_id]):
            self.usage.take(session_id, reading)
        used, totals = self.usage.usage(session_id), await self._traffic.last(session_id)
        return msgspec.structs.replace(used, network=totals.traffic().network) if totals is not None else used

    def used(self, session_id: str) -> asyncio.Future[Quantities | None]:
        """What a session used until this moment: the kernel's counters are read before this returns, the gateway's part is as it
        was told last. None without a meter, or when it can't be read."""
        session = self._sessions.find(session_id)
        machine = session.machine if session is not None else None
        try:
            counted = self._machines.counters_now(machine) if machine is not None else None
        except OSError:
            counted = None
        return asyncio.ensure_future(self._used(session_id, machine, counted, now_ms()))

    async def _used(self, session_id: str, machine: Machine | None, counted: Counters | None, at_ms: int) -> Quantities | None:
        try:
            if machine is not None and counted is not None:
                links = await asyncio.to_thread(interface_bytes)
                self.usage.take(session_id, self._reading(session_id, machine, counted, links, at_ms))
            return self.usage.usage(session_id).quantities
        except (NotFoundError, OSError):
            return None

    async def read_command(self, session_id: str, command_id: str) -> CommandUsage:
        """What a session used while a command ran. Raises `NotFoundError`."""
        record = await self._journal.command(session_id, command_id)
        if record is None or record.before is None:
            raise NotFoundError("not_found", f"The host has no usage of command '{command_id}'.")
        overlapped = record.overlapped
        if record.used is not None:
            used, final = record.used, True
        else:
            now = await self.read(session_id)
            used, final = now.quantities.since(record.before), now.final
            session = self._sessions.find(session_id)
            if session is not None and session.commands is not None and not final:
                overlapped = session.commands.get(command_id).overlapped
        return CommandUsage(
            session_id=session_id,
            command_id=command_id,
            started_at=record.started_at,
            final=final,
            overlapped=overlapped,
            quantities=used,
        )

    def _running(self) -> list[str]:
        return [session.record.session_id for session in self._sessions if session.machine is not None and session.ending is None]

    async def _readings(self, session_ids: Iterable[str]) -> list[tuple[str, Reading]]:
        """What the counters of sessions say now, of those that run. All are read in one go: a way to a thread and back takes as
        long as reading does."""
        found = [session for name in session_ids if (session := self._sessions.find(name)) is not None]
        running = [(session, session.machine) for session in found if session.machine is not None and session.ending is None]
        counters, links = await asyncio.gather(
            self._machines.counters([machine for _, machine in running]), asyncio.to_thread(interface_bytes)
        )
        now, readings = now_ms(), []
        for (session, machine), counted in zip(running, counters, strict=True):
            # It may have begun to end while they were read.
            if counted is None or session.ending is not None:
                continue
            session_id = session.record.session_id
            readings.append((session_id, self._reading(session_id, machine, counted, links, now)))
        return readings

    def _reading(
        self, session_id: str, machine: Machine, counted: Counters, links: dict[str, tuple[int, int]], at_ms: int
    ) -> Reading:
        passed = self._traffic.known(session_id)
        # The kernel's counters are there to be read at once, the gateway's are those of its last answer.
        egress, ingress = links.get(machine.network.link) or (passed.egress_bytes, passed.ingress_bytes)
        return Reading(
            at_ms=at_ms,
            active_cpu_us=counted.active_cpu_us,
            memory_bytes=counted.memory_bytes,
            ingress_bytes=ingress,
            egress_bytes=egress,
            gateway_cpu_us=passed.counted.cpu_us,
            disk_bytes=counted.disk_bytes,
        )


async def _ended(end: Callable[[Session], Awaitable[object]], session: Session) -> None:
    await end(session)
