"""What is made of images never fills the disk, however little takes however much once it is unpacked."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from hutch.errors import UnavailableError
from hutch.host.protocol import ImageBuild, ImageQuery
from hutch.host.storage import MIN_FREE_BYTES
from tests.oci.conftest import Store
from tests.oci.images import file, image, layer
from tests.oci.scripted import Scripted

pytestmark = pytest.mark.root

MIB = 1024 * 1024
NOISE = os.urandom(200_000)
ROOM_BYTES = 30 * MIB


@pytest.fixture
def little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=MIN_FREE_BYTES + ROOM_BYTES))


@pytest.mark.usefixtures("little_room")
async def test_a_pull_that_unpacks_to_more_than_there_is_room_for_is_refused(store: Store, script: Scripted) -> None:
    # Compressed it has less than a MiB; it is written once as files and once packed.
    large = image(layer(file("a", NOISE * 100), compression="zstd"))
    with pytest.raises(UnavailableError) as refused:
        await store.pull(script.put(large))
    assert refused.value.code == "disk_full"
    assert store.left() == []
    await store.pull(script.put(image(layer(file("a", NOISE * 10), compression="zstd"))))


@pytest.mark.usefixtures("little_room")
async def test_a_build_of_more_than_there_is_room_for_is_refused(store: Store, script: Scripted, tmp_path: Path) -> None:
    reference = script.put(image(layer(file("a", "x"))))
    await store.pull(reference)
    base = store.images.exact(store.images.find(ImageQuery(reference=reference, project_id="prj")).pinned)
    there = store.files()
    tree = tmp_path / "tree"
    tree.mkdir()

    @contextlib.asynccontextmanager
    async def reading() -> AsyncIterator[Path]:
        yield tree

    with (tree / "hole").open("wb") as hole:
        hole.truncate(ROOM_BYTES + 1)
    with pytest.raises(UnavailableError) as refused:
        await store.images.build(ImageBuild(snapshot_id="snap", name="large", project_id="prj"), base, reading())
    assert refused.value.code == "disk_full"
    assert store.files() == there
    (tree / "hole").unlink()
    (tree / "small").write_text("x")
    made = await store.images.build(ImageBuild(snapshot_id="snap", name="small", project_id="prj"), base, reading())
    assert len(made.layers) == 2


@pytest.mark.usefixtures("little_room")
async def test_room_is_promised_once(open_store: Callable[..., Store]) -> None:
    images = open_store(image__max_bytes=20 * MIB).images

    async def other() -> int:
        async with images._room(copies=1) as room_bytes:
            return room_bytes

    async with images._room(copies=1) as room_bytes:
        assert room_bytes == 20 * MIB
        waiting = asyncio.create_task(other())
        for _ in range(100):
            await asyncio.sleep(0)
        assert not waiting.done()
    assert await waiting == 20 * MIB
