"""Streams → tree. Every entry is made anew in a directory that nobody else uses; one that is there already is damage."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from hutch.blobs.manifest import CHUNK_BYTES, MAX_TARGET_BYTES, Damaged, Entry, Kind, extents_of
from hutch.blobs.pack import CREATE, OPAQUE, OPEN_DIRECTORY

LINKS = ".links"
"""Beside the tree while it is made: things with several names, each under its number."""
_SPECIAL = {
    Kind.FIFO: stat.S_IFIFO,
    Kind.SOCKET: stat.S_IFSOCK,
    Kind.CHARACTER_DEVICE: stat.S_IFCHR,
    Kind.BLOCK_DEVICE: stat.S_IFBLK,
}


class Data:
    """The data stream, piece by piece as files want it."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._now = memoryview(b"")

    def take(self, most: int) -> memoryview:
        """At least one byte, at most so many. Raises `Damaged` at the end."""
        if not self._now:
            chunk = next(self._chunks, None)
            if chunk is None:
                raise Damaged("the data ends before the files do")
            self._now = memoryview(chunk)
        taken, self._now = self._now[:most], self._now[most:]
        return taken

    def finish(self) -> None:
        """Raises `Damaged` when anything is left."""
        if self._now or next(self._chunks, None) is not None:
            raise Damaged("there is more data than the files have")


def unpack(entries: Iterable[Entry], data: Iterable[bytes], tree: Path) -> None:
    """Make `tree`, which is not there yet. Raises `Damaged` and `OSError`; what was made by then is for the caller to remove."""
    with TreeWriter(tree) as writer:
        contents = Data(data)
        for entry in entries:
            if entry.kind is Kind.FILE:
                writer.file(entry, contents.take)
            else:
                writer.add(entry)
        contents.finish()


class TreeWriter:
    """Makes a tree in the order of its entries: the root first, `UP` at the end of every directory."""

    def __init__(self, tree: Path) -> None:
        self._tree = tree
        self._links_path = tree.parent / LINKS
        self._above: list[Entry] = []
        self._here = self._links = -1
        self._names_left: list[int] = []
        self._done = False

    def __enter__(self) -> TreeWriter:
        self._links_path.mkdir(mode=0o700)
        self._links = os.open(self._links_path, OPEN_DIRECTORY)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for fd in (self._here, self._links):
            if fd >= 0:
                os.close(fd)
        for left in self._links_path.iterdir():
            left.unlink()
        self._links_path.rmdir()
        if kind is None and not self._done:
            raise Damaged("the tree has no end")

    def add(self, entry: Entry) -> None:
        """Anything but a file. Raises `Damaged` for what can't be here."""
        if self._done:
            raise Damaged("there is something behind the end of the tree")
        if not self._above:
            self._root(entry)
            return
        if entry.kind is Kind.UP:
            self._up()
            return
        with self._fresh(entry):
            if entry.kind is Kind.DIRECTORY:
                self._down(entry)
            elif entry.kind is Kind.WHITEOUT:
                os.mknod(entry.name, stat.S_IFCHR, 0, dir_fd=self._here)
            elif entry.kind is Kind.LINK:
                self._link(entry)
            elif entry.kind is Kind.SYMLINK:
                self._symlink(entry)
            elif entry.kind in _SPECIAL:
                os.mknod(entry.name, _SPECIAL[entry.kind] | 0o600, entry.device, dir_fd=self._here)
                self._finish(entry)
            else:
                raise Damaged(f"{entry.name!r} is a file without contents")

    def file(self, entry: Entry, take: Callable[[int], bytes | memoryview]) -> None:
        """A file, with its data from `take`."""
        if not self._above or self._done:
            raise Damaged("a file is outside the tree")
        extents = extents_of(entry)
        with self._fresh(entry):
            fd = os.open(entry.name, CREATE, 0o600, dir_fd=self._here)
        try:
            for offset, length in extents:
                at, end = offset, offset + length
                while at < end:
                    at += os.pwrite(fd, take(min(CHUNK_BYTES, end - at)), at)
            if entry.extents is not None:
                os.ftruncate(fd, entry.size)
            _own(fd, entry)
        finally:
            os.close(fd)
        self._remember(entry)

    @contextlib.contextmanager
    def _fresh(self, entry: Entry) -> Iterator[None]:
        if not entry.name:
            raise Damaged("an entry has no name")
        try:
            yield
        except FileExistsError as error:
            raise Damaged(f"{entry.name!r} is there twice") from error

    def _root(self, entry: Entry) -> None:
        if entry.kind is not Kind.DIRECTORY or entry.name:
            raise Damaged("the tree does not begin with its root")
        self._tree.mkdir(mode=0o700)
        self._here = os.open(self._tree, OPEN_DIRECTORY)
        self._above.append(entry)

    def _down(self, entry: Entry) -> None:
        os.mkdir(entry.name, 0o700, dir_fd=self._here)
        below = os.open(entry.name, OPEN_DIRECTORY, dir_fd=self._here)
        os.close(self._here)
        self._here = below
        self._above.append(entry)

    def _up(self) -> None:
        # Now, because what was made in it has changed its time.
        entry = self._above.pop()
        if entry.opaque:
            os.setxattr(self._here, OPAQUE, b"y")
        _own(self._here, entry)
        if not self._above:
            self._done = True
            return
        above = os.open("..", OPEN_DIRECTORY, dir_fd=self._here)
        os.close(self._here)
        self._here = above

    def _symlink(self, entry: Entry) -> None:
        if not 0 < len(entry.target) <= MAX_TARGET_BYTES or b"\0" in entry.target:
            raise Damaged(f"{entry.name!r} has an impossible target")
        os.symlink(entry.target, entry.name, dir_fd=self._here)
        os.chown(entry.name, entry.uid, entry.gid, dir_fd=self._here, follow_symlinks=False)
        self._set_time(entry)
        self._remember(entry)

    def _finish(self, entry: Entry) -> None:
        os.chown(entry.name, entry.uid, entry.gid, dir_fd=self._here, follow_symlinks=False)
        os.chmod(entry.name, entry.mode, dir_fd=self._here)
        self._set_time(entry)
        self._remember(entry)

    def _set_time(self, entry: Entry) -> None:
        os.utime(entry.name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=self._here, follow_symlinks=False)

    def _remember(self, entry: Entry) -> None:
        if entry.names > 1:
            number = len(self._names_left)
            self._names_left.append(entry.names - 1)
            os.link(entry.name, str(number), src_dir_fd=self._here, dst_dir_fd=self._links, follow_symlinks=False)

    def _link(self, entry: Entry) -> None:
        if entry.of >= len(self._names_left) or self._names_left[entry.of] == 0:
            raise Damaged(f"{entry.name!r} is one more name of nothing")
        self._names_left[entry.of] -= 1
        name = str(entry.of)
        os.link(name, entry.name, src_dir_fd=self._links, dst_dir_fd=self._here, follow_symlinks=False)
        if self._names_left[entry.of] == 0:
            os.unlink(name, dir_fd=self._links)


def _own(fd: int, entry: Entry) -> None:
    """Owner, mode, attributes and time of what is open. The owner first: changing it takes set-user-id away."""
    os.fchown(fd, entry.uid, entry.gid)
    os.fchmod(fd, entry.mode)
    for name, value in entry.xattrs:
        os.setxattr(fd, name, value)
    os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
