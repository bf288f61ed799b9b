"""Files: archives in, bytes out."""

from __future__ import annotations

import io
import tarfile
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping
from typing import Any

from hutch.client.transport import Http


class Files:
    def __init__(self, http: Http) -> None:
        self._http = http

    async def write_archive(
        self, session_id: str, archive: AsyncIterable[bytes], *, cwd: str = "/", gzip: bool = False, sudo: bool = False
    ) -> None:
        """Unpack a tar archive below the absolute guest path `cwd`, with `sudo` as root. Regular files and directories only, or
        nothing is written."""
        content_type = b"application/gzip" if gzip else b"application/x-tar"
        headers = [(b"content-type", content_type), (b"x-cwd", cwd.encode())]
        if sudo:
            headers.append((b"x-hutch-sudo", b"true"))
        path = f"/v2/sandboxes/sessions/{session_id}/fs/write"
        async with self._http.open("POST", path, content=archive, headers=headers, timeout_s=300.0) as response:
            await response.aread()

    async def put(self, session_id: str, files: Mapping[str, bytes], *, cwd: str = "/") -> None:
        """Write whole files; names are relative to `cwd`, parents are made."""
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for name, content in files.items():
                entry = tarfile.TarInfo(name.lstrip("/"))
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
        await self.write_archive(session_id, _once(archive.getvalue()), cwd=cwd)

    async def read(self, session_id: str, path: str, *, cwd: str | None = None) -> AsyncGenerator[bytes, None]:
        """The bytes of a file. Raises `NotFoundError`; breaks off with `UnavailableError` rather than end early."""
        body: dict[str, Any] = {"path": path}
        if cwd is not None:
            body["cwd"] = cwd
        url = f"/v2/sandboxes/sessions/{session_id}/fs/read"
        async with self._http.open("POST", url, body=body, timeout_s=300.0) as response:
            async for chunk in response.aiter_bytes():
                yield chunk

    async def get(self, session_id: str, path: str, *, cwd: str | None = None) -> bytes:
        return b"".join([chunk async for chunk in self.read(session_id, path, cwd=cwd)])

    async def mkdir(self, session_id: str, path: str, *, recursive: bool = False, sudo: bool = False) -> None:
        url = f"/v2/sandboxes/sessions/{session_id}/fs/mkdir"
        await self._http.call("POST", url, dict[str, Any], body={"path": path, "recursive": recursive, "sudo": sudo})


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content
