"""Trees of the tests' own: made from a description, and read back without the code under test."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

EXAMPLES = 3000 if os.environ.get("HUTCH_CAMPAIGN") == "full" else 60
"""Of random trees."""


@dataclass(frozen=True)
class Node:
    """Something in a directory. `content` is (offset, bytes) pairs in order, `size` what a file is extended to."""

    kind: str
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    content: tuple[tuple[int, bytes], ...] = ()
    size: int = 0
    target: bytes = b""
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    opaque: bool = False
    children: dict[bytes, Node] = field(default_factory=dict)
    links: tuple[bytes, ...] = ()
    """Other names in the same directory."""


NAMES = st.binary(min_size=1, max_size=12).filter(lambda name: not set(name) & {0, 0x2F} and name not in (b".", b".."))
_COMMON: dict[str, Any] = {
    "mode": st.integers(0, 0o7777),
    "uid": st.sampled_from([0, 1000, 12345, 2**31]),
    "gid": st.sampled_from([0, 1000, 54321]),
    "mtime_ns": st.integers(-(10**18), 4 * 10**18),
}
_XATTRS = st.dictionaries(
    st.binary(min_size=1, max_size=8).filter(lambda key: 0 not in key).map(lambda key: b"user." + key),
    st.binary(max_size=40),
    max_size=2,
).map(lambda found: tuple(sorted(found.items())))


@st.composite
def files(draw: st.DrawFn) -> Node:
    pieces, end = [], 0
    for _ in range(draw(st.integers(0, 3))):
        gap = draw(st.sampled_from([0, 0, 1, 4096, 70_000, 3 << 20]))
        piece = draw(st.binary(min_size=1, max_size=30)) * draw(st.sampled_from([1, 1, 500, 90_000]))
        pieces.append((end + gap, piece))
        end += gap + len(piece)
    size = end + draw(st.sampled_from([0, 0, 1, 1 << 20]))
    return Node("file", content=tuple(pieces), size=size, xattrs=draw(_XATTRS), **{k: draw(v) for k, v in _COMMON.items()})


@st.composite
def specials(draw: st.DrawFn) -> Node:
    kind = draw(st.sampled_from(["symlink", "fifo", "socket", "whiteout"]))
    common = {key: draw(value) for key, value in _COMMON.items()}
    target = draw(st.binary(min_size=1, max_size=200).filter(lambda text: 0 not in text))
    return Node(kind, target=target if kind == "symlink" else b"", **common)


@st.composite
def linked(draw: st.DrawFn) -> Node:
    node = draw(st.one_of(files(), specials().filter(lambda found: found.kind != "whiteout")))
    return Node(
        **{**vars(node), "links": tuple(draw(st.lists(st.integers(0, 99).map(lambda n: b"~%d" % n), max_size=3, unique=True)))}
    )


def directories(children: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    return st.builds(
        Node,
        kind=st.just("directory"),
        xattrs=_XATTRS,
        opaque=st.booleans(),
        children=st.dictionaries(NAMES, children, max_size=5),
        **_COMMON,
    )


def trees() -> st.SearchStrategy[Node]:
    """Whole trees, whose root is a directory."""
    return directories(st.recursive(st.one_of(files(), specials(), linked()), directories, max_leaves=10))


def make(node: Node, path: bytes) -> None:
    """Make it at a path that is free."""
    if node.kind == "directory":
        os.mkdir(path, 0o700)
        for name, child in node.children.items():
            make(child, os.path.join(path, name))
        if node.opaque:
            os.setxattr(path, "trusted.overlay.opaque", b"y")
    elif node.kind == "file":
        with open(path, "xb") as file:
            for offset, piece in node.content:
                file.seek(offset)
                file.write(piece)
            file.truncate(node.size)
    elif node.kind == "symlink":
        os.symlink(node.target, path)
    elif node.kind == "whiteout":
        os.mknod(path, stat.S_IFCHR, 0)
        return
    else:
        os.mknod(path, (stat.S_IFIFO if node.kind == "fifo" else stat.S_IFSOCK) | 0o600)
    for name, value in node.xattrs:
        os.setxattr(path, name, value)
    os.chown(path, node.uid, node.gid, follow_symlinks=False)
    if node.kind != "symlink":
        os.chmod(path, node.mode)
    for name in node.links:
        other = os.path.join(os.path.dirname(path), name)
        if not os.path.lexists(other):
            os.link(path, other, follow_symlinks=False)
    os.utime(path, ns=(node.mtime_ns, node.mtime_ns), follow_symlinks=False)


def seen(root: Path, *, sparse: bool = True) -> dict[bytes, object]:
    """What a tree is, by path: everything that must be the same after it was packed and unpacked."""
    found: dict[bytes, object] = {}
    first: dict[int, bytes] = {}
    top = os.fsencode(root)
    for directory, below, names in os.walk(top):
        below.sort()
        for name in [b".", *sorted(below), *sorted(names)]:
            path = os.path.join(directory, name)
            if name != b"." and name in below and not os.path.islink(path):
                continue
            found[os.path.relpath(path, top)] = _facts(path, os.lstat(path), first, sparse=sparse)
    return found


def _facts(path: bytes, status: os.stat_result, first: dict[int, bytes], *, sparse: bool) -> object:
    if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
        return "whiteout"
    attributes = (
        () if stat.S_ISLNK(status.st_mode) else tuple((name, os.getxattr(path, name)) for name in sorted(os.listxattr(path)))
    )
    same = first.setdefault(status.st_ino, path) if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode) else b""
    same = os.path.basename(same)
    content: object = None
    if stat.S_ISREG(status.st_mode):
        with open(path, "rb") as file:
            content = file.read()
        holes = status.st_blocks * 512 < status.st_size
        content = (status.st_size, content, holes if sparse else None)
    elif stat.S_ISLNK(status.st_mode):
        content = os.readlink(path)
    links = 0 if stat.S_ISDIR(status.st_mode) else status.st_nlink
    return (status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, status.st_rdev, attributes, same, links, content)
