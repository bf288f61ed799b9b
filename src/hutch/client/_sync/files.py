# Written by scripts/write_sync_client.py from `_async/files.py`; change that one.
"""Files: archives in, bytes out."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from typing import Any

from hutch.client import paths
from hutch.client._sync.transport import Http
from hutch.client.archives import packed

TRANSFER_TIMEOUT_S = 300.0
"""How long nothing may come or go."""


class Files:
    def __init__(self, http: Http) -> None:
        self._http = http

    def write_archive(
        self, session_id: str, archive: Iterable[bytes] | bytes, *, cwd: str = "/", gzip: bool = False, sudo: bool = False
    ) -> None:
        """Unpack a tar archive below the absolute guest path `cwd`, with `sudo` as root. Regular files and directories only, or
        nothing is written."""
        content_type = b"application/gzip" if gzip else b"application/x-tar"
        headers = [(b"content-type", content_type), (b"x-cwd", cwd.encode())]
        if sudo:
            headers.append((b"x-hutch-sudo", b"true"))
        path = f"{paths.session(session_id)}/fs/write"
        with self._http.open("POST", path, content=archive, headers=headers, timeout_s=TRANSFER_TIMEOUT_S, safe=True) as response:
            response.read()

    def put(self, session_id: str, files: Mapping[str, bytes], *, cwd: str = "/", mode: int = 0o644) -> None:
        """Write whole files; names are relative to `cwd`, parents are made."""
        self.write_archive(session_id, packed(files, mode), cwd=cwd)

    def read(self, session_id: str, path: str, *, cwd: str | None = None) -> Generator[bytes, None, None]:
        """The bytes of a file. Raises `NotFoundError`; breaks off with `UnavailableError` rather than end early."""
        body: dict[str, Any] = {"path": path}
        if cwd is not None:
            body["cwd"] = cwd
        url = f"{paths.session(session_id)}/fs/read"
        with self._http.open("POST", url, body=body, timeout_s=TRANSFER_TIMEOUT_S, safe=True) as response:
            for chunk in response.iter_bytes():
                yield chunk

    def get(self, session_id: str, path: str, *, cwd: str | None = None) -> bytes:
        return b"".join([chunk for chunk in self.read(session_id, path, cwd=cwd)])

    def mkdir(self, session_id: str, path: str, *, recursive: bool = False, sudo: bool = False) -> None:
        url = f"{paths.session(session_id)}/fs/mkdir"
        self._http.call("POST", url, dict[str, Any], body={"path": path, "recursive": recursive, "sudo": sudo}, safe=recursive)
