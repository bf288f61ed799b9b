"""How the API process shuts itself in and gives up root.

It moves into a mount namespace with a root of its own, which holds the system's libraries, the Python installation and this
package (read-only), the directories `control/`, `run/` and the images, and nothing else: no home directories, no sandboxes'
files, no mounts of the host that it would keep busy. Then it becomes the API's user, without capabilities and unable to regain
any.

That the files are shown at fixed places also means that it does not matter whether the API's user may pass through the
directories above them: a data directory below `/root` or in a private temporary directory works.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from sqlalchemy.engine import make_url

from hutch.errors import BadRequestError, InternalError
from hutch.serving import kernel, layout
from hutch.settings import Settings

DATA_DIR = Path("/data")
IMAGE_DIR = Path("/images")
_SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
LAST_CAPABILITY = kernel.last_capability()
"""Read when this file is imported: the new root has no /proc."""
_READ_ONLY = kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV
_DATA = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC


@dataclass(frozen=True, slots=True)
class Shown:
    """A directory or file outside that is at `target` inside, mounted with `flags`."""

    source: Path
    target: Path
    flags: int


def confine(settings: Settings) -> Settings:
    """Shut this process in; the settings with the paths as it sees them from now on.

    Raises `BadRequestError` or `InternalError`.
    """
    layout.require_root()
    user = layout.api_user(settings)
    parent = os.getppid()
    try:
        kernel.unshare_mounts()
        build_root(layout.root_dir(settings), _shown(settings))
        _become(user.pw_uid, user.pw_gid)
    except OSError as error:
        raise InternalError("confinement_failed", f"The API process can't be shut in: {error.strerror or error}.") from error
    if os.getppid() != parent:
        raise InternalError("confinement_failed", "The supervisor ended while the API process started.")
    server = settings.server.model_copy(update={"data_dir": DATA_DIR})
    image = settings.image.model_copy(update={"dir": IMAGE_DIR})
    inside = settings.model_copy(update={"server": server, "image": image})
    # An upload is written to a temporary file first, and is larger than the new root with its /tmp.
    inside.uploads_dir.mkdir(mode=0o700, exist_ok=True)
    tempfile.tempdir = os.fspath(inside.uploads_dir)
    return inside


def program() -> list[Shown]:
    """What any program of ours needs: the system's libraries, a few devices, the Python installation and this package."""
    shown = [Shown(Path(path), Path(path), _READ_ONLY) for path in _SYSTEM]
    shown += [Shown(Path(path), Path(path), kernel.MS_NOSUID | kernel.MS_NOEXEC) for path in _DEVICES]
    for directory in sorted({sys.prefix, sys.base_prefix, *sys.path}):
        path = Path(directory)
        if path.is_absolute() and path.is_dir() and path != Path("/"):
            shown.append(Shown(path, path, _READ_ONLY))
    return shown


def _shown(settings: Settings) -> list[Shown]:
    """What the process sees, outer directories before inner ones."""
    shown = program()
    resolver = Path("/etc/resolv.conf")
    if resolver.is_symlink() and resolver.exists():
        shown.append(Shown(resolver.resolve(), resolver.resolve(), _READ_ONLY))
    shown += [
        Shown(settings.control_dir, DATA_DIR / "control", _DATA),
        Shown(settings.run_dir, DATA_DIR / "run", _DATA),
        Shown(settings.image_dir(), IMAGE_DIR, _READ_ONLY | kernel.MS_NOEXEC),
    ]
    database = _database_dir(settings)
    if database is not None:
        shown.append(Shown(database, database, _DATA))
    return [item for item in shown if item.source.exists()]


def _database_dir(settings: Settings) -> Path | None:
    """The directory of a database that was configured to be elsewhere: of an SQLite file, or of PostgreSQL's socket."""
    if settings.database.url is None:
        return None
    if settings.database.url.startswith("sqlite"):
        path = Path(make_url(settings.database.url).database or "")
        if not path.is_absolute():
            raise BadRequestError(
                "invalid_configuration", "`database.url` must name an SQLite file by its absolute path (sqlite:////PATH)."
            )
        return path.parent
    host = parse_qs(urlsplit(settings.database.url).query).get("host", [""])[0]
    return Path(host) if host.startswith("/") else None


def build_root(root: Path, shown: list[Shown]) -> None:
    """Put the root together on a small tmpfs, and move into it."""
    # The sources are opened first: the tmpfs, or a bind of a directory that contains another source, may cover them.
    opened = [(os.open(item.source, os.O_PATH), item) for item in shown]
    try:
        kernel.mount("tmpfs", root, kernel.MS_NOSUID | kernel.MS_NODEV, "tmpfs", "mode=0755,size=4m")
        (root / "tmp").mkdir(mode=0o1777)
        (root / "tmp").chmod(0o1777)
        covered: list[Path] = []
        for descriptor, item in opened:
            if any(item.target.is_relative_to(path) for path in covered) and item.flags == _READ_ONLY:
                continue
            target = root / item.target.relative_to("/")
            if item.source.is_symlink() and item.source == item.target:
                target.parent.mkdir(parents=True, exist_ok=True)
                if not target.exists() and not target.is_symlink():
                    target.symlink_to(item.source.readlink())
                continue
            _make_target(target, is_dir=item.source.is_dir())
            kernel.bind(Path(f"/proc/self/fd/{descriptor}"), target, item.flags)
            if item.flags == _READ_ONLY:
                covered.append(item.target)
    finally:
        for descriptor, _ in opened:
            os.close(descriptor)
    kernel.pivot_root(root)


def _make_target(target: Path, *, is_dir: bool) -> None:
    if target.exists():
        return
    if is_dir:
        target.mkdir(parents=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()


def _become(uid: int, gid: int) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for capability in range(LAST_CAPABILITY + 1):
        kernel.drop_capability(capability)
    os.setgroups([gid])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    kernel.no_new_privileges()
    kernel.die_with_parent(signal.SIGKILL)
    os.umask(0o077)
