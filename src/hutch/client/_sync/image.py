# Written by scripts/write_sync_client.py from `_async/image.py`; change that one.
"""One image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hutch.client import models
from hutch.client.display import table
from hutch.client.results import shown

if TYPE_CHECKING:
    from hutch.client._sync.client import Client


class Image:
    """What sandboxes start from. `record` has all that the API says."""

    def __init__(self, client: Client, record: models.Image) -> None:
        self._client = client
        self.record = record

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def digest(self) -> str:
        return self.record.digest

    @property
    def size_bytes(self) -> int:
        return self.record.size_bytes

    def remove(self, *, shared: bool = False) -> None:
        """Forget the name. Raises `ConflictError` (`image_in_use`)."""
        self._client.images.remove(self.name, shared=shared)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({shown({'name': self.name, 'digest': self.digest[:19]})})"

    def _repr_html_(self) -> str:
        names = ("name", "aliases", "digest", "size_bytes", "source", "user", "cwd")
        return table("Image", [(name, getattr(self.record, name)) for name in names])
