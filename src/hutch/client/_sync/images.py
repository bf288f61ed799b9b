# Written by scripts/write_sync_client.py from `_async/images.py`; change that one.
"""Images, and logins at the registries that they come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from hutch.client import paths
from hutch.client._sync.transport import Http
from hutch.client.models import Credential, Image


class _Images(msgspec.Struct):
    images: list[Image]


class _Registries(msgspec.Struct):
    registries: list[Credential]


class Images:
    def __init__(self, http: Http) -> None:
        self._http = http

    def registries(self) -> list[Credential]:
        """Registries that the project has a login for."""
        return (self._http.call("GET", f"{paths.OWN}/registries", _Registries, query=self._http.project())).registries

    def list(self) -> list[Image]:
        """The server's own, then those of registries, by name."""
        return (self._http.call("GET", f"{paths.OWN}/images", _Images, query=self._http.project())).images

    def pull(self, reference: str, *, name: str | None = None, shared: bool = False) -> Image:
        """Fetch an image; answers when sandboxes can start from it."""
        body = {"reference": reference, "name": name, "shared": shared}
        return self._http.call(
            "POST", f"{paths.OWN}/images", Image, body=body, query=self._http.project(), timeout_s=None, safe=True
        )

    def build(self, snapshot_id: str, name: str, config: Mapping[str, Any], *, shared: bool = False) -> Image:
        """Make an image of a snapshot. `config` as the API has it: `env`, `cwd`, `user`, `labels`, `cmd`, `entrypoint`."""
        body = {"snapshotId": snapshot_id, "name": name, "config": config, "shared": shared}
        url = f"{paths.OWN}/images/from-snapshot"
        return self._http.call("POST", url, Image, body=body, query=self._http.project(), timeout_s=None)

    def remove(self, name: str, *, shared: bool = False) -> None:
        """Forget a name of an image."""
        query = self._http.project() | ({"shared": "true"} if shared else {})
        self._http.call("DELETE", paths.image(name), dict[str, Any], query=query)

    def log_in(self, registry: str, username: str, password: str) -> None:
        """Store a login for a registry."""
        body = {"username": username, "password": password}
        self._http.call("PUT", paths.registry(registry), dict[str, Any], body=body, query=self._http.project())

    def log_out(self, registry: str) -> None:
        """Forget it."""
        self._http.call("DELETE", paths.registry(registry), dict[str, Any], query=self._http.project())
