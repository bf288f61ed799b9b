"""Copies of a host's snapshots in a blob store: made behind sealing, used when the local files are gone, never left behind."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from hutch import ids
from hutch.blobs.jobs import AnyJob, Done, ImportJob, StoreJob, StoreSpec
from hutch.blobs.packer import run
from hutch.blobs.store import BlobStore
from hutch.errors import BadRequestError, ConflictError, GoneError, HutchError, UnavailableError
from hutch.host.conversion import Conversions, Converter
from hutch.host.copies import Copies, store_spec
from hutch.host.journal import Journal
from hutch.host.memory import MemoryImages
from hutch.host.packing import Packers, Send
from hutch.host.protocol import CopyState, SnapshotExport, SnapshotImport, SnapshotMethod, SnapshotRecord
from hutch.host.snapshots import Snapshots
from hutch.host.storage import BtrfsLayers, Ext4Layers, WritableLayers
from hutch.isolation.qemu import Qemu
from tests.blobs.s3 import serving
from tests.blobs.trees import seen
from tests.conftest import wait_until
from tests.host.guest import guest, host_settings, real_host

pytestmark = pytest.mark.root

T = TypeVar("T")
MIB = 1024 * 1024


class Died(BaseException):
    """As when the process ends here."""


class Mortal:
    """A part of an instance, which does nothing more for it once that has died."""

    def __init__(self, part: Any, is_dead: Callable[[], bool]) -> None:
        self._part = part
        self._is_dead = is_dead

    def __getattr__(self, name: str) -> Any:
        if self._is_dead():
            raise Died(name)
        return getattr(self._part, name)


class Here:
    """Does jobs in this process, so that they can end at a step."""

    def __init__(self, reached: Callable[[str], None]) -> None:
        self._reached = reached

    async def run(self, job: AnyJob, kind: type[T], given: AsyncIterable[bytes] | None = None, send: Send | None = None) -> T:
        pieces = [piece async for piece in given] if given is not None else []
        sent: list[bytes] = []
        result: Any = await asyncio.to_thread(run, job, pieces, sent.append, self._reached)
        for piece in sent:
            assert send is not None
            await send(piece)
        assert isinstance(result, kind)
        return result


def no_machines() -> Qemu:
    raise FileNotFoundError("it is not installed here")


class Instance:
    """One life of a host's snapshots on a directory; the next one begins on the same."""

    def __init__(self, directory: Path, layers: WritableLayers, die_at: int = -1, spec: StoreSpec | None = None) -> None:
        self.steps: list[str] = []
        self._die_at = die_at
        self.layers = layers
        self.spec = spec or StoreSpec(url=f"file://{directory}/blobs", concurrency=1, attempts=2, pause_s=0.01)
        self.journal = Journal(directory / "journal.db")
        packing = Here(self._reached) if die_at >= -1 else Packers()
        mortal: Any = Mortal(layers, self._is_dead)
        copies = Copies(self.spec, mortal, packing, grace_s=0, disk_bytes=64 * MIB, reached=self._reached)
        journal: Any = Mortal(self.journal, self._is_dead)
        converter = Converter(no_machines, packing, directory / "conversions", "/hutch-test-copies")
        conversions = Conversions(converter, mortal, disk_bytes=64 * MIB)
        self.snapshots = Snapshots(journal, mortal, MemoryImages(directory / "memory"), copies, conversions, self._reached)
        self.told: list[SnapshotRecord] = []

    def _is_dead(self) -> bool:
        return 0 <= self._die_at < len(self.steps)

    def _reached(self, step: str) -> None:
        if self._is_dead():
            raise Died(step)
        self.steps.append(step)
        if self._is_dead():
            raise Died(step)

    async def __aenter__(self) -> Instance:
        self.journal.open()
        self.journal.start()
        await self.snapshots.recover(set())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.snapshots.close()
        await asyncio.to_thread(self.journal.close)

    async def changed(self, record: SnapshotRecord) -> None:
        self.told.append(record)

    async def sealed(self, fill: Callable[[Path], None]) -> str:
        """A durable snapshot of what `fill` writes."""
        name = ids.snapshot_id()
        layer = self.layers.create("one", 64 * MIB)
        fill(layer / "u")
        self.layers.seal("one", name)
        record = SnapshotRecord(
            snapshot_id=name, session_id="s", image="i", size_bytes=0, created_at=1, method=SnapshotMethod.AUTOMATIC
        )
        await self.journal.put_snapshot(record)
        self.snapshots.made(record)
        await self.snapshots.settle(name, self.changed)
        return name

    def objects(self) -> list[Path]:
        return [path for path in Path(self.spec.url.removeprefix("file://")).rglob("*") if path.is_file()]

    def seen(self, name: str) -> dict[bytes, object]:
        with self.layers.reading(name) as tree:
            return seen(tree)


