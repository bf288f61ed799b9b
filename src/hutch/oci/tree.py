"""Layers of an image, merged in memory into one tree of names.

What an entry's path leads through is looked up in the tree and nowhere else: a symbolic link of an earlier layer, absolute or
with `..`, leads to another place in the tree, as it would in a running container. A file's content stays in its layer: `File`
says which entry of which layer has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from hutch.oci import tar
from hutch.oci.documents import invalid

MAX_PATH_BYTES = 4095
MAX_NAME_BYTES = 255
MAX_DEPTH = 256
MAX_LINKS = 40
"""As many symbolic links as Linux follows in one path."""
_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"


@dataclass(slots=True, eq=False)
class Meta:
    """Owner, mode (twelve bits) and time of a file."""

    mode: int
    uid: int
    gid: int
    mtime: int


@dataclass(slots=True, eq=False)
class File:
    """A regular file: entry `number` of layer `layer`. Names that are hard links share one."""

    meta: Meta
    layer: int
    number: int
    size: int


@dataclass(slots=True, eq=False)
class Symlink:
    meta: Meta
    target: bytes


@dataclass(slots=True, eq=False)
class Fifo:
    meta: Meta


@dataclass(slots=True, eq=False)
class Directory:
    """`touched` has, for each name, the layer that put it there or something below it last."""

    meta: Meta
    children: dict[bytes, Node] = field(default_factory=dict)
    touched: dict[bytes, int] = field(default_factory=dict)


Node: TypeAlias = File | Symlink | Fifo | Directory


def _new_directory(mode: int = 0o755) -> Directory:
    return Directory(Meta(mode, 0, 0, 0))


class Tree:
    """At most `max_entries` names are ever put into it, those that it loses again included."""

    def __init__(self, max_entries: int) -> None:
        self.root = _new_directory()
        self.dropped_devices = 0
        self._max_entries = max_entries
        self._entries = 0

    def _count(self) -> None:
        self._entries += 1
        if self._entries > self._max_entries:
            raise invalid(f"it has more than {self._max_entries} entries (image.max_entries)")

    def apply(self, layer: int, entry: tar.Entry) -> None:
        """Add what entry `entry` of layer `layer` says. Raises `BadRequestError` (`image_invalid`)."""
        self._count()
        parts = split(entry.name)
        if not parts:
            if entry.kind != tar.DIRECTORY:
                raise invalid("a layer replaces the root directory by something else")
            self.root.meta = _meta(entry)
            return
        *above, name = parts
        for part in above:
            if part.startswith(_WHITEOUT + _WHITEOUT):
                # A mark of another file system, which keeps things below it (`.wh..wh.plnk`).
                return
            if part.startswith(_WHITEOUT):
                raise invalid(f"the path {_shown(entry.name)} leads through a whiteout")
        if name.startswith(_WHITEOUT):
            self._whiteout(layer, above, name)
            return
        if entry.kind in (tar.CHARACTER, tar.BLOCK_DEVICE):
            # A guest has a /dev of its own; and to an overlay a device 0:0 would be a whiteout.
            self.dropped_devices += 1
            return
        parent = self._directory(above, layer)
        there = parent.children.get(name)
        node: Node
        if entry.kind == tar.DIRECTORY:
            if isinstance(there, Directory):
                there.meta = _meta(entry)
                parent.touched[name] = layer
                return
            node = Directory(_meta(entry))
        elif entry.kind == tar.LINK:
            node = self._target(entry)
        elif entry.kind == tar.SYMLINK:
            if not 0 < len(entry.link) <= MAX_PATH_BYTES or b"\0" in entry.link:
                raise invalid(f"the symbolic link {_shown(entry.name)} has no target that a link can have")
            node = Symlink(_meta(entry), entry.link)
        elif entry.kind == tar.FIFO:
            node = Fifo(_meta(entry))
        else:
            node = File(_meta(entry), layer, entry.number, entry.size)
        parent.children[name] = node
        parent.touched[name] = layer

    def find(self, path: bytes) -> Node | None:
        """What is at `path`, through symbolic links; None where there is nothing."""
        try:
            return self._walk(split(path, from_link=True), None, follow_last=True)
        except _NothingThereError:
            return None

    def ensure_directory(self, path: bytes, mode: int = 0o755) -> Directory:
        """The directory at `path`, made where there is nothing."""
        parts = split(path)
        made = self._directory(parts, -1)
        if mode != 0o755 and not made.children and made.meta.mode == 0o755:
            made.meta.mode = mode
        return made

    def nodes(self) -> Iterator[Node]:
        """Every node, the root first; hard links come once for each name."""
        waiting: list[Node] = [self.root]
        while waiting:
            node = waiting.pop()
            yield node
            if isinstance(node, Directory):
                waiting.extend(node.children.values())

    # -- looking up --------------------------------------------------------------------------------

    def _directory(self, parts: list[bytes], layer: int) -> Directory:
        found = self._walk(parts, layer, follow_last=True)
        if not isinstance(found, Directory):
            raise invalid(f"{_shown(b'/'.join(parts))} is a directory to one entry and a file to another")
        return found

    def _target(self, entry: tar.Entry) -> Node:
        """What a hard link names: as the tree has it, and never a directory."""
        try:
            found = self._walk(split(entry.link), None, follow_last=False)
        except _NothingThereError:
            found = None
        if found is None or isinstance(found, Directory):
            raise invalid(f"the hard link {_shown(entry.name)} names {_shown(entry.link)}, which is no file of the image")
        return found

    def _walk(self, parts: list[bytes], layer: int | None, *, follow_last: bool) -> Node:
        """The node that `parts` lead to from the root. With a `layer` directories that are missing are made, and all of them
        count as touched by it; without, raises `_NothingThereError`."""
        path: list[tuple[bytes, Directory]] = []
        here: Node = self.root
        waiting = list(reversed(parts))
        links = 0
        while waiting:
            name = waiting.pop()
            if name == b"..":
                # Only from a link's target. Above the root is the root.
                here = path.pop()[1] if path else self.root
                continue
            if not isinstance(here, Directory):
                if layer is None:
                    raise _NothingThereError
                raise invalid(f"{_shown(b'/'.join(parts))} leads through something that is no directory")
            child = here.children.get(name)
            if child is None:
                if layer is None:
                    raise _NothingThereError
                self._count()
                child = here.children[name] = _new_directory()
            if layer is not None and layer >= 0:
                here.touched[name] = layer
            if isinstance(child, Symlink) and (waiting or follow_last):
                links += 1
                if links > MAX_LINKS:
                    raise invalid(f"{_shown(b'/'.join(parts))} leads through more than {MAX_LINKS} symbolic links")
                if child.target.startswith(b"/"):
                    path, here = [], self.root
                waiting.extend(reversed(split(child.target, from_link=True)))
                continue
            path.append((name, here))
            if len(path) > MAX_DEPTH:
                raise invalid(f"directories lie more than {MAX_DEPTH} deep")
            here = child
        return here

    # -- whiteouts ---------------------------------------------------------------------------------

    def _whiteout(self, layer: int, above: list[bytes], name: bytes) -> None:
        try:
            parent = self._walk(above, None, follow_last=True)
        except _NothingThereError:
            return
        if not isinstance(parent, Directory):
            return
        if name == _OPAQUE:
            _forget_below(parent, layer)
        elif not name.startswith(_WHITEOUT + _WHITEOUT):
            hidden = name.removeprefix(_WHITEOUT)
            if hidden in (b"", b".", b".."):
                raise invalid(f"the whiteout {_shown(name)} hides nothing that can be there")
            if hidden in parent.children:
                _forget(parent, hidden, layer)


def _forget_below(directory: Directory, layer: int) -> None:
    """Remove what layers before `layer` put below `directory`; a layer's whiteouts do not hide what is its own."""
    for name in list(directory.children):
        _forget(directory, name, layer)


