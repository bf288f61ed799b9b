"""A snapshot in both forms. Sandboxes of gVisor keep their files in a *tree*, those of virtual machines in a *disk*, and a
snapshot is made in the form of its sandbox. Where the other one is wanted it is made once, by a machine of its own
(`hutch.isolation.convert`), and kept beside the first under a name of its own until the snapshot goes.

    tree ─▶ disk   a virtual machine begins with it
    disk ─▶ tree   gVisor begins with it; it is exported, made an image, copied to the blob store

What is converted is made under a third name and sealed like a session's layer: it is there whole or not at all. It takes time in
proportion to what it holds, and the room of one more copy, which counts as no sandbox's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from hutch.blobs.jobs import Done, ReceiveJob, SendJob
from hutch.errors import ConflictError, UnavailableError
from hutch.host import kernel
from hutch.host.packing import Packing
from hutch.host.protocol import SnapshotRecord
from hutch.host.storage import UPPER, Source, WritableLayers
from hutch.isolation import convert
from hutch.isolation.qemu import Qemu
from hutch.isolation.qemu_disk import DISK, disk_size, make_disk

log = logging.getLogger(__name__)

TREE, AS_DISK = ".tree", ".disk"
CONVERTING = "converting-"
"""What layers are called until they are sealed, and the cgroups of the machines that use them: who finds one ends the other."""
MAX_FILES = 4_000_000
"""More than a disk of 64 GiB has as it is formatted."""
SLACK_BYTES = 64 * 1024 * 1024
UNPACKABLE = "snapshot_unpackable"
AT_ONCE = 2
"""Each takes a processor for itself, and somebody may wait for one while snapshots are copied."""

FindQemu = Callable[[], Qemu]
"""The backend whose machines convert. Blocks. Raises `OSError` with what is missing."""


def name_of(record: SnapshotRecord, *, disk: bool) -> str:
    """What a snapshot's layer is called in one of its forms."""
    if record.disk is disk:
        return record.snapshot_id
    return record.snapshot_id + (AS_DISK if disk else TREE)


def snapshot_of(name: str) -> str:
    """Whose a sealed layer is."""
    return name.removesuffix(TREE).removesuffix(AS_DISK)


def names_of(snapshot_id: str) -> tuple[str, ...]:
    """All names that a snapshot's layers may have."""
    return (snapshot_id, snapshot_id + TREE, snapshot_id + AS_DISK)


class Converter:
    """Starts the machines that convert, a few at once. `directory` is for them, `cgroup` the parent of theirs."""

    def __init__(self, find_qemu: FindQemu, packing: Packing, directory: Path, cgroup: str) -> None:
        self._find_qemu = find_qemu
        self._packing = packing
        self._directory = directory
        self._cgroup = cgroup
        self._gate = asyncio.Semaphore(AT_ONCE)

    def sweep(self) -> None:
        """Remove what a conversion left that died with its host; its machine and its layers are found by their names. Blocks."""
        shutil.rmtree(self._directory, ignore_errors=True)

    @contextlib.asynccontextmanager
    async def machine(self, about: str, unpackable: str) -> AsyncIterator[Qemu]:
        """Machines for one conversion, and its errors in the caller's words: `about` what can't be converted, with the code
        `unpackable` where that is the files' fault. Raises `HutchError`, and `FileNotFoundError`."""
        async with self._gate:
            qemu = await self._qemu()
            await asyncio.to_thread(self._directory.mkdir, mode=0o700, parents=True, exist_ok=True)
            try:
                yield qemu
            except FileNotFoundError:
                raise
            except convert.ConversionFailed as error:
                raise ConflictError(unpackable, f"{about}: {error}.") from error
            except ConflictError as error:
                # What a packer said, who knows of snapshots alone.
                raise ConflictError(unpackable if error.code == UNPACKABLE else error.code, error.message) from error
            except OSError as error:
                raise UnavailableError("conversion_failed", f"{about}: {error}", retry_after_s=10) from error

    async def _qemu(self) -> Qemu:
        try:
            return await asyncio.to_thread(self._find_qemu)
        except OSError as error:
            raise ConflictError(
                "isolation_unsupported",
                f"Files of virtual machines and of other sandboxes are converted by a virtual machine, which needs QEMU: {error}",
            ) from error

    async def take_out(self, qemu: Qemu, name: str, copy: Path, tree: Path) -> None:
        """Have a machine called `name` send the files of the disk in the directory `copy`, which become `tree`; that is not there
        yet. Raises `OSError`, and `HutchError`."""
        disk = await asyncio.to_thread((copy / DISK).stat)
        job = ReceiveJob(tree=str(tree), max_bytes=disk.st_size, max_files=MAX_FILES)

        async def keep(sent: AsyncIterator[bytes]) -> None:
            await self._packing.run(job, Done, sent)

        await convert.take_out(
            qemu, copy, keep, size_bytes=disk.st_blocks * 512, parent=self._directory, cgroup=f"{self._cgroup}/{name}"
        )

    async def put_in(self, qemu: Qemu, name: str, tree: Path, layer: Path, size_bytes: int) -> None:
        """Have a machine called `name` put the files of `tree`, which nobody writes to and which has `size_bytes`, into the empty
        disk in the directory `layer`. Raises `OSError`, and `HutchError`."""

        async def give(send: convert.Send) -> None:
            await self._packing.run(SendJob(tree=str(tree)), Done, send=send)

        await convert.put_in(qemu, layer, give, size_bytes=size_bytes, parent=self._directory, cgroup=f"{self._cgroup}/{name}")


