"""Things that take long to make, kept outside the checkout under a key of what they are made from."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.setup import shell
from scripts.setup.report import SetupError


def root() -> Path:
    """The cache directory: `$HUTCH_CACHE_DIR`, else `~/.cache/hutch`."""
    named = os.environ.get("HUTCH_CACHE_DIR")
    return Path(named).expanduser().absolute() if named else Path.home() / ".cache" / "hutch"


def content_key(*parts: str, files: Iterable[Path] = (), base: Path = shell.CHECKOUT) -> str:
    """20 hex digits of `parts` and of the names (relative to `base`), modes and bytes of `files`."""
    digest = hashlib.sha256()

    def feed(data: bytes) -> None:
        # With its length before it, so that no two lists of parts look alike.
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)

    for part in parts:
        feed(part.encode())
    for path in sorted(files):
        feed(os.fsencode(path.relative_to(base)))
        feed(b"x" if path.stat().st_mode & 0o100 else b"-")
        feed(path.read_bytes())
    return digest.hexdigest()[:20]


def files_below(directory: Path, keep: Callable[[Path], bool] = lambda _: True) -> list[Path]:
    """Every regular file below `directory` that `keep` accepts, sorted; Python's own leavings aside."""
    found = (path for path in directory.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return sorted(path for path in found if keep(path))


@contextmanager
def building(final: Path) -> Iterator[Path]:
    """A fresh directory that becomes `final` when the block ends well, and disappears when it does not."""
    scratch = root() / "tmp"
    scratch.mkdir(parents=True, exist_ok=True)
    final.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=scratch))
    try:
        # mkdtemp makes it 0700, and the API's user has to read some of what is built.
        made.chmod(0o755)
        yield made
        if final.exists():
            discard(final)
        made.rename(final)
    finally:
        if made.exists():
            discard(made)


def discard(path: Path) -> None:
    """Remove a tree, as root where root made parts of it. Refuses one with a mount below it: that would empty the mount."""
    with open("/proc/self/mountinfo", encoding="utf-8") as mounts:
        points = [line.split(" ")[4] for line in mounts]
    inside = [point for point in points if Path(point) == path or path in Path(point).parents]
    if inside:
        raise SetupError(f"{inside[0]} is still mounted, so {path} can't be removed. Unmount it and run setup again.")
    try:
        shutil.rmtree(path)
    except PermissionError:
        subprocess.run(shell.privileged(["rm", "-rf", "--one-file-system", "--", path]), check=True)


def sweep() -> None:
    """Remove what a killed run left half made. Only with the lock held."""
    scratch = root() / "tmp"
    for path in scratch.iterdir() if scratch.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            discard(path)
        else:
            path.unlink()


def link(place: Path, target: Path) -> bool:
    """Make `place` a symbolic link to `target`, in one step. False where it was one already."""
    if place.is_symlink() and place.readlink() == target:
        return False
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.is_dir() and not place.is_symlink():
        raise SetupError(f"{place} is a directory, where setup wants to put a link. Move it away.")
    beside = place.with_name(f".{place.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)
    beside.symlink_to(target)
    beside.replace(place)
    return True


@contextmanager
def locked(say: Callable[[str], None]) -> Iterator[None]:
    """The only setup that uses this cache directory, waiting for another one to end."""
    root().mkdir(parents=True, exist_ok=True)
    with (root() / "setup.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another setup is running; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
