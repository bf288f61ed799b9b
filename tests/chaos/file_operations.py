"""Random operations on a tree of files, and a list of all that is in it. The same program runs in a guest and outside:

    python3 file_operations.py apply ROOT SEED OPERATIONS    does them; prints what each came to
    python3 file_operations.py list ROOT                     prints the tree as JSON

What it does follows from the seed and the tree alone, so two equal trees stay equal. It is standard library only and needs root.
Times of modification are set at the end to what follows from the seed too.
"""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import random
import stat
import sys
from typing import Any

MIN_ENTRIES, MAX_ENTRIES = 40, 600
LARGE_BYTES = 24 * 1024 * 1024
SPARSE_BYTES = 96 * 1024 * 1024
PAST_NS = 1_000_000_000 * 10**9
"""Times that were set lie before 2020, others after it."""
YEAR_2020_NS = 1_577_836_800 * 10**9


class Tree:
    """What operations choose from. Paths are relative; only `random()` is drawn, which all versions of Python agree on."""

    def __init__(self, root: str, seed: int) -> None:
        self.root = root
        self.random = random.Random(seed).random
        self.made = 0

    def below(self, limit: int) -> int:
        return int(self.random() * limit)

    def entries(self) -> list[str]:
        found = []
        for directory, directories, files in os.walk(self.root):
            directories.sort()
            found += [os.path.relpath(os.path.join(directory, name), self.root) for name in directories + files]
        return sorted(found)

    def path(self, name: str) -> str:
        return os.path.join(self.root, name)

    def choose(self, *kinds: str) -> str:
        """An entry of one of these kinds (`f`, `d`, `l`). Raises `LookupError` when there is none."""
        return self._one([name for name in self.entries() if kind_of(os.lstat(self.path(name))) in kinds])

    def _one(self, fitting: list[str]) -> str:
        if not fitting:
            raise LookupError
        return self.path(fitting[self.below(len(fitting))])

    def writable(self) -> str:
        """A file to write to. Not one with setuid or setgid: on the host a write takes these away. The guest's kernel, where root
        may keep them, does not see that until another boot."""
        plain = [name for name in self.entries() if kind_of(os.lstat(self.path(name))) == "f"]
        return self._one([name for name in plain if not os.lstat(self.path(name)).st_mode & (stat.S_ISUID | stat.S_ISGID)])

    def own_directory(self) -> str:
        """A directory that was made here. Those of the image can't be renamed: overlayfs says EXDEV, and `mv` copies."""
        own = [name for name in self.entries() if os.path.basename(name)[:1] == "n"]
        return self._one([name for name in own if kind_of(os.lstat(self.path(name))) == "d"])

    def directory(self) -> str:
        try:
            return self.choose("d") if self.below(4) else self.root
        except LookupError:
            return self.root

    def new(self) -> str:
        """A name that is not taken, of any length and with anything in it."""
        self.made += 1
        rare = ["", " with space", "-ünï", "\n", "\udcff", "x" * 180][self.below(6)] if self.below(3) == 0 else ""
        name = f"n{self.below(10**9)}-{self.made}{rare}"
        return os.path.join(self.directory(), name)

    def data(self, size: int) -> bytes:
        """Bytes that follow from the seed; large ones repeat, with a number in each block."""
        block = bytes(self.below(256) for _ in range(min(size, 64)))
        made = bytearray()
        count = 0
        while len(made) < size:
            made += block * 64 + count.to_bytes(8, "big")
            count += 1
        return bytes(made[:size])


def kind_of(status: os.stat_result) -> str:
    mode = status.st_mode
    for kind, check in (("f", stat.S_ISREG), ("d", stat.S_ISDIR), ("l", stat.S_ISLNK)):
        if check(mode):
            return kind
    return "?"


# -- operations: each takes the tree, and raises `OSError` when the kernel refuses ----------------------


def create(tree: Tree) -> None:
    with open(tree.new(), "xb") as file:
        file.write(tree.data(tree.below(20_000)))


