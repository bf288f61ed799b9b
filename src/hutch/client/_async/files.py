"""Files: archives in, bytes out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Mapping
from typing import Any

from hutch.client import paths
from hutch.client._async.transport import Http
from hutch.client.archives import packed

TRANSFER_TIMEOUT_S = 300.0
"""How long nothing may come or go."""


class Files:
    def __init__(self, http: Http) -> None:
        self._http = http

    async def write_archive(
        self, session_id: str, archive: AsyncIterable[bytes] | bytes, *, cwd: str = "/", gzip: bool = False, sudo: bool = False
    ) -> None:
        """Unpack a tar archive below the absolute guest path `cwd`, with `sudo` as root. Regular files and directories only, or
        nothing is written."""
        content_type = b"application/gzip" if gzip else b"application/x-tar"
        headers = [(b"content-type", content_type), (b"x-cwd", cwd.encode())]
        if sudo:
            headers.append((b"x-hutch-sudo", b"true"))
        path = f"{paths.session(session_id)}/fs/write"
        async with self._http.open(
            "POST", path, content=archive, headers=headers, timeout_s=TRANSFER_TIMEOUT_S, safe=True
        ) as response:
            await response.aread()

    async def put(self, session_id: str, files: Mapping[str, bytes], *, cwd: str = "/", mode: int = 0o644) -> None:
        """Write whole files; names are relative to `cwd`, parents are made."""
        await self.write_archive(session_id, packed(files, mode), cwd=cwd)

    async def read(self, session_id: str, path: str, *, cwd: str | None = None) -> AsyncGenerator[bytes, None]:
        """The bytes of a file. Raises `NotFoundError`; breaks off with `UnavailableError` rather than end early."""
        body: dict[str, Any] = {"path": path}
        if cwd is not None:
            body["cwd"] = cwd
        url = f"{paths.session(session_id)}/fs/read"
        async with self._http.open("POST", url, body=body, timeout_s=TRANSFER_TIMEOUT_S, safe=True) as response:
            async for chunk in response.aiter_bytes():
                yield chunk

    async def get(self, session_id: str, path: str, *, cwd: str | None = None) -> bytes:
        return b"".join([chunk async for chunk in self.read(session_id, path, cwd=cwd)])

    async def mkdir(self, session_id: str, path: str, *, recursive: bool = False, sudo: bool = False) -> None:
        url = f"{paths.session(session_id)}/fs/mkdir"
        await self._http.call(
            "POST", url, dict[str, Any], body={"path": path, "recursive": recursive, "sudo": sudo}, safe=recursive
        )