def some(tree: Path) -> None:
    (tree / "large").write_bytes(b"l" * (2 * MIB + 5))
    (tree / "d").mkdir()
    (tree / "d" / "small").write_bytes(b"s")


@pytest.fixture(params=[BtrfsLayers, Ext4Layers])
def layers(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[WritableLayers]:
    store: WritableLayers = request.param(tmp_path / "store")
    store.open()
    yield store
    for name in store.snapshots():
        store.remove_snapshot(name)
    store.close()


async def test_a_snapshot_is_copied_once_it_is_durable_and_restored_when_it_is_gone(
    layers: WritableLayers, tmp_path: Path
) -> None:
    async with Instance(tmp_path, layers) as one:
        name = await one.sealed(some)
        before = one.seen(name)
        assert await one.snapshots.copy_due(one.changed)
        record = one.snapshots.record(name)
        assert (record.copy, [told.copy for told in one.told][-2:]) == (CopyState.STORED, [CopyState.PACKING, CopyState.STORED])
        assert (await one.snapshots.verify(name)).compared
        layers.remove_snapshot(name)
        assert not (await one.snapshots.verify(name)).compared
        # Once for all who ask.
        sources = await asyncio.gather(*(one.snapshots.source(name, disk=False) for _ in range(3)))
        assert (one.steps.count("layer"), {source.snapshot for source in sources}) == (1, {name})
        assert (one.seen(name), layers.names()) == (before, set())
        assert one.snapshots.record(name).inherited_bytes == 0
        assert (await one.snapshots.verify(name)).compared
    async with Instance(tmp_path, layers) as again:
        assert await again.snapshots.copy_due(again.changed)
        assert again.steps == []


async def test_the_packer_as_a_process_does_the_same(layers: WritableLayers, tmp_path: Path) -> None:
    async with Instance(tmp_path, layers, die_at=-2) as one:
        name = await one.sealed(some)
        before = one.seen(name)
        assert await one.snapshots.copy_due(one.changed)
        assert (await one.snapshots.verify(name)).compared
        layers.remove_snapshot(name)
        await one.snapshots.source(name, disk=False)
        assert one.seen(name) == before
        pieces: list[bytes] = []

        async def keep(piece: bytes) -> None:
            pieces.append(piece)

        await one.snapshots.export(SnapshotExport(snapshot_id=name, max_bytes=1 << 30), keep)
        with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as archive:
            assert archive.getnames() == [".", "d", "d/small", "large", "tmp", "tmp/.hutch"]
        loaded = await one.snapshots.load(request(ids.snapshot_id()), each(pieces), 7)
        assert one.seen(loaded.snapshot_id) == before
        await one.snapshots.remove(loaded.snapshot_id)
        for path in one.objects():
            if path.parent.name == "manifests":
                path.unlink()
        layers.remove_snapshot(name)
        with pytest.raises(ConflictError, match="missing") as damaged:
            await one.snapshots.source(name, disk=False)
        assert damaged.value.code == "snapshot_damaged"
        assert (layers.names(), layers.snapshots()) == (set(), set())


def request(snapshot_id: str) -> SnapshotImport:
    return SnapshotImport(snapshot_id=snapshot_id, image="i", max_bytes=8 * MIB, max_files=100)


async def each(pieces: list[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def test_a_packer_ends_with_who_asked(tmp_path: Path) -> None:
    async def never() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.Event().wait()

    job = ImportJob(tree=str(tmp_path / "tree"), max_bytes=MIB, max_files=10)
    running = asyncio.create_task(Packers().run(job, Done, never()))
    while not (tmp_path / "tree").exists():
        assert not running.done()
        await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    children = Path(f"/proc/{os.getpid()}/task/{threading.main_thread().native_id}/children").read_text().split()
    assert "hutch.blobs.packer" not in "".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in children)


_HOST = """
import asyncio, sys
from hutch.blobs.jobs import *
from hutch.host.packing import Packers

async def never():
    yield b"x"
    await asyncio.Event().wait()

about = About(snapshot_id="snap_a", parent_id=None, image="i", created_at=1, size_bytes=1)
spec = StoreSpec(url="s3://b", endpoint=sys.argv[2], access_key_id="x", secret_access_key="x")
if sys.argv[3] == "import":
    job, given = ImportJob(tree=sys.argv[1] + "/in", max_bytes=1000, max_files=10), never()
else:
    job, given = StoreJob(store=spec, about=about, tree=sys.argv[1], grace_s=1), None
asyncio.run(Packers().run(job, Done, given))
"""


@pytest.mark.parametrize("kind", ["import", "store"])
def test_a_packer_ends_with_a_host_that_is_killed(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_bytes(b"x")
    # A server that takes connections and never answers.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        host = subprocess.Popen([sys.executable, "-c", _HOST, tmp_path, endpoint, kind], stdin=subprocess.DEVNULL)
        try:
            children = Path(f"/proc/{host.pid}/task/{host.pid}/children")
            wait_until(lambda: bool(children.read_text().split()), 20, "no packer")
            [packer] = children.read_text().split()
            wait_until(lambda: b"packer" in Path(f"/proc/{packer}/cmdline").read_bytes(), 20, "no packer")
        finally:
            host.kill()
            host.wait()
        wait_until(lambda: not Path(f"/proc/{packer}").exists(), 20, "the packer lives on")


# -- a death at every step ---------------------------------------------------------------------------


async def lives(tmp_path: Path, layers: WritableLayers, work: Callable[[Instance], Any], die_at: int) -> list[str]:
    """One life that may end in the middle; its steps."""
    instance = Instance(tmp_path, layers, die_at)
    try:
        async with instance:
            await work(instance)
    except Died:
        pass
    return instance.steps


async def test_deaths_while_it_is_copied(layers: WritableLayers, tmp_path: Path) -> None:
    step = 0
    while True:
        async with Instance(tmp_path, layers) as one:
            name = await one.sealed(some)
        steps = await lives(tmp_path, layers, lambda life: life.snapshots.copy_due(life.changed), step)
        async with Instance(tmp_path, layers) as after:
            stored = after.snapshots.record(name).copy is CopyState.STORED
            assert stored == (steps[-1] == "stored"), steps
            assert await after.snapshots.copy_due(after.changed)
            assert (await after.snapshots.verify(name)).compared
            await cleared(after, name)
        if len(steps) <= step:
            break
        step += 1
    assert steps == ["packing", *["chunk"] * (len(steps) - 6), "chunks", "manifest", "pointer", "packed", "stored"]
    assert step >= 9


async def cleared(instance: Instance, name: str) -> None:
    """Remove it, and look for what is left."""
    await instance.snapshots.remove(name)
    assert await instance.snapshots.copy_due(instance.changed)
    await instance.snapshots.collect()
    assert (instance.objects(), instance.layers.names(), instance.layers.snapshots()) == ([], set(), set())
    assert instance.journal.snapshots() == {}


async def test_deaths_while_it_is_restored(layers: WritableLayers, tmp_path: Path) -> None:
    async with Instance(tmp_path, layers) as one:
        name = await one.sealed(some)
        before = one.seen(name)
        assert await one.snapshots.copy_due(one.changed)
    step = 0
    while True:
        layers.remove_snapshot(name)
        steps = await lives(tmp_path, layers, lambda life: life.snapshots.source(name, disk=False), step)
        assert layers.holds(name) == (steps[-1] in ("sealed", "restored")), steps
        async with Instance(tmp_path, layers) as after:
            assert layers.names() == set()
            await after.snapshots.source(name, disk=False)
            assert after.seen(name) == before
        if len(steps) <= step:
            break
        step += 1
    assert step >= 9
    async with Instance(tmp_path, layers) as last:
        await cleared(last, name)


async def test_deaths_while_it_is_removed_and_collected(layers: WritableLayers, tmp_path: Path) -> None:
    async def work(life: Instance) -> None:
        await life.snapshots.remove(name)
        await life.snapshots.copy_due(life.changed)
        await life.snapshots.collect()

    step = 0
    while True:
        async with Instance(tmp_path, layers) as one:
            name = await one.sealed(some)
            assert await one.snapshots.copy_due(one.changed)
        steps = await lives(tmp_path, layers, work, step)
        async with Instance(tmp_path, layers) as after:
            with pytest.raises(GoneError):
                after.snapshots.record(name)
            assert await after.snapshots.copy_due(after.changed)
            await after.snapshots.collect()
            assert (after.objects(), layers.snapshots(), after.journal.snapshots()) == ([], set(), {})
        if len(steps) <= step:
            break
        step += 1
    # The objects that are collected are "removed", too.
    assert list(dict.fromkeys(steps)) == ["removing", "removed", "taken out", "marked", "swept", "collected"]
    assert step >= 8


async def test_a_disk_without_machines_to_open_it_is_refused_and_stays(layers: WritableLayers, tmp_path: Path) -> None:
    async with Instance(tmp_path, layers) as one:
        name = await one.sealed(some)
        record = msgspec.structs.replace(one.snapshots.record(name), disk=True)
        await one.journal.put_snapshot(record)
        one.snapshots.made(record)
        before = len(one.told)
        with pytest.raises(ConflictError, match="which needs QEMU: it is not installed here") as refused:
            await one.snapshots.source(name, disk=False)
        assert refused.value.code == "isolation_unsupported"
        # Nobody tries again and again what can't be.
        assert await one.snapshots.copy_due(one.changed)
        assert "needs QEMU" in (one.told[-1].store_error or "")
        told = len(one.told)
        assert told > before
        assert await one.snapshots.copy_due(one.changed)
        assert len(one.told) == told
        assert (await one.snapshots.source(name, disk=True)).snapshot == name
        assert layers.names() == set()
        await one.snapshots.remove(name)
        assert layers.snapshots() == set()


async def test_deaths_while_it_is_imported(layers: WritableLayers, tmp_path: Path) -> None:
    async with Instance(tmp_path, layers) as one:
        name = await one.sealed(some)
        pieces: list[bytes] = []

        async def keep(piece: bytes) -> None:
            pieces.append(piece)

        await one.snapshots.export(SnapshotExport(snapshot_id=name, max_bytes=1 << 30), keep)
        await one.snapshots.remove(name)
    step, loaded = 0, ids.snapshot_id()
    while True:
        steps = await lives(tmp_path, layers, lambda life: life.snapshots.load(request(loaded), each(pieces), 0), step)
        whole = len(steps) <= step
        async with Instance(tmp_path, layers) as after:
            assert (layers.names(), layers.snapshots()) == (set(), {loaded} if whole else set())
            assert [record.snapshot_id for record in after.snapshots.records()] == ([loaded] if whole else [])
        if whole:
            break
        step += 1
    assert steps == ["loading", "layer", "filled", "sealed", "loaded"]


# -- what goes wrong ---------------------------------------------------------------------------------


async def test_a_store_that_is_away_is_tried_again(layers: WritableLayers, tmp_path: Path) -> None:
    (tmp_path / "blobs").write_text("no directory")
    async with Instance(tmp_path, layers) as one:
        name = await one.sealed(some)
        assert not await one.snapshots.copy_due(one.changed)
        assert "does not answer" in str(one.told[-1].store_error)
    (tmp_path / "blobs").unlink()
    async with Instance(tmp_path, layers) as two:
        assert await two.snapshots.copy_due(two.changed)
        assert two.told[-1].store_error is None
        # Away again when it is removed: remembered.
        (tmp_path / "blobs").rename(tmp_path / "away")
        (tmp_path / "blobs").write_text("no directory")
        await two.snapshots.remove(name)
        assert not await two.snapshots.copy_due(two.changed)
    (tmp_path / "blobs").unlink()
    (tmp_path / "away").rename(tmp_path / "blobs")
    async with Instance(tmp_path, layers) as three:
        assert await three.snapshots.copy_due(three.changed)
        await three.snapshots.collect()
        assert (three.objects(), three.journal.snapshots()) == ([], {})


async def test_one_that_is_removed_while_it_is_copied_leaves_nothing(layers: WritableLayers, tmp_path: Path) -> None:
    async with Instance(tmp_path, layers) as one:
        name = await one.sealed(some)
        started, never = asyncio.Event(), asyncio.Event()
        upload = one.snapshots._copies.upload

        async def slow(record: SnapshotRecord, name: str) -> Any:
            await upload(record, name)
            started.set()
            await never.wait()

        one.snapshots._copies.upload = slow  # type: ignore[method-assign]
        copying = asyncio.create_task(one.snapshots.copy_due(one.changed))
        await started.wait()
        await one.snapshots.remove(name)
        await copying
        assert await one.snapshots.copy_due(one.changed)
        await one.snapshots.collect()
        assert (one.objects(), layers.snapshots(), one.journal.snapshots()) == ([], set(), {})


async def test_one_that_can_not_be_packed_is_tried_once(layers: WritableLayers, tmp_path: Path) -> None:
    def fill(tree: Path) -> None:
        (tree / "d").mkdir()
        os.setxattr(tree / "d", "trusted.overlay.redirect", b"/etc")

    async with Instance(tmp_path, layers) as one:
        name = await one.sealed(fill)
        assert await one.snapshots.copy_due(one.changed)
        assert "refers to a directory of its image" in str(one.snapshots.record(name).store_error)
        steps = len(one.steps)
        assert await one.snapshots.copy_due(one.changed)
        assert len(one.steps) == steps
        await cleared(one, name)


async def test_one_that_is_not_here_and_not_there_is_gone(layers: WritableLayers, tmp_path: Path) -> None:
    async with Instance(tmp_path, layers) as one:
        name = await one.sealed(some)
        with pytest.raises(ConflictError, match="no copy"):
            await one.snapshots.verify(name)
        layers.remove_snapshot(name)
        with pytest.raises(GoneError, match="not on this machine"):
            await one.snapshots.source(name, disk=False)
        await one.snapshots.remove(name)


async def test_an_import_that_is_refused_leaves_nothing(layers: WritableLayers, tmp_path: Path) -> None:
    async with Instance(tmp_path, layers, die_at=-2) as one:
        for pieces in ([b"no tar"], [b""], [b"x" * 512]):
            with pytest.raises(BadRequestError):
                await one.snapshots.load(request(ids.snapshot_id()), each(pieces), 0)

        async def broken() -> AsyncIterator[bytes]:
            yield bytes(512)
            raise UnavailableError("peer_unreachable", "gone")

        with pytest.raises(HutchError, match="gone"):
            await one.snapshots.load(request(ids.snapshot_id()), broken(), 0)
        assert (layers.names(), layers.snapshots(), one.journal.snapshots()) == (set(), set(), {})


def test_where_copies_are_by_the_settings(tmp_path: Path) -> None:
    assert store_spec(host_settings(tmp_path)) is None
    local = store_spec(host_settings(tmp_path, blobs__url="local"))
    assert local is not None
    assert local.url == f"file://{tmp_path}/host/blobs"
    there = store_spec(host_settings(tmp_path, blobs__url="s3://b/p", blobs__region="x", blobs__secret_access_key="k"))
    assert there is not None
    assert (there.url, there.region, there.secret_access_key) == ("s3://b/p", "x", "k")


# -- with real sandboxes -----------------------------------------------------------------------------


async def test_a_sandbox_goes_on_from_s3_when_its_files_are_gone_from_this_machine(no_leaks: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "s3") as s3:
        spec = s3.spec()
        flags: dict[str, Any] = {
            "blobs__url": spec.url,
            "blobs__endpoint": spec.endpoint,
            "blobs__region": spec.region,
            "blobs__access_key_id": spec.access_key_id,
            "blobs__secret_access_key": spec.secret_access_key,
        }
        async with real_host(no_leaks, **flags) as service:
            snapshots = service.supervisor.snapshots
            box = await guest(service, persistent=True)
            script = (
                "head -c 5000000 /dev/urandom > kept; sha256sum kept > sum; ln kept linked; ln -s kept soft;"
                "sudo rm /etc/motd; sudo rm -r /etc/apt; sudo mkdir /etc/apt; truncate -s 1G sparse; chmod 4755 kept;"
                "mkdir d; setfattr -n user.note -v x d 2>/dev/null; touch -d 2001-02-03 d"
            )
            assert (await box.shell(script)).exit_code == 0
            look = "sha256sum -c sum; stat -c '%h %a %F' kept linked soft sparse; ls -A /etc/apt /etc/motd; stat -c %y d"
            before = (await box.shell(look)).stdout
            assert b"kept: OK" in before
            snapshot = (await box.stop()).snapshot
            assert snapshot is not None
            name = snapshot.snapshot_id
            async with asyncio.timeout(60):
                while snapshots.record(name).copy is not CopyState.STORED:
                    await asyncio.sleep(0.05)
            assert box.record.snapshot is not None
            assert box.record.snapshot.stored_at is not None
            assert (await snapshots.verify(name)).compared
            await asyncio.to_thread(snapshots._layers.remove_snapshot, name)
            again = await guest(service, persistent=True, source_snapshot=name)
            assert (await again.shell(look)).stdout == before
            assert (await again.shell("echo more > more")).exit_code == 0
            await again.stop()
            # Damage is told, and nothing begins with it.
            await snapshots._remove_files(name)
            BlobStore(spec).delete([f"manifests/{snapshots.record(name).manifest}"])
            with pytest.raises(ConflictError, match="missing"):
                await guest(service, source_snapshot=name)


async def test_an_upload_whose_host_is_stopped_goes_on_at_the_next_start(no_leaks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started, never = asyncio.Event(), asyncio.Event()
    run_job = Packers.run

    async def stalled(self: Packers, job: AnyJob, *given: Any, **named: Any) -> Any:
        if isinstance(job, StoreJob):
            started.set()
            await never.wait()
        return await run_job(self, job, *given, **named)

    monkeypatch.setattr(Packers, "run", stalled)
    async with real_host(no_leaks, blobs__url="local") as service:
        box = await guest(service, persistent=True)
        await box.stop()
        await started.wait()
    monkeypatch.undo()
    async with real_host(no_leaks, blobs__url="local") as service:
        [record] = service.supervisor.snapshots.records()
        async with asyncio.timeout(60):
            while service.supervisor.snapshots.record(record.snapshot_id).copy is not CopyState.STORED:
                await asyncio.sleep(0.05)
        assert (await service.supervisor.snapshots.verify(record.snapshot_id)).compared
        with contextlib.suppress(KeyError):
            assert service.supervisor.get(box.session_id).record.snapshot is not None
