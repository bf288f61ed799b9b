"""Sandboxes by name, sessions by id."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from hutch.client import paths
from hutch.client._async.transport import Http
from hutch.client.models import Created, Forked, Page, Sandbox, Session, SessionPage, Stopped, Terminal, Updated

STOP_TIMEOUT_S = 120.0
FORK_TIMEOUT_S = 300.0
PAGE = 50


class Sandboxes:
    def __init__(self, http: Http) -> None:
        self._http = http

    async def create(self, **fields: Any) -> Created:
        """A new sandbox. `fields` are those of the API's body (`name`, `image`, `runtime`, `timeout` in ms, `resources`, `env`,
        `tags`, `ports`, `persistent`, `disk_bytes`, `isolation`, `networkPolicy`, `source`, `mounts`); None is left out."""
        body = {key: value for key, value in fields.items() if value is not None}
        if self._http.server.project_id:
            body.setdefault("projectId", self._http.server.project_id)
        version = "v2" if "runtime" in body else "v3"
        return await self._http.call("POST", f"/{version}/sandboxes", Created, body=body, timeout_s=120.0)

    async def fork(
        self, name: str, fork_name: str | None = None, *, memory: bool = False, count: int = 1, **fields: Any
    ) -> list[Created]:
        """New sandboxes with another's configuration, from its current snapshot or, with `memory`, where its session is.
        `fields` as in `create`."""
        given = {"name": fork_name, "memory": memory, "count": count, **fields}
        body = {key: value for key, value in given.items() if value is not None}
        query = self._http.project()
        forked = await self._http.call(
            "POST", f"{paths.sandbox(name)}/fork", Forked, body=body, query=query, timeout_s=FORK_TIMEOUT_S
        )
        return forked.forks

    async def get(self, name: str) -> Created:
        return await self._http.call("GET", paths.sandbox(name), Created, query=self._http.project())

    async def resume(self, name: str) -> Created:
        """A sandbox and its session: a new one, with the files of its current snapshot, if none is alive."""
        query = {**self._http.project(), "resume": "true"}
        return await self._http.call("GET", paths.sandbox(name), Created, query=query, timeout_s=STOP_TIMEOUT_S)

    async def woken(self, name: str) -> Created:
        """A sandbox and its session, resumed if it stopped and there is something to go on from."""
        found = await self.get(name)
        if found.sandbox.status == "running" or found.sandbox.current_snapshot_id is None:
            return found
        return await self.resume(name)

    async def all(self, **query: str) -> AsyncGenerator[Sandbox, None]:
        """Every sandbox of the project, newest first unless `query` (as the API has it) says otherwise."""
        query = {"limit": str(PAGE), **query}
        if self._http.server.project_id:
            query["project"] = self._http.server.project_id
        async for page in self._http.pages(paths.SANDBOXES, Page, query):
            for sandbox in page.sandboxes:
                yield sandbox

    async def update(self, name: str, **fields: Any) -> Updated:
        """Change a sandbox's configuration: fields of the API's body, where None means null (which clears some of them). Ports
        and tags change at once, the rest with the next session."""
        return await self._http.call("PATCH", paths.sandbox(name), Updated, body=fields, query=self._http.project(), safe=True)

    async def sessions(self, name: str | None = None, **query: str) -> AsyncGenerator[Session, None]:
        """Every session of the project, or of one sandbox, newest first. `query` as the API has it."""
        query = {"limit": str(PAGE), **query}
        if name is not None:
            query["name"] = name
        if self._http.server.project_id:
            query["project"] = self._http.server.project_id
        async for page in self._http.pages(paths.SESSIONS, SessionPage, query):
            for session in page.sessions:
                yield session

    async def delete(self, name: str, *, orphan_snapshots: bool = False) -> None:
        """Stop the sandbox if it runs, and forget it; with `orphan_snapshots` also its snapshots that no other sandbox uses."""
        query = self._http.project() | ({"deleteOrphanSnapshots": "true"} if orphan_snapshots else {})
        await self._http.call("DELETE", paths.sandbox(name), dict[str, Any], query=query, timeout_s=STOP_TIMEOUT_S)

    async def stop(self, session_id: str) -> Session:
        """Stop a session; its usage is in the answer."""
        path = f"{paths.session(session_id)}/stop"
        return (await self._http.call("POST", path, Stopped, body={}, timeout_s=STOP_TIMEOUT_S, safe=True)).session

    async def session(self, session_id: str) -> Session:
        return (await self._http.call("GET", paths.session(session_id), Stopped)).session

    async def extend(self, session_id: str, duration_ms: int) -> Session:
        """Let a session live `duration_ms` longer."""
        path = f"{paths.session(session_id)}/extend-timeout"
        return (await self._http.call("POST", path, Stopped, body={"duration": duration_ms})).session

    async def set_network_policy(self, session_id: str, policy: object, *, generation: int | None = None) -> Session:
        """Replace a session's network policy; answers when it is enforced. With `generation` only if the old one has it."""
        path = f"{paths.session(session_id)}/network-policy"
        headers = [(b"if-match", str(generation).encode())] if generation is not None else []
        return (await self._http.call("POST", path, Stopped, body=policy, headers=headers, safe=generation is None)).session

    async def terminal(self, session_id: str) -> Terminal:
        """Permission to open one terminal."""
        return await self._http.call("POST", f"{paths.session(session_id)}/interactive", Terminal, body={})
