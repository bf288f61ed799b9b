"""Directories in a guest's files for what is mounted there."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from hutch.errors import BadRequestError


def make_mount_point(root: Path, path: str) -> None:
    """Make `path` a directory below `root`, with those above it. A former session may have left anything there: no link is
    followed, not even one that stays inside. Raises `BadRequestError` where something else is in the way."""
    at = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in path.strip("/").split("/"):
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, dir_fd=at)
                # Whatever our umask is.
                os.chmod(part, 0o755, dir_fd=at)  # noqa: S103 - as every directory that the guest may look into
            try:
                below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            except OSError as error:
                raise BadRequestError(
                    "invalid_mount_path",
                    f"Nothing can be mounted at '{path}': '{part}' is no directory in the sandbox's files, and links are not "
                    "followed.",
                ) from error
            os.close(at)
            at = below
    finally:
        os.close(at)
