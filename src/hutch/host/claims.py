"""Machines that become a session's: pooled ones, fresh ones, and those that go on from saved memory.

Its network is told first, its name last: what the session's first instruction sends is judged by the session's policy.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from pathlib import Path

from hutch.errors import HutchError, UnavailableError
from hutch.host import egress, snapshots
from hutch.host.background import Background
from hutch.host.drives import Attachment
from hutch.host.egress import Egress
from hutch.host.images import Images
from hutch.host.machine import Admit, Contents, Machine, MachineKind, Machines
from hutch.host.memory import Memory
from hutch.host.network import Network, Networks
from hutch.host.pool import Pool, Recipe
from hutch.host.protocol import SessionSpec
from hutch.host.snapshots import Snapshots
from hutch.host.storage import Source
from hutch.images import Image
from hutch.settings import Settings

log = logging.getLogger(__name__)

MIB = 1024 * 1024


class Claims:
    """Gives sessions their machines. `pool` has those that were started ahead of time."""

    def __init__(
        self,
        settings: Settings,
        machines: Machines,
        networks: Networks,
        images: Images,
        egress: Egress,
        snapshots: Snapshots,
        background: Background,
        logs: Path,
    ) -> None:
        self._settings = settings
        self._machines = machines
        self._networks = networks
        self._images = images
        self._egress = egress
        self._snapshots = snapshots
        self._background = background
        self._logs = logs
        self.pool = Pool(
            self._kinds_to_pool(), self.boot_for_pool, self.discard, settings.pool.refill_concurrency, settings.pool.max_size
        )

    # -- what there is -----------------------------------------------------------------------------

    def kind(self, image: Image, vcpus: int, memory_mb: int, disk_bytes: int | None, isolation: str) -> MachineKind:
        return MachineKind(image, vcpus, memory_mb * MIB, disk_bytes or self._settings.sandbox.disk_bytes, isolation)

    def _kinds_to_pool(self) -> list[tuple[MachineKind, int]]:
        size, vcpus = self._settings.pool.size, self._settings.sandbox.default_vcpus
        if size == 0:
            return []
        # Those of other backends are made as they are asked for.
        isolation = self._machines.backends.default.name
        return [
            (self.kind(self._images.resolve(name, ""), vcpus, vcpus * 2048, None, isolation), size)
            for name in self._settings.pool_images()
        ]

    async def boot_for_pool(self, kind: MachineKind, source: Source | None) -> Machine:
        return await self._boot(kind, Contents(source))

    async def _boot(self, kind: MachineKind, contents: Contents, admit: Admit | None = None) -> Machine:
        try:
            machine = await self._machines.boot(kind, contents, admit)
        except OSError as error:
            log.error("a sandbox did not start: %s", error)
            raise not_started(error) from error
        self._background.spawn(self._networks.refill())
        return machine

    async def discard(self, machine: Machine) -> None:
        await self._machines.end(machine)
        await self._machines.remove(machine)

    # -- claiming ----------------------------------------------------------------------------------

    async def claimed(self, kind: MachineKind, spec: SessionSpec, attachments: tuple[Attachment, ...]) -> Machine:
        """A machine that is this session's. A pooled one that fails is replaced by a fresh one, once."""
        source = await self._source(kind, spec.source_snapshot) if spec.source_snapshot is not None else None
        # What is mounted in a machine is mounted as it boots.
        pooled = await self.pool.take(Recipe(kind, source)) if not attachments else None
        if pooled is not None:
            try:
                await self._claim(pooled, kind, spec)
            except HutchError as error:
                log.warning("pooled machine %s could not be claimed: %s", pooled.machine_id, error)
                await self.discard(pooled)
            else:
                return pooled
        machine = await self._boot(kind, Contents(source, attachments=attachments))
        try:
            await self._claim(machine, kind, spec)
        except BaseException:
            await self._egress.forget(spec.session_id)
            await self.discard(machine)
            raise
        return machine

    async def _source(self, kind: MachineKind, snapshot_id: str) -> Source:
        return await self._snapshots.source(snapshot_id, disk=not self._machines.traits(kind.isolation).trees)

    async def _claim(self, machine: Machine, kind: MachineKind, spec: SessionSpec) -> None:
        await self._admit(spec, machine.network, [])
        await self.name(machine, kind, spec)

    async def _admit(self, spec: SessionSpec, network: Network, known: list[egress.Placeholder]) -> None:
        state = egress.State(
            sandbox_id=spec.sandbox_id or spec.session_id,
            sandbox_name=spec.sandbox_name,
            team_id=spec.team_id,
            project_id=spec.project_id,
            network=spec.network,
        )
        await self._egress.begin(spec.session_id, network, state, known)

    async def name(self, machine: Machine, kind: MachineKind, spec: SessionSpec) -> None:
        """Tell a machine's agent whose it is now."""
        env = self._egress.env(spec.session_id)
        await self._machines.claim(machine, kind.image, spec.hostname, {**env, **spec.env})

    async def restored(self, kind: MachineKind, spec: SessionSpec, memory: Memory) -> Machine:
        """A machine that goes on from saved memory as this session's."""
        assert spec.source_snapshot is not None
        source = await self._source(kind, spec.source_snapshot)

        async def admit(network: Network) -> None:
            # Its processes run before anybody can say to whom they belong now.
            await self._admit(spec, network, memory.record.placeholders)

        machine, logs = None, self._logs / spec.session_id
        try:
            # First: what has begun to go on needs nothing of its snapshot any more, which may be removed then.
            await asyncio.to_thread(shutil.copytree, memory.logs, logs, dirs_exist_ok=True)
            machine = await self._boot(kind, Contents(source, memory), admit)
            await self.name(machine, kind, spec)
        except BaseException as error:
            await asyncio.to_thread(shutil.rmtree, logs, ignore_errors=True)
            await self._egress.forget(spec.session_id)
            if machine is not None:
                await self.discard(machine)
            if isinstance(error, FileNotFoundError):
                raise snapshots.unknown(spec.source_snapshot) from error
            if isinstance(error, OSError):
                raise not_started(error) from error
            raise
        return machine


def not_started(error: OSError) -> UnavailableError:
    """What whoever wanted a session is told."""
    return UnavailableError("sandbox_start_failed", f"The sandbox could not be started: {error}", retry_after_s=1)
