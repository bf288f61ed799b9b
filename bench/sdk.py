"""The requests that the vendor's JavaScript SDK makes, in its order and with its bodies."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from bench.http import Http, HttpError
from hutch.client import Server


@dataclass(frozen=True, slots=True)
class Sandbox:
    name: str
    session_id: str


class Sdk:
    def __init__(self, server: Server) -> None:
        self._http = Http(server.url, server.token)
        self._team, self._project = server.team_id, server.project_id

    async def create(self, vcpus: int = 2, snapshot: str | None = None) -> Sandbox:
        body: dict[str, Any] = {
            "projectId": self._project,
            "ports": [],
            "timeout": 600_000,
            "resources": {"vcpus": vcpus, "memory": vcpus * 2048},
            "persistent": False,
        }
        if snapshot is not None:
            body["source"] = {"type": "snapshot", "snapshotId": snapshot}
        answer = await self._http.request("POST", f"/api/v3/sandboxes?teamId={self._team}", msgspec.json.encode(body))
        return _sandbox(msgspec.json.decode(answer))

    async def snapshot(self, sandbox: Sandbox, *, keep_running: bool = False, memory: bool = False) -> dict[str, Any]:
        body = msgspec.json.encode({"keepRunning": keep_running, "memory": memory})
        answer = await self._http.request("POST", f"{self._session(sandbox)}/snapshot?teamId={self._team}", body)
        return dict(msgspec.json.decode(answer)["snapshot"])

    async def shown_snapshot(self, snapshot_id: str) -> dict[str, Any]:
        answer = await self._http.request("GET", f"/api/v2/sandboxes/snapshots/{snapshot_id}?teamId={self._team}")
        return dict(msgspec.json.decode(answer)["snapshot"])

    async def fork(self, sandbox: Sandbox, count: int, *, memory: bool = False) -> list[Sandbox]:
        """Hutch's own: several at once, with memory or from the current snapshot."""
        path = f"/api/v2/sandboxes/{sandbox.name}/fork?teamId={self._team}&projectId={self._project}"
        body = msgspec.json.encode({"count": count, "memory": memory, "persistent": False})
        return [_sandbox(fork) for fork in msgspec.json.decode(await self._http.request("POST", path, body))["forks"]]

    async def run(self, sandbox: Sandbox, argv: Sequence[str], *, sudo: bool = False) -> tuple[int, str]:
        """A waited command: exit code and standard output."""
        out: list[str] = []
        code: int | None = None
        raw = b"".join([chunk async for chunk in self.output(sandbox, argv, sudo=sudo)])
        for line in raw.splitlines():
            record: dict[str, Any] = msgspec.json.decode(line)
            if record.get("stream") == "stdout":
                out.append(record["data"])
            elif "command" in record:
                code = record["command"]["exitCode"]
        if code is None:
            raise HttpError("the stream ended without an exit code")
        return code, "".join(out)

    def output(self, sandbox: Sandbox, argv: Sequence[str], *, sudo: bool = False) -> AsyncIterator[bytes]:
        """The raw NDJSON of a waited command."""
        body = {"command": argv[0], "args": list(argv[1:]), "env": {}, "sudo": sudo, "wait": True, "logs": True}
        return self._http.stream("POST", f"{self._session(sandbox)}/cmd?teamId={self._team}", msgspec.json.encode(body))

    async def put(self, sandbox: Sandbox, archive: AsyncIterable[bytes], cwd: str) -> None:
        path = f"{self._session(sandbox)}/fs/write?teamId={self._team}"
        async for _ in self._http.stream("POST", path, archive, content_type="application/x-tar", extra=f"X-Cwd: {cwd}\r\n"):
            pass

    async def get(self, sandbox: Sandbox, path: str) -> int:
        """Read a file and throw it away; its size."""
        total = 0
        url = f"{self._session(sandbox)}/fs/read?teamId={self._team}"
        async for chunk in self._http.stream("POST", url, msgspec.json.encode({"path": path})):
            total += len(chunk)
        return total

    async def show(self, sandbox: Sandbox) -> bytes:
        return await self._http.request("GET", f"/api/v2/sandboxes/{sandbox.name}?teamId={self._team}&projectId={self._project}")

    async def pooled(self) -> int:
        """Machines that wait in the server's pools now."""
        lines = (await self._http.request("GET", "/metrics")).decode().splitlines()
        return next((int(float(line.split()[1])) for line in lines if line.startswith("hutch_host_pooled ")), 0)

    async def delete(self, sandbox: Sandbox) -> None:
        await self._http.request("DELETE", f"/api/v2/sandboxes/{sandbox.name}?teamId={self._team}&projectId={self._project}")

    async def close(self) -> None:
        await self._http.close()

    @staticmethod
    def _session(sandbox: Sandbox) -> str:
        return f"/api/v2/sandboxes/sessions/{sandbox.session_id}"


def _sandbox(created: dict[str, Any]) -> Sandbox:
    return Sandbox(created["sandbox"]["name"], created["session"]["id"])