def _forget(parent: Directory, name: bytes, layer: int) -> None:
    waiting = [(parent, name)]
    while waiting:
        directory, hidden = waiting.pop()
        child = directory.children[hidden]
        if directory.touched.get(hidden, -1) < layer:
            del directory.children[hidden]
        elif isinstance(child, Directory):
            waiting.extend((child, below) for below in child.children)


class _NothingThereError(Exception):
    """A path leads nowhere."""


def split(path: bytes, *, from_link: bool = False) -> list[bytes]:
    """The names of a path, without those that mean nothing; also of an absolute one, whose root is the image's. Raises
    `BadRequestError`: only a link's target may have `..`."""
    if len(path) > MAX_PATH_BYTES:
        raise invalid(f"it has a path of {len(path)} bytes")
    if b"\0" in path:
        raise invalid("it has a path with a NUL byte")
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if not from_link and b".." in parts:
        raise invalid(f"the path {_shown(path)} leads upwards")
    if any(len(part) > MAX_NAME_BYTES for part in parts):
        raise invalid(f"the path {_shown(path)} has a name of more than {MAX_NAME_BYTES} bytes")
    return parts


def _meta(entry: tar.Entry) -> Meta:
    return Meta(entry.mode, entry.uid, entry.gid, entry.mtime)


def _shown(path: bytes) -> str:
    return repr(path[:200].decode("utf-8", "replace"))
