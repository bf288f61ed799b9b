"""Ends of sessions: stopped, timed out, failed, or found dead after this host's own death.

    stopping ─▶ snapshotting, where files are kept ─▶ machine dead, usage read ─▶ files sealed ─▶ drives given back ─▶ over

Each step is written before the next, so that the next host carries an end through from wherever it got to. A session is over
when its final record is written; what is left of its machine is removed behind everybody's back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from hutch.clock import now_ms
from hutch.errors import NotReadyError
from hutch.host.background import Background
from hutch.host.drives import Drives
from hutch.host.egress import Egress
from hutch.host.gateway import Gateway
from hutch.host.ingress import Ingress
from hutch.host.machine import Machine, Machines
from hutch.host.metered import Metered
from hutch.host.network import Networks
from hutch.host.protocol import DriveMode, SessionRecord, SessionStatus, SnapshotMethod, SnapshotRecord
from hutch.host.sessions import Session, Sessions
from hutch.host.snapshots import Snapshots
from hutch.host.traffic import TrafficMeter

log = logging.getLogger(__name__)

SEAL_AGAIN_S = 0.2
SEAL_AGAIN_MAX_S = 30.0
ADOPT_WAIT_S = 10.0
END_AGAIN_S = 5.0
"""Between tries of what failed on its way, as where the host's disk is full or it has no descriptor left."""


