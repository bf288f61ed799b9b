"""The process that unpacks one image, shut in by `hutch.oci.confined`: it reads the layers, writes the tree once and packs it.

    /hutch-image/blobs/N      in: layers, whose digests were checked
    /hutch-image/image.erofs  out

Standard input has a `Request`, standard output gets a `Result` or a `Refusal`, as JSON.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from hutch.errors import HutchError
from hutch.oci import erofs, layers, tar, users
from hutch.oci.documents import invalid
from hutch.oci.layers import Budget, LayerFile
from hutch.oci.tree import Directory, Fifo, File, Meta, Node, Symlink, Tree
from hutch.serving import kernel

INSIDE = Path("/hutch-image")
_FOR_GUESTS = ((b"proc", 0o755), (b"sys", 0o755), (b"dev", 0o755), (b"run", 0o755), (b"etc", 0o755), (b"tmp", 0o1777))
"""Directories that every guest has, as container runtimes make them too."""
_MOUNTED_FILES = (b"resolv.conf", b"hosts")
"""Files of /etc that the host mounts."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """`user` and `cwd` as the image's configuration has them. The disk has room for `room_bytes`, written twice."""

    layers: list[LayerFile]
    user: str
    cwd: str
    max_bytes: int
    room_bytes: int
    max_entries: int


class Result(msgspec.Struct, frozen=True, kw_only=True, tag="unpacked"):
    user: users.User
    dropped_devices: int


class Refusal(msgspec.Struct, frozen=True, kw_only=True, tag="refused"):
    """The error that the host raises."""

    status: int
    code: str
    message: str


def main() -> int:
    kernel.die_with_parent(signal.SIGKILL)
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    answer: Result | Refusal
    try:
        answer = unpack(request, INSIDE)
    except HutchError as error:
        answer = Refusal(status=error.status, code=error.code, message=error.message)
    except (MemoryError, RecursionError):
        refused = invalid("it takes more memory to unpack than an image may take")
        answer = Refusal(status=refused.status, code=refused.code, message=refused.message)
    sys.stdout.buffer.write(msgspec.json.encode(answer))
    return 0


def unpack(request: Request, directory: Path) -> Result:
    """Merge, write and pack. Raises `BadRequestError` (`image_invalid`), `UnavailableError` (`disk_full`); `OSError` where this
    machine fails."""
    os.umask(0)
    tree = layers.merge(request.layers, Budget(request.max_bytes, request.room_bytes), request.max_entries)
    for name, mode in _FOR_GUESTS:
        if tree.find(name) is None and name not in tree.root.children:
            tree.ensure_directory(name, mode)
    etc = tree.find(b"etc")
    if isinstance(etc, Directory):
        for name in _MOUNTED_FILES:
            # A link there would have the host's file mounted over what it leads to.
            if isinstance(etc.children.get(name), Symlink):
                del etc.children[name]
    if not isinstance(tree.find(request.cwd.encode()), Directory):
        tree.ensure_directory(request.cwd.encode())
    contents, trunk = directory / "contents", directory / "tree"
    contents.mkdir(mode=0o700)
    trunk.mkdir(mode=0o700)
    _write_contents(request, tree, contents)
    user = users.find(request.user, _small_file(tree, b"etc/passwd", contents), _small_file(tree, b"etc/group", contents))
    with _opened(os.fspath(trunk).encode()) as descriptor, _opened(os.fspath(contents).encode()) as files:
        _Writer(files).fill(tree.root, descriptor)
        _dress(descriptor, tree.root.meta)
    erofs.pack(trunk, directory / "image.erofs", attributes=False)
    return Result(user=user, dropped_devices=tree.dropped_devices)


def _write_contents(request: Request, tree: Tree, contents: Path) -> None:
    """Every file that the tree has, by layer and number."""
    wanted = {(node.layer, node.number) for node in tree.nodes() if isinstance(node, File)}

    def write(layer: int, entry: tar.Entry, reader: tar.Reader) -> None:
        if (layer, entry.number) in wanted:
            with (contents / f"{layer}-{entry.number}").open("xb") as file:
                for data in reader.content():
                    file.write(data)

    layers.read(request.layers, Budget(request.max_bytes), write)


def _small_file(tree: Tree, path: bytes, contents: Path) -> bytes:
    node = tree.find(path)
    if not isinstance(node, File):
        return b""
    with (contents / f"{node.layer}-{node.number}").open("rb") as file:
        return file.read(users.MAX_BYTES)


class _Writer:
    """Writes a tree into an empty directory; `files` is a descriptor of the directory with the contents."""

    def __init__(self, files: int) -> None:
        self._files = files
        self._kept_as: dict[Node, bytes] = {}

    def fill(self, directory: Directory, descriptor: int) -> None:
        """Every name below `directory`. What is opened was made here, and never a link."""
        for name, node in directory.children.items():
            if isinstance(node, Directory):
                os.mkdir(name, 0o700, dir_fd=descriptor)
                with _opened(name, descriptor) as below:
                    self.fill(node, below)
                    _dress(below, node.meta)
            else:
                self._place(node, name, descriptor)

    def _place(self, node: File | Symlink | Fifo, name: bytes, descriptor: int) -> None:
        """A file under one of its names. All names are links to one that stays among the contents until everything is written."""
        kept = self._kept(node)
        os.link(kept, name, src_dir_fd=self._files, dst_dir_fd=descriptor, follow_symlinks=False)

    def _kept(self, node: File | Symlink | Fifo) -> bytes:
        if node in self._kept_as:
            return self._kept_as[node]
        if isinstance(node, File):
            kept = f"{node.layer}-{node.number}".encode()
        else:
            kept = f"special-{len(self._kept_as)}".encode()
            if isinstance(node, Symlink):
                os.symlink(node.target, kept, dir_fd=self._files)
            else:
                os.mkfifo(kept, 0o600, dir_fd=self._files)
        meta = node.meta
        os.chown(kept, meta.uid, meta.gid, dir_fd=self._files, follow_symlinks=False)
        if not isinstance(node, Symlink):
            # After the owner: giving a file away takes its setuid bit.
            os.chmod(kept, meta.mode, dir_fd=self._files)
        os.utime(kept, (meta.mtime, meta.mtime), dir_fd=self._files, follow_symlinks=False)
        self._kept_as[node] = kept
        return kept


def _dress(descriptor: int, meta: Meta) -> None:
    """Owner, mode and time of a directory, when everything in it is there."""
    os.fchown(descriptor, meta.uid, meta.gid)
    os.fchmod(descriptor, meta.mode)
    os.utime(descriptor, (meta.mtime, meta.mtime))


@contextlib.contextmanager
def _opened(name: bytes, directory: int | None = None) -> Iterator[int]:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, dir_fd=directory)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main())
