"""Sandboxes by name, sessions by id."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

from hutch.client.models import Created, Forked, Page, Sandbox, Session, Stopped, Terminal
from hutch.client.transport import Http
from hutch.control.names import is_name
from hutch.errors import NotFoundError

STOP_TIMEOUT_S = 120.0
FORK_TIMEOUT_S = 300.0
PAGE = 50


class Sandboxes:
    def __init__(self, http: Http) -> None:
        self._http = http

    async def create(self, **fields: Any) -> Created:
        """A new sandbox. `fields` are those of the API's body (`name`, `image`, `runtime`, `timeout` in ms, `resources`, `env`,
        `tags`, `ports`, `persistent`, `disk_bytes`, `networkPolicy`, `source`, `mounts`); None is left out."""
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
        forked = await self._http.call("POST", f"{_path(name)}/fork", Forked, body=body, query=query, timeout_s=FORK_TIMEOUT_S)
        return forked.forks

    async def get(self, name: str) -> Created:
        return await self._http.call("GET", _path(name), Created, query=self._http.project())

    async def resume(self, name: str) -> Created:
        """A sandbox and its session: a new one, with the files of its current snapshot, if none is alive."""
        query = {**self._http.project(), "resume": "true"}
        return await self._http.call("GET", _path(name), Created, query=query, timeout_s=STOP_TIMEOUT_S)

    async def woken(self, name: str) -> Created:
        """A sandbox and its session, resumed if it stopped and there is something to go on from."""
        found = await self.get(name)
        if found.sandbox.status == "running" or found.sandbox.current_snapshot_id is None:
            return found
        return await self.resume(name)

    async def page(self, query: Mapping[str, str], *, cursor: str | None = None, limit: int = PAGE) -> Page:
        """One page of the project's sandboxes; `query` as the API has it."""
        sent = {**query, "limit": str(limit)}
        if cursor is not None:
            sent["cursor"] = cursor
        if self._http.server.project_id:
            sent["project"] = self._http.server.project_id
        return await self._http.call("GET", "/v2/sandboxes", Page, query=sent)

    async def all(self, **query: str) -> AsyncIterator[Sandbox]:
        """Every sandbox of the project, newest first."""
        cursor: str | None = None
        while True:
            page = await self.page(query, cursor=cursor)
            for sandbox in page.sandboxes:
                yield sandbox
            cursor = page.pagination.next
            if cursor is None:
                return

    async def delete(self, name: str) -> None:
        """Stop the sandbox if it runs, and forget it."""
        await self._http.call("DELETE", _path(name), dict[str, Any], query=self._http.project(), timeout_s=STOP_TIMEOUT_S)

    async def stop(self, session_id: str) -> Session:
        """Stop a session; its usage is in the answer."""
        path = f"/v2/sandboxes/sessions/{session_id}/stop"
        return (await self._http.call("POST", path, Stopped, body={}, timeout_s=STOP_TIMEOUT_S)).session

    async def session(self, session_id: str) -> Session:
        return (await self._http.call("GET", f"/v2/sandboxes/sessions/{session_id}", Stopped)).session

    async def extend(self, session_id: str, duration_ms: int) -> Session:
        """Let a session live `duration_ms` longer."""
        path = f"/v2/sandboxes/sessions/{session_id}/extend-timeout"
        return (await self._http.call("POST", path, Stopped, body={"duration": duration_ms})).session

    async def set_network_policy(self, session_id: str, policy: object, *, generation: int | None = None) -> Session:
        """Replace a session's network policy; answers when it is enforced. With `generation` only if the old one has it."""
        path = f"/v2/sandboxes/sessions/{session_id}/network-policy"
        headers = [(b"if-match", str(generation).encode())] if generation is not None else []
        return (await self._http.call("POST", path, Stopped, body=policy, headers=headers)).session

    async def terminal(self, session_id: str) -> Terminal:
        """Permission to open one terminal."""
        return await self._http.call("POST", f"/v2/sandboxes/sessions/{session_id}/interactive", Terminal, body={})


def _path(name: str) -> str:
    """Where a sandbox is. A name that none can have never becomes part of a URL, where `..` or `?` would mean something else."""
    if not is_name(name):
        raise NotFoundError("not_found", f"Named sandbox '{name[:256]}' not found for this project.")
    return f"/v2/sandboxes/{name}"