class Ends:
    """Ends sessions. `removals` are what is still being removed, `unremoved` are machines of which something is left; while
    `draining` what can't be kept is left to the next start, and a host that has `left` ends nothing any more."""

    def __init__(
        self,
        sessions: Sessions,
        machines: Machines,
        networks: Networks,
        gateway: Gateway,
        egress: Egress,
        ingress: Ingress,
        meter: TrafficMeter,
        metered: Metered,
        snapshots: Snapshots,
        drives: Drives,
        background: Background,
    ) -> None:
        self._sessions = sessions
        self._machines = machines
        self._networks = networks
        self._gateway = gateway
        self._egress = egress
        self._ingress = ingress
        self._meter = meter
        self._metered = metered
        self._snapshots = snapshots
        self._drives = drives
        self._background = background
        self.removals: set[asyncio.Task[None]] = set()
        self.unremoved: set[str] = set()
        self.draining = self.left = False

    async def end(
        self,
        session: Session,
        status: SessionStatus,
        reason: str,
        method: SnapshotMethod | None = None,
        planned: SnapshotRecord | None = None,
    ) -> SessionRecord:
        """End a session; its final record once its machine is dead and, where its files are kept (it is persistent, or a `method`
        is given), these are a snapshot, the `planned` one if there is any. The first caller's arguments count."""
        if not session.live:
            return session.record
        if session.ending is None or (session.ending.done() and not self.left):
            # The first, or one after an end that failed on its way and has to be carried through.
            if session.machine is None:
                # A former host began to end it, and its files are still being kept.
                raise NotReadyError("sandbox_stopping", "Sandbox is stopping and no longer accepts commands.")
            if method is None and session.record.persistent:
                method = SnapshotMethod.AUTOMATIC
            if session.record.snapshot is not None:
                planned = session.record.snapshot
            elif planned is None and method is not None:
                planned = self._planned(session, method)
            session.ending = asyncio.get_running_loop().create_task(self._end(session, status, reason, planned))
            session.ending.add_done_callback(lambda _: self._carry_on(session, status, reason, planned))
        return await asyncio.shield(session.ending)

    async def _end(self, session: Session, status: SessionStatus, reason: str, planned: SnapshotRecord | None) -> SessionRecord:
        if session.timer is not None:
            session.timer.cancel()
        machine, commands = session.machine, session.commands
        assert machine is not None
        assert commands is not None
        await self._ingress.ended(session.record.session_id)
        if status is SessionStatus.STOPPED:
            await self._sessions.write_end(session, status=SessionStatus.STOPPING, requested_stop_at=now_ms(), stop_reason=reason)
        if planned is not None:
            await self._sessions.write_end(session, status=SessionStatus.SNAPSHOTTING, snapshot=planned)
        if planned is not None or any(mount.mode is DriveMode.READ_WRITE for mount in session.record.mounts):
            await self._machines.write_down(machine)
        left = await self._machines.end(machine)
        passed = await self._meter.end(session.record.session_id, machine.network)
        # Its cgroup is there until the last window is written.
        used = await self._metered.end(session, left.active_cpu_us, passed)
        if status is SessionStatus.FAILED and left.oom_kills:
            reason += f" The kernel ended {left.oom_kills} of its processes because its memory limit was reached."
        await commands.close()
        snapshot = await self._sealed(session)
        # Before anybody hears that it ended, and could ask for its drives.
        await self._drives.release(session.record.session_id)
        now = now_ms()
        written = await self._sessions.write_end(
            session,
            status=status,
            stop_reason=reason,
            stopped_at=now,
            requested_stop_at=session.record.requested_stop_at or now,
            active_cpu_us=used.active_cpu_us,
            ingress_bytes=passed.ingress_bytes,
            egress_bytes=passed.egress_bytes,
            snapshot=snapshot,
        )
        if not written:
            self._background.spawn(self._sessions.write_again(session))
        self.settle(snapshot)
        session.machine = session.commands = None
        removal = asyncio.get_running_loop().create_task(self._remove(session.record.session_id, machine))
        self.removals.add(removal)
        removal.add_done_callback(self.removals.discard)
        return session.record

    def _carry_on(self, session: Session, status: SessionStatus, reason: str, planned: SnapshotRecord | None) -> None:
        """Have an end that failed on its way be tried again: who asked for it may be a clock, and asks once."""
        ending = session.ending
        if ending is None or ending.cancelled() or (error := ending.exception()) is None or self.draining or self.left:
            return
        log.error("the end of session %s failed: %s", session.record.session_id, error, exc_info=error)
        self._background.spawn(self._end_again(session, ending, status, reason, planned))

    async def _end_again(
        self,
        session: Session,
        failed: asyncio.Task[SessionRecord],
        status: SessionStatus,
        reason: str,
        planned: SnapshotRecord | None,
    ) -> None:
        await asyncio.sleep(END_AGAIN_S)
        if session.ending is failed and not (self.draining or self.left):
            # Of one that fails again it is told there.
            with contextlib.suppress(Exception):
                await self.end(session, status, reason, planned=planned)

    async def _remove(self, session_id: str, machine: Machine) -> None:
        self.unremoved.add(machine.machine_id)

        async def removed() -> None:
            await self._machines.remove(machine)
            self.unremoved.discard(machine.machine_id)

        await self._background.insist(f"machine {machine.machine_id} could not be removed completely", removed)
        await self._background.insist(
            f"the policy of session {session_id} could not be forgotten", lambda: self._egress.forget(session_id)
        )

    # -- of a machine that is gone ------------------------------------------------------------------

    async def carry_through(self, session: Session, status: SessionStatus, reason: str) -> None:
        """Write the end of a session whose machine is gone; what can't be done at once does not hold up the others."""
        ending = asyncio.get_running_loop().create_task(self._after_death(session, status, reason))
        self.removals.add(ending)
        ending.add_done_callback(self.removals.discard)
        ending.add_done_callback(lambda _: self._carry_through_again(session, ending, status, reason))
        await asyncio.wait({ending}, timeout=ADOPT_WAIT_S)

    def _carry_through_again(self, session: Session, ending: asyncio.Task[None], status: SessionStatus, reason: str) -> None:
        """Have one that failed on its way be tried again: before the next start of a host nobody else would."""
        if ending.cancelled() or (error := ending.exception()) is None:
            return
        log.error("the end of session %s could not be carried through: %s", session.record.session_id, error, exc_info=error)

        async def again() -> None:
            await asyncio.sleep(END_AGAIN_S)
            await self.carry_through(session, status, reason)

        if not (self.draining or self.left):
            self._background.spawn(again())

    async def _after_death(self, session: Session, status: SessionStatus, reason: str) -> None:
        """Write the end of a session whose machine is gone or unreachable, and remove what is left of it. Done again, it does
        no more than is missing."""
        assert session.entry is not None
        entry = session.entry
        cpu = self._machines.cpu_of(entry, session.record.isolation)
        passed = await self._meter.end(session.record.session_id, self._networks.network(entry.network))
        used = await self._metered.end(session, cpu, passed)
        snapshot = await self._sealed(session)
        await asyncio.to_thread(self._machines.remove_by_id, entry.machine_id)
        await self._egress.forget(session.record.session_id)
        await self._drives.release(session.record.session_id)
        await self._gateway.remove(self._networks.network(entry.network))
        # Last, and once: from here on it may be another sandbox's.
        await self._networks.give_back(self._networks.network(entry.network))
        now = now_ms()
        written = await self._sessions.write_end(
            session,
            status=status,
            stop_reason=reason,
            requested_stop_at=session.record.requested_stop_at or now,
            stopped_at=now,
            active_cpu_us=used.active_cpu_us,
            ingress_bytes=passed.ingress_bytes,
            egress_bytes=passed.egress_bytes,
            snapshot=snapshot,
        )
        if not written:
            self._background.spawn(self._sessions.write_again(session))
        self.settle(snapshot)

    # -- files that are kept ------------------------------------------------------------------------

    async def _sealed(self, session: Session) -> SnapshotRecord | None:
        """The snapshot that the end of a session leaves; None when it leaves none, or its files are not there any more."""
        record = session.record
        if record.snapshot is None:
            if not record.persistent:
                return None
            planned = self._planned(session, SnapshotMethod.AUTOMATIC)
            await self._sessions.change(session, status=SessionStatus.SNAPSHOTTING, snapshot=planned)
            record = session.record
        assert record.snapshot is not None
        assert session.entry is not None
        try:
            await self._seal(session.entry.machine_id, record.snapshot.snapshot_id)
        except FileNotFoundError as error:
            log.error("the files of session %s are gone: %s", record.session_id, error)
            return None
        self._snapshots.made(record.snapshot)
        return record.snapshot

    async def _seal(self, machine_id: str, snapshot_id: str) -> None:
        """Seal a layer, however long it takes: until it is, the session is not over, and nothing of it is removed. Raises
        `FileNotFoundError` when there is no layer, and `OSError` when this host is to stop: its next start tries again."""
        pause = SEAL_AGAIN_S
        while True:
            try:
                await self._machines.seal(machine_id, snapshot_id)
            except FileNotFoundError:
                raise
            except OSError as error:
                log.error("the files of machine %s can't be kept yet: %s", machine_id, error)
                if self.draining:
                    raise
                await asyncio.sleep(pause)
                pause = min(pause * 2, SEAL_AGAIN_MAX_S)
            else:
                return

    def settle(self, record: SnapshotRecord | None) -> None:
        """Behind everybody's back, have a snapshot survive a power cut."""
        if record is not None and record.durable_at is None:
            self._background.spawn(self._settle(record.snapshot_id))

    async def _settle(self, snapshot_id: str) -> None:
        while True:
            try:
                return await self._snapshots.settle(snapshot_id, self.settled)
            except Exception as error:
                log.error("snapshot %s is not safe from a power cut yet: %s", snapshot_id, error, exc_info=error)
            await asyncio.sleep(END_AGAIN_S)

    async def settled(self, record: SnapshotRecord) -> None:
        session = self._sessions.find(record.session_id)
        left = session.record.snapshot if session is not None and not session.live else None
        if session is not None and left is not None and left.snapshot_id == record.snapshot_id:
            await self._sessions.change(session, snapshot=record)

    def _planned(self, session: Session, method: SnapshotMethod) -> SnapshotRecord:
        assert session.entry is not None
        return self._snapshots.plan(session.record, session.entry, method)
