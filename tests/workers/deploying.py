"""Workers that tests deploy by the requests that `ntn` makes, so that an archive may be anything."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import dataclass
from typing import Any

import httpx

PACKAGE = {
    "name": "worker",
    "private": True,
    "type": "commonjs",
    "scripts": {"build": "mkdir -p dist && cp index.js dist/index.js"},
}
"""Without dependencies: nothing is fetched."""
SDK = {"dependencies": {"@notionhq/workers": "0.9.2"}}


def packed(files: dict[str, str]) -> bytes:
    """An archive of these files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text.encode()), 0o644
            archive.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()


def program(source: str, **package: Any) -> bytes:
    """An archive with one file of source."""
    return packed({"package.json": json.dumps(PACKAGE | package), "index.js": source})


def declaring(manifest: object, run: str = "return null;", before: str = "") -> str:
    """Source of a worker without the SDK: its manifest as it is given, and the body of `run(key, context)`.

    It has `say(value)`, which writes an envelope with a value. `before` is run when the worker is loaded."""
    return f"""
const envelope = (value) => "\\n<__notion_output__>" + JSON.stringify({{_tag: "success", value}}) + "</__notion_output__>\\n";
const say = (value) => new Promise((done) => process.stdout.write(envelope(value), done));
{before}
const manifest = {json.dumps(manifest)};
module.exports = {{ manifest, run: async (key, context) => {{ {run} }} }};
"""


def tools(*keys: str) -> dict[str, Any]:
    """A manifest of tools that take anything."""
    schema = {"type": "object", "properties": {}, "required": [], "additionalProperties": True}
    config = {"title": "t", "description": "d", "schema": schema}
    return {"sdkVersion": "0.9.2", "capabilities": [{"_tag": "tool", "key": key, "config": config} for key in keys]}


@dataclass(frozen=True, slots=True)
class Built:
    """What a deployment came to: `ok`, what the build wrote, and the answer of reading the manifest if it got so far."""

    ok: bool
    log: str
    manifest: httpx.Response | None

    @property
    def words(self) -> str:
        """All that somebody who deploys is told."""
        return self.log + ("" if self.manifest is None else self.manifest.text)


@dataclass(frozen=True, slots=True)
class Deployer:
    """One worker. `http` has a token and the address of a server."""

    http: httpx.Client
    worker: str

    @classmethod
    def create(cls, http: httpx.Client, name: str) -> Deployer:
        made = http.post("/api/v3/workersCreateWorker", json={"name": name, "uploadType": "source"}).raise_for_status()
        return cls(http, made.json()["worker"]["workerId"])

    def call(self, endpoint: str, **body: Any) -> httpx.Response:
        return self.http.post(f"/api/v3/workers{endpoint}", json={"workerId": self.worker, **body})

    def upload(self, archive: bytes) -> httpx.Response:
        where = self.call("UpdateWorker", uploadType="source").raise_for_status().json()
        return httpx.post(where["url"], data=where["fields"], files={"file": ("archive.tar.gz", archive)}, timeout=60)

    def deploy(self, archive: bytes) -> Built:
        self.upload(archive).raise_for_status()
        records = [json.loads(line) for line in self.call("BuildWorker", stream=True).text.splitlines() if line]
        log = "\n".join(str(record.get("error") or record.get("event", {}).get("data", "")) for record in records)
        if records[-1] != {"_tag": "result", "result": {"ok": True}}:
            return Built(False, log, None)
        fetched = self.call("FetchAndSaveCapabilities")
        return Built(fetched.is_success, log, fetched)

    def deployed(self, archive: bytes) -> None:
        built = self.deploy(archive)
        assert built.ok, built.words

    def run(self, key: str, args: object = None) -> httpx.Response:
        return self.call("RunCapability", capabilityKey=key, args=args, stream=False)

    def value(self, key: str, args: object = None) -> Any:
        answer = self.run(key, args)
        assert answer.is_success, answer.text
        return answer.json()["result"]

    def secret(self, **secrets: str) -> None:
        pairs = [{"key": key, "value": value} for key, value in secrets.items()]
        self.call("UpsertSecrets", secrets=pairs).raise_for_status()

    def get(self, rest: str = "", **query: Any) -> Any:
        return self.http.get(f"/api/hutch/v1/workers/{self.worker}{rest}", params=query).raise_for_status().json()

    def last_run(self) -> dict[str, Any]:
        newest = self.get("/runs", limit=1)["runs"][0]
        found: dict[str, Any] = self.get(f"/runs/{newest['id']}")["run"]
        return found
