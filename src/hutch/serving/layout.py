"""Directories below the data directory.

| path | owner | mode | what |
| --- | --- | --- | --- |
| `.` | root | 0711 | |
| `control/` | API user | 0700 | database and keys |
| `host/` | root | 0700 | the host's journal, layers and logs |
| `run/` | root, group of the API user | 2750 | sockets; new ones get the group by the set-group-id bit |
| `run/root/` | root | 0700 | where the API process builds its root, in a mount namespace of its own |
"""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from hutch.errors import BadRequestError
from hutch.settings import Settings


def api_user(settings: Settings) -> pwd.struct_passwd:
    """The user that the API process runs as. Raises `BadRequestError`."""
    name = settings.server.user
    try:
        user = pwd.getpwnam(name)
    except KeyError as error:
        raise BadRequestError(
            "user_missing",
            f"The system user {name!r}, which the API process runs as, does not exist. Run `make setup`, or create it with "
            f"`useradd --system --no-create-home --shell /usr/sbin/nologin {name}`, or name another one in `server.user`.",
        ) from error
    if user.pw_uid == 0 or user.pw_gid == 0:
        raise BadRequestError("user_missing", f"The API process may not run as {name!r}, which is root or in root's group.")
    return user


def require_root() -> None:
    """Raises `BadRequestError` for anybody else: sandboxes need namespaces, mounts and cgroups."""
    if os.geteuid() != 0:
        raise BadRequestError(
            "root_required", "`hutch serve` must be started by root: it makes namespaces, mounts and cgroups. Try `sudo`."
        )


def root_dir(settings: Settings) -> Path:
    return settings.run_dir / "root"


def prepare(settings: Settings) -> None:
    """Make every directory, with its owner and mode. Raises `BadRequestError` when the data directory can't be used."""
    user = api_user(settings)
    try:
        settings.server.data_dir.mkdir(parents=True, exist_ok=True)
        _own(settings.server.data_dir, 0, 0, 0o711)
        for path, uid, gid, mode in (
            (settings.control_dir, user.pw_uid, user.pw_gid, 0o700),
            (settings.host_dir, 0, 0, 0o700),
            (settings.run_dir, 0, user.pw_gid, 0o2750),
            (root_dir(settings), 0, 0, 0o700),
        ):
            path.mkdir(exist_ok=True)
            _own(path, uid, gid, mode)
        # A data directory that was used under another user's name goes with the user who serves it now.
        for path in settings.control_dir.iterdir():
            if path.lstat().st_uid != user.pw_uid:
                os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)
    except OSError as error:
        reason = error.strerror or error
        raise BadRequestError(
            "data_dir_unusable",
            f"The data directory {settings.server.data_dir} can't be used: {reason}. Choose another with --data-dir.",
        ) from error


def _own(path: Path, uid: int, gid: int, mode: int) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        os.fchown(descriptor, uid, gid)
        os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)