class Conversions:
    """Makes the other form of snapshots."""

    def __init__(self, converter: Converter, layers: WritableLayers, *, disk_bytes: int) -> None:
        self._converter = converter
        self._layers = layers
        self._disk_bytes = disk_bytes

    def sweep(self) -> None:
        """Remove what a conversion left that died with its host. Blocks."""
        self._converter.sweep()

    async def convert(self, record: SnapshotRecord, *, disk: bool) -> None:
        """Have a snapshot that is here in one form be here in the other one, a disk or a tree. Raises `HutchError`, and
        `FileNotFoundError` when it is in none, or was removed meanwhile; nothing is left then."""
        about = f"The files of snapshot '{record.snapshot_id}' can't be converted"
        async with self._converter.machine(about, UNPACKABLE) as qemu:
            source, name = name_of(record, disk=not disk), name_of(record, disk=disk)
            log.info("snapshot %s becomes a %s", record.snapshot_id, "disk" if disk else "tree")
            if disk:
                size = await asyncio.to_thread(self._layers.size, source, 0 if record.disk else record.inherited_bytes)
                await self._to_disk(qemu, source, name, size)
            else:
                await self._to_tree(qemu, source, name, await asyncio.to_thread(self._layers.blocks, source))

    async def _to_tree(self, qemu: Qemu, source: str, name: str, size_bytes: int) -> None:
        async with (
            self._layer(2 * size_bytes + SLACK_BYTES, Source(source, 0)) as (copied, copy),
            self._layer(max(self._disk_bytes, 2 * size_bytes + SLACK_BYTES)) as (made, layer),
        ):
            # The tree brings its own; what is here is ours, and only what a new layer has.
            await asyncio.to_thread(kernel.run, ["rm", "-rf", "--", str(layer / UPPER)])
            await self._converter.take_out(qemu, copied, copy, layer / UPPER)
            await self._seal(made, name)

    async def _to_disk(self, qemu: Qemu, source: str, name: str, size_bytes: int) -> None:
        async with self._layer(max(self._disk_bytes, 2 * size_bytes + SLACK_BYTES)) as (made, layer):
            room = await asyncio.to_thread(self._layers.room, made)
            # In smaller blocks, which small disks have by themselves, not every link and attribute has room.
            await asyncio.to_thread(make_disk, layer / DISK, disk_size(room), "-b", "4096")
            reading = self._layers.reading(source)
            tree = await asyncio.to_thread(reading.__enter__)
            try:
                await self._converter.put_in(qemu, made, tree, layer, size_bytes)
            finally:
                await asyncio.shield(asyncio.to_thread(reading.__exit__, None, None, None))
            await self._seal(made, name)

    async def _seal(self, made: str, name: str) -> None:
        await asyncio.to_thread(self._layers.sync)
        await asyncio.to_thread(self._layers.seal, made, name)

    @contextlib.asynccontextmanager
    async def _layer(self, size_bytes: int, source: Source | None = None) -> AsyncIterator[tuple[str, Path]]:
        """A layer that is gone afterwards, unless it was sealed: its name and its place."""
        name = f"{CONVERTING}{secrets.token_hex(10)}"
        try:
            yield name, await asyncio.to_thread(self._layers.create, name, size_bytes, source)
        finally:
            await asyncio.shield(asyncio.to_thread(self._layers.remove, name))