def create_many(tree: Tree) -> None:
    directory = tree.new()
    os.mkdir(directory)
    for number in range(40):
        with open(os.path.join(directory, str(number)), "xb") as file:
            file.write(tree.data(tree.below(300)))


def create_large(tree: Tree) -> None:
    with open(tree.new(), "xb") as file:
        file.write(tree.data(LARGE_BYTES + tree.below(4096)))


def create_sparse(tree: Tree) -> None:
    with open(tree.new(), "xb") as file:
        file.seek(SPARSE_BYTES + tree.below(10**6))
        file.write(b"end")
        file.seek(SPARSE_BYTES // 2)
        file.write(b"middle")


def append(tree: Tree) -> None:
    with open(tree.writable(), "ab") as file:
        file.write(tree.data(1 + tree.below(5000)))


def overwrite(tree: Tree) -> None:
    with open(tree.writable(), "r+b") as file:
        file.seek(tree.below(10_000))
        file.write(tree.data(1 + tree.below(5000)))
        if tree.below(2):
            os.fsync(file.fileno())


def truncate(tree: Tree) -> None:
    path = tree.writable()
    size = os.stat(path).st_size
    target = tree.below(2 * min(size, 10**7) + 100)
    os.truncate(path, target + 1 if target == size else target)


def write_mapped(tree: Tree) -> None:
    with open(tree.writable(), "r+b") as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            return
        with mmap.mmap(file.fileno(), size) as mapped:
            for _ in range(20):
                mapped[tree.below(size)] = tree.below(256)
        os.utime(file.fileno())


def rename(tree: Tree) -> None:
    os.rename(tree.choose("f", "l"), tree.new())


def rename_over(tree: Tree) -> None:
    source, target = tree.choose("f", "l"), tree.choose("f", "l")
    # Over another link of itself Linux changes nothing; gVisor then lists the source and does not find it, until another boot.
    if os.lstat(source).st_ino != os.lstat(target).st_ino:
        os.rename(source, target)


def rename_directory(tree: Tree) -> None:
    source, target = tree.own_directory(), tree.new()
    os.rename(source, target)


def rename_directory_over(tree: Tree) -> None:
    source, target = tree.own_directory(), tree.new()
    os.mkdir(target)
    os.rename(source, target)


def write_renamed(tree: Tree) -> None:
    path, target = tree.writable(), tree.new()
    with open(path, "r+b") as file:
        os.rename(path, target)
        file.write(tree.data(100))


def replace(tree: Tree) -> None:
    """As editors and package managers write a file."""
    path, temporary = tree.choose("f"), tree.new()
    with open(temporary, "xb") as file:
        file.write(tree.data(tree.below(9000)))
        os.fsync(file.fileno())
    os.rename(temporary, path)


def link(tree: Tree) -> None:
    os.link(tree.choose("f"), tree.new())


def symlink(tree: Tree) -> None:
    target = [tree.choose("f", "d"), "dangling", "../../..", "/etc/passwd", "."][tree.below(5)]
    relative = os.path.relpath(target, tree.root) if target.startswith(tree.root) else target
    os.symlink(relative, tree.new())


def make_directories(tree: Tree) -> None:
    os.makedirs(os.path.join(tree.new(), "a", "b", "c"))


def change_mode(tree: Tree) -> None:
    modes = (0o644, 0o755, 0o600, 0o4755, 0o2755, 0o1777, 0, 0o7777)
    os.chmod(tree.choose("f", "d"), modes[tree.below(len(modes))])


def change_owner(tree: Tree) -> None:
    os.chown(tree.choose("f", "d", "l"), tree.below(60_000), tree.below(60_000), follow_symlinks=False)


def set_attribute(tree: Tree) -> None:
    os.setxattr(tree.choose("f", "d"), f"user.a{tree.below(4)}", tree.data(tree.below(200)))


def remove_attribute(tree: Tree) -> None:
    path = tree.choose("f", "d")
    names = sorted(os.listxattr(path))
    if names:
        os.removexattr(path, names[0])


def unlink(tree: Tree) -> None:
    os.unlink(tree.choose("f", "l"))


def unlink_open(tree: Tree) -> None:
    path = tree.choose("f")
    with open(path, "r+b") as file:
        os.unlink(path)
        file.write(tree.data(1000))
        file.seek(0)
        file.read()


def file_becomes_directory(tree: Tree) -> None:
    path = tree.choose("f", "l")
    os.unlink(path)
    os.mkdir(path)
    with open(os.path.join(path, "in"), "xb") as file:
        file.write(b"x")


def directory_becomes_file(tree: Tree) -> None:
    path = tree.choose("d")
    remove(path)
    with open(path, "xb") as file:
        file.write(tree.data(10))


def remove_directory(tree: Tree) -> None:
    remove(tree.choose("d"))


def remove_and_make_again(tree: Tree) -> None:
    path = tree.choose("d")
    remove(path)
    os.mkdir(path)


def remove(path: str) -> None:
    for directory, directories, files in os.walk(path, topdown=False):
        for name in files:
            os.unlink(os.path.join(directory, name))
        for name in directories:
            inner = os.path.join(directory, name)
            (os.unlink if os.path.islink(inner) else os.rmdir)(inner)
    os.rmdir(path)


OFTEN = (create, append, overwrite, truncate, write_mapped, rename, rename_over, replace, link, unlink, change_mode)
SOMETIMES = (
    change_owner,
    create_sparse,
    file_becomes_directory,
    make_directories,
    remove_and_make_again,
    remove_attribute,
    rename_directory,
    rename_directory_over,
    set_attribute,
    set_attribute,
    symlink,
    unlink_open,
    write_renamed,
)
RARELY = (create_large, create_many, directory_becomes_file, remove_directory)
MAKING = (create, create_many, create_sparse, make_directories, link, symlink)


def apply(root: str, seed: int, count: int) -> None:
    os.umask(0o022)
    tree = Tree(root, seed)
    settle_times(tree)
    for _ in range(count):
        group = (OFTEN, OFTEN, OFTEN, SOMETIMES, SOMETIMES, RARELY)[tree.below(6)]
        operation = group[tree.below(len(group))]
        entries = len(tree.entries())
        if entries > MAX_ENTRIES:
            operation = remove_directory
        elif entries < MIN_ENTRIES:
            operation = MAKING[tree.below(len(MAKING))]
        try:
            operation(tree)
            came_to = "done"
        except OSError as error:
            came_to = errno.errorcode.get(error.errno or 0, str(error))
        except LookupError:
            came_to = "nothing to do it with"
        print(operation.__name__, came_to)
    settle_times(tree)


def settle_times(tree: Tree) -> None:
    """Give everything that was changed a time that follows from the seed. The deepest first: nothing here changes a directory."""
    for name in reversed([".", *tree.entries()]):
        path = tree.path(name)
        if os.lstat(path).st_mtime_ns > YEAR_2020_NS:
            time_ns = PAST_NS + tree.below(10**17)
            os.utime(path, ns=(time_ns, time_ns), follow_symlinks=False)


def listing(root: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name in [".", *Tree(root, 0).entries()]:
        path = os.path.join(root, name)
        status = os.lstat(path)
        kind = kind_of(status)
        entry: dict[str, Any] = {
            "kind": kind,
            "mode": oct(status.st_mode & 0o7777),
            "owner": [status.st_uid, status.st_gid],
            "mtime": status.st_mtime_ns,
        }
        if kind == "f":
            entry |= {"size": status.st_size, "links": status.st_nlink, "content": digest(path)}
        elif kind == "l":
            entry["target"] = ascii(os.readlink(path))
        if kind in "fd":
            entry["attributes"] = {
                one: os.getxattr(path, one).hex() for one in sorted(os.listxattr(path)) if one.startswith("user.")
            }
        found[ascii(name)] = entry
    return found


def digest(path: str) -> str:
    made = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(1024 * 1024):
            made.update(data)
    return made.hexdigest()


if __name__ == "__main__":
    if sys.argv[1] == "apply":
        apply(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        print(json.dumps(listing(sys.argv[2])))
