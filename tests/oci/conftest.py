"""A host's images without sandboxes, over a registry that says what a test wants."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hutch.host.images import Images
from hutch.host.journal import Journal
from hutch.host.protocol import ImagePull, ImageRecord
from hutch.images import ImageStore
from tests.host.guest import host_settings
from tests.oci.scripted import Scripted, scripted_registry


@dataclass
class Store:
    """`images` with their directory."""

    images: Images
    directory: Path
    journal: Journal

    async def pull(self, reference: str, project_id: str = "prj", **rest: object) -> ImageRecord:
        return await self.images.pull(ImagePull(reference=reference, project_id=project_id, **rest))  # type: ignore[arg-type]

    def files(self) -> list[str]:
        """Every file that there is of images."""
        return sorted(str(path.relative_to(self.directory)) for path in self.directory.rglob("*") if not path.is_dir())

    def left(self) -> list[str]:
        """What a pull that was refused should not have left."""
        staged = [path.name for path in (self.directory / "staging").iterdir()]
        return (
            staged
            + self.files()
            + [entry.digest for entry in self.journal.images()]
            + [n.name for n in self.journal.image_names()]
        )


@pytest.fixture
def script() -> Iterator[Scripted]:
    with scripted_registry() as running:
        yield running


@pytest.fixture
async def open_store(tmp_path: Path, script: Scripted) -> AsyncIterator[Callable[..., Store]]:
    """Makes a store; the settings are those of a host, and the scripted registry is known."""
    opened: list[Store] = []

    def make(**settings: object) -> Store:
        for former in opened:
            former.journal.close()
        journal = Journal(tmp_path / "journal.db")
        journal.open()
        chosen = host_settings(tmp_path, **({"image__insecure_registries": script.host} | settings))
        images = Images(chosen, journal, tmp_path / "pulled", ImageStore(tmp_path / "none"), lambda _: None)
        images.open()
        journal.start()
        opened.append(Store(images, tmp_path / "pulled", journal))
        return opened[-1]

    yield make
    for store in opened:
        await store.images.close()
        store.journal.close()


@pytest.fixture
async def store(open_store: Callable[..., Store]) -> Store:
    return open_store(image__max_bytes=110 * 1024 * 1024, image__max_entries=2000)
