"""Addresses of Unix sockets. The kernel's have at most 107 bytes; a data directory's path may have more."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

MAX_ADDRESS_BYTES = 107


@contextlib.contextmanager
def address(path: Path) -> Iterator[str]:
    """What to bind or connect to for the socket at `path`, for as long as this lasts. Raises `OSError`."""
    if len(os.fsencode(path)) <= MAX_ADDRESS_BYTES:
        # Also because the API process, which is shut in where its paths are short, has no /proc.
        yield os.fspath(path)
        return
    descriptor = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)


def bind_unix(path: Path, mode: int = 0o600) -> socket.socket:
    """A Unix socket bound to `path`, replacing a left-over one. It has its mode before it listens. Raises `OSError`."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with address(path) as short:
            listener.bind(short)
        path.chmod(mode)
    except BaseException:
        listener.close()
        raise
    return listener
