"""A worker's project on its way to the server: which files are its source.

What is installed or built, what version control keeps, and what may have secrets stays where it is.
"""

from __future__ import annotations

import io
import json
import os
import stat
import tarfile
from pathlib import Path
from typing import Any

from hutch.errors import BadRequestError, NotFoundError

STATE = "workers.json"
"""Which worker a directory is; `ntn` reads and writes the same file."""
LEFT = frozenset({".git", "node_modules", ".venv", "dist", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", STATE})
SECRETS = ".env"
"""And what begins with it."""
FORM_BOUNDARY = "hutch-worker-source"


def archive(directory: Path) -> bytes:
    """The source as a gzipped tar archive. Raises `NotFoundError` and `BadRequestError`."""
    if not directory.is_dir():
        raise NotFoundError("no_such_file", f"There is no directory {directory}.")
    content = io.BytesIO()
    try:
        with tarfile.open(fileobj=content, mode="w:gz") as tar:
            for path in _files(directory):
                _add(tar, directory, path)
    except OSError as error:
        raise BadRequestError("not_readable", f"{error.filename} can't be read: {error.strerror}.") from error
    return content.getvalue()


def _files(directory: Path) -> list[Path]:
    found = []
    for here, names, files in os.walk(directory):
        names[:] = sorted(name for name in names if name not in LEFT)
        found += [Path(here) / name for name in sorted(files) if name not in LEFT and not name.startswith(SECRETS)]
    return found


def _add(tar: tarfile.TarFile, directory: Path, path: Path) -> None:
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise BadRequestError("not_copied", f"{path} is no plain file; servers take no other.")
    entry = tarfile.TarInfo(path.relative_to(directory).as_posix())
    entry.mode = 0o755 if status.st_mode & 0o100 else 0o644
    entry.size = status.st_size
    with path.open("rb") as file:
        tar.addfile(entry, file)


def form(content: bytes) -> tuple[bytes, bytes]:
    """An upload's body and its content type."""
    head = (
        f'--{FORM_BOUNDARY}\r\ncontent-disposition: form-data; name="file"; filename="source.tar.gz"\r\n'
        "content-type: application/gzip\r\n\r\n"
    )
    body = head.encode() + content + f"\r\n--{FORM_BOUNDARY}--\r\n".encode()
    return body, f"multipart/form-data; boundary={FORM_BOUNDARY}".encode()


def known(directory: Path) -> str | None:
    """The id of the worker that a directory was deployed as. Raises `BadRequestError` for a file that does not say."""
    path = directory / STATE
    try:
        found: Any = json.loads(path.read_bytes())
        worker_id = found.get("workerId")
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError, OSError) as error:
        raise BadRequestError("not_readable", f"{path} can't be read: {error}. Remove it to deploy a new worker.") from error
    return str(worker_id) if worker_id else None


def remember(directory: Path, worker_id: str, project_id: str) -> None:
    """Say in the directory which worker it is."""
    content = {"version": "1", "environment": "prod", "workspaceId": project_id, "workerId": worker_id}
    (directory / STATE).write_text(json.dumps(content, indent=2) + "\n")
