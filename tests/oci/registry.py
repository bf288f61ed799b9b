"""A real registry for a test, and pushing to it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

from scripts.setup.test_tools import REGISTRY
from tests.oci.images import Made, index


@dataclass(frozen=True, slots=True)
class RunningRegistry:
    """`host` is `127.0.0.1:PORT`."""

    host: str

    def push(self, repository: str, tag: str, made: Made) -> str:
        """The image's reference."""
        for digest, blob in made.blobs.items():
            begun = httpx.post(f"{self._url(repository)}/blobs/uploads/").raise_for_status()
            place = httpx.URL(f"http://{self.host}").join(begun.headers["location"]).copy_merge_params({"digest": digest})
            httpx.put(place, content=blob).raise_for_status()
        return self.push_document(repository, tag, made.manifest, made.media_type)

    def push_document(self, repository: str, tag: str, raw: bytes, media_type: str) -> str:
        url = f"{self._url(repository)}/manifests/{tag}"
        httpx.put(url, content=raw, headers={"content-type": media_type}).raise_for_status()
        return f"{self.host}/{repository}:{tag}"

    def push_index(self, repository: str, tag: str, *images: tuple[Made, str]) -> str:
        for made, architecture in images:
            self.push(repository, f"{tag}-{architecture}", made)
        return self.push_document(repository, tag, index(*images), "application/vnd.oci.image.index.v1+json")

    def _url(self, repository: str) -> str:
        return f"http://{self.host}/v2/{repository}"


@contextmanager
def running_registry() -> Iterator[RunningRegistry]:
    assert REGISTRY.exists(), f"{REGISTRY} is not there; `make setup-test` builds it."
    process = subprocess.Popen([str(REGISTRY), "-port", "0"], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        said = process.stderr.readline()
        port = re.search(r"serving on (?:port )?(?:.*:)?(\d+)", said)
        assert port is not None, said
        yield RunningRegistry(f"127.0.0.1:{port[1]}")
    finally:
        process.kill()
        process.communicate()
