"""A snapshot's tree as a tar, laid out as the layers of OCI images are, and a tree from such a tar.

What a layer hides is an empty file: `.wh.NAME` for something, `.wh..wh..opq` for all that the directory had. Times are exact,
names any bytes, holes stay holes (the sparse format 1.0 of GNU tar), extended attributes are those of `user.`.

A tar may come from anybody: names that lead out, also through links, devices, names that come twice and more than may be are
refused.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from hutch.blobs.manifest import CHUNK_BYTES, MAX_NAME_BYTES, Entry, Kind, extents_of
from hutch.blobs.pack import CREATE, OPAQUE, OPEN_DIRECTORY, Unpackable, contents, walk

WHITEOUT = b".wh."
OPAQUE_MARK = b".wh..wh..opq"
OCI_LAYOUT = "oci-layout"
MAX_PATH_BYTES = 4096
MAX_HEADER_BYTES = 8 * 1024 * 1024
XATTR = b"SCHILY.xattr."
ITS_FAULT = {
    errno.EINVAL,
    errno.E2BIG,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.ERANGE,
    errno.EMLINK,
    errno.EOPNOTSUPP,
    errno.EFBIG,
}
"""Errors of what is to be made, and not of the machine that makes it."""
_BLOCK = tarfile.BLOCKSIZE
_TYPES = {
    Kind.DIRECTORY: tarfile.DIRTYPE,
    Kind.FILE: tarfile.REGTYPE,
    Kind.SYMLINK: tarfile.SYMTYPE,
    Kind.FIFO: tarfile.FIFOTYPE,
    Kind.CHARACTER_DEVICE: tarfile.CHRTYPE,
    Kind.BLOCK_DEVICE: tarfile.BLKTYPE,
}


Records = tuple[tuple[bytes, bytes], ...]


class Refused(ValueError):
    """An archive that does not become a tree."""


# -- tree → tar -------------------------------------------------------------------------------------


def export(tree: Path, send: Callable[[bytes], None], *, max_bytes: int) -> int:
    """Send a tree as a tar; how many entries it has. Sockets are left out, as in every tar. Raises `OSError`, and `Unpackable`
    for a tree that has no such form or is larger than `max_bytes`."""
    writer = _Writer(send, max_bytes)
    for entry, fd in walk(tree):
        writer.add(entry, fd)
    writer.close()
    return writer.count


class _Writer:
    def __init__(self, send: Callable[[bytes], None], max_bytes: int) -> None:
        self._send = send
        self._left = max_bytes
        self._path: list[bytes] = []
        self._linked: list[bytes] = []
        self.count = 0

    def add(self, entry: Entry, fd: int) -> None:
        if entry.kind is Kind.UP:
            if self._path:
                self._path.pop()
            return
        path = b"/".join([*self._path, entry.name]) if entry.name else b"."
        if len(path) > MAX_PATH_BYTES:
            raise Unpackable(f"A path is longer than {MAX_PATH_BYTES} bytes, the most that a tar may have.")
        if entry.name.startswith(WHITEOUT):
            raise Unpackable(f"{path!r} would mean something else in a tar.")
        self._add(entry, fd, path)
        self.count += 1
        if entry.kind is Kind.DIRECTORY:
            if entry.name:
                self._path.append(entry.name)
            if entry.opaque:
                self._header(Entry(kind=Kind.FILE), OPAQUE_MARK if path == b"." else path + b"/" + OPAQUE_MARK)

    def _add(self, entry: Entry, fd: int, path: bytes) -> None:
        if entry.kind is Kind.WHITEOUT:
            self._header(Entry(kind=Kind.FILE), path[: len(path) - len(entry.name)] + WHITEOUT + entry.name)
            return
        if entry.kind is Kind.LINK:
            self._link(entry, path)
            return
        if entry.names > 1 and entry.kind is not Kind.DIRECTORY:
            self._linked.append(b"" if entry.kind is Kind.SOCKET else path)
        if entry.kind is Kind.FILE:
            self._file(entry, fd, path)
        elif entry.kind is not Kind.SOCKET:
            self._header(entry, path)

    def _header(self, entry: Entry, path: bytes, size: int = 0, more: Records = (), link: bytes = b"") -> None:
        """What a name, a number or a time is stands in records, which have room for any; the old header has the rest."""
        records = [(b"path", path), (b"uid", b"%d" % entry.uid), (b"gid", b"%d" % entry.gid), *more]
        seconds, rest = divmod(abs(entry.mtime_ns), 10**9)
        records.append((b"mtime", b"%s%d.%09d" % (b"-" if entry.mtime_ns < 0 else b"", seconds, rest)))
        target = link or entry.target
        if target:
            records.append((b"linkpath", target))
        records += [(XATTR + _escaped(name), value) for name, value in entry.xattrs]
        if not all(_is_text(value) for value in (path, target or b"")):
            # GNU tar warns of it, so it is only there where it is needed.
            records.insert(0, (b"hdrcharset", b"BINARY"))
        body = b"".join(_record(key, value) for key, value in records)
        self._put(_old_header(tarfile.XHDTYPE, len(body)) + _padded(body))
        kind = tarfile.LNKTYPE if link else _TYPES[entry.kind]
        self._put(_old_header(kind, size, entry.mode, entry.device))

    def _link(self, entry: Entry, path: bytes) -> None:
        first = self._linked[entry.of]
        if first:
            self._header(Entry(kind=Kind.FILE), path, link=first)

    def _file(self, entry: Entry, fd: int, path: bytes) -> None:
        extents = extents_of(entry)
        size, map_ = sum(length for _, length in extents), b""
        more: Records = ()
        if entry.extents is not None:
            text = "".join(f"{number}\n" for number in (len(extents), *(part for extent in extents for part in extent)))
            map_ = _padded(text.encode())
            more = (
                (b"GNU.sparse.major", b"1"),
                (b"GNU.sparse.minor", b"0"),
                (b"GNU.sparse.name", path),
                (b"GNU.sparse.realsize", b"%d" % entry.size),
            )
        self._header(entry, path, size + len(map_), more)
        self._put(map_)
        for piece in contents(entry, fd):
            self._put(piece)
        self._put(bytes(-size % _BLOCK))

    def _put(self, content: bytes) -> None:
        self._left -= len(content)
        if self._left < 0:
            raise Unpackable("It is larger than what is exported at most.")
        if content:
            self._send(content)

    def close(self) -> None:
        self._put(bytes(2 * _BLOCK))


def _old_header(kind: bytes, size: int, mode: int = 0o644, device: int = 0) -> bytes:
    info = tarfile.TarInfo("@")
    info.type, info.size, info.mode = kind, size, mode
    info.devmajor, info.devminor = os.major(device), os.minor(device)
    # Not as a record, which some readers take for the size without holes; GNU's has room for any.
    return info.tobuf(tarfile.USTAR_FORMAT if size < 8**11 else tarfile.GNU_FORMAT)


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _record(key: bytes, value: bytes) -> bytes:
    """`LENGTH KEY=VALUE`, where the length counts itself."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _escaped(name: bytes) -> bytes:
    """The name of an attribute as GNU tar writes it: a record's key ends at the first `=`."""
    return name.replace(b"%", b"%25").replace(b"=", b"%3D")


def _unescaped(name: bytes) -> bytes:
    return name.replace(b"%3D", b"=").replace(b"%25", b"%")


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % _BLOCK)


# -- tar → tree -------------------------------------------------------------------------------------


def load(pieces: Iterable[bytes], tree: Path, *, max_bytes: int, max_files: int) -> int:
    """Make `tree`, which is not there yet, from a tar; how many entries it has. Raises `Refused` and `OSError`; what was made by
    then is for the caller to remove."""
    source = _Forward(pieces, max_bytes)
    tree.mkdir()
    tree.chmod(0o755)
    root = os.open(tree, OPEN_DIRECTORY)
    try:
        return _load(source, _Loader(root, max_bytes), max_files)
    except Refused:
        raise
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        raise Refused(f"it can't be read as a tar: {error}") from error
    except OSError as error:
        if error.errno not in ITS_FAULT:
            raise
        raise Refused(f"it has what this file system can't have: {error}") from error
    finally:
        os.close(root)


def _load(source: _Forward, loader: _Loader, max_files: int) -> int:
    count = 0
    for archive, info in _members(source):
        count += 1
        if count > max_files:
            raise Refused(f"it has more than {max_files} entries")
        if count == 1 and info.name == OCI_LAYOUT:
            raise Refused("it is the layout of an OCI image, not a layer: import the layer that is in it")
        loader.add(archive, info)
    if not source.ended():
        raise Refused("it is cut")
    loader.finish()
    return count


def _members(source: _Forward) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    with tarfile.open(fileobj=source, mode="r:", encoding="utf-8", errors="surrogateescape") as archive:
        while (info := archive.next()) is not None:
            yield archive, info
            # It keeps every one it has seen.
            archive.members.clear()  # type: ignore[attr-defined]


class _Forward(io.RawIOBase):
    """Pieces as a file that is only read forward, so that memory holds one. What asks for more at once reads no headers."""

    def __init__(self, pieces: Iterable[bytes], max_bytes: int) -> None:
        self._pieces = iter(pieces)
        self._now = memoryview(b"")
        self._at = 0
        self._most = max_bytes + max_bytes // 8 + 64 * 1024 * 1024
        self._last = b""

    def tell(self) -> int:
        return self._at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence != 0 or offset < self._at:
            raise Refused("it goes back")
        while self._at < offset and self.read(min(CHUNK_BYTES, offset - self._at)):
            pass
        return self._at

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise Refused("a header is larger than any can be")
        found = bytearray()
        while len(found) < size:
            if not self._now:
                piece = next(self._pieces, None)
                if piece is None:
                    break
                self._now = memoryview(piece)
            taken = self._now[: size - len(found)]
            found += taken
            self._now = self._now[len(taken) :]
        self._at += len(found)
        if self._at > self._most:
            raise Refused(f"it is larger than {self._most} bytes")
        self._last = bytes(found)
        return self._last

    def ended(self) -> bool:
        """Whether the last that was read is a tar's end: a block of zeros. The rest is dropped."""
        whole = self._last == bytes(_BLOCK)
        for _ in self._pieces:
            pass
        return whole


class _Loader:
    """Puts what a tar has below one directory. Nobody else is there, and every step on the way is opened without following."""

    def __init__(self, root: int, max_bytes: int) -> None:
        self._root = root
        self._left = max_bytes
        self._directories: dict[tuple[bytes, ...], tarfile.TarInfo | None] = {(): None}

    def add(self, archive: tarfile.TarFile, info: tarfile.TarInfo) -> None:
        parts = _parts(info.name)
        if not parts:
            if not info.isdir():
                raise Refused("its root is no directory")
            self._directories[()] = info
            return
        with self._parent(parts[:-1]) as parent:
            try:
                self._make(archive, info, parent, parts)
            except FileExistsError as error:
                raise Refused(f"{info.name!r} comes twice") from error

    def finish(self) -> None:
        """Give directories what they have, the deepest first, because what was made in them changed their times."""
        for parts in sorted(self._directories, key=len, reverse=True):
            info = self._directories[parts]
            if info is None:
                continue
            with self._parent(parts) as fd:
                _own(fd, info)

    @contextlib.contextmanager
    def _parent(self, parts: tuple[bytes, ...]) -> Iterator[int]:
        """A directory, made with those above it where it is missing."""
        here = os.dup(self._root)
        try:
            for depth, name in enumerate(parts, start=1):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o755, dir_fd=here)
                    os.chmod(name, 0o755, dir_fd=here)  # noqa: S103 - as directories are, whatever our umask
                    self._directories.setdefault(parts[:depth], None)
                try:
                    below = os.open(name, OPEN_DIRECTORY, dir_fd=here)
                except OSError as error:
                    raise Refused(f"{b'/'.join(parts)!r} leads through what is no directory") from error
                os.close(here)
                here = below
            yield here
        finally:
            os.close(here)

    def _make(self, archive: tarfile.TarFile, info: tarfile.TarInfo, parent: int, parts: tuple[bytes, ...]) -> None:
        name = parts[-1]
        if name.startswith(WHITEOUT):
            self._hide(name, parent)
        elif info.isdir():
            self._directory(info, parent, parts)
        elif info.isreg():
            self._file(archive, info, parent, name)
        elif info.issym():
            target = os.fsencode(info.linkname)
            if not 0 < len(target) < MAX_PATH_BYTES or b"\0" in target:
                raise Refused(f"{info.name!r} has an impossible target")
            os.symlink(target, name, dir_fd=parent)
            os.chown(name, *_owner(info), dir_fd=parent, follow_symlinks=False)
            os.utime(name, ns=_times(info), dir_fd=parent, follow_symlinks=False)
        elif info.islnk():
            self._link(info, parent, name)
        elif info.isfifo():
            os.mkfifo(name, 0o600, dir_fd=parent)
            os.chown(name, *_owner(info), dir_fd=parent)
            os.chmod(name, info.mode & 0o7777, dir_fd=parent)
            os.utime(name, ns=_times(info), dir_fd=parent)
        else:
            raise Refused(f"{info.name!r} is of a kind that a snapshot can't have (devices, for example)")

    def _directory(self, info: tarfile.TarInfo, parent: int, parts: tuple[bytes, ...]) -> None:
        """One that was made as the parent of something is described later."""
        if self._directories.get(parts, info) is not None:
            os.mkdir(parts[-1], 0o755, dir_fd=parent)
        self._directories[parts] = info

    @staticmethod
    def _hide(name: bytes, parent: int) -> None:
        if name == OPAQUE_MARK:
            os.setxattr(parent, OPAQUE, b"y")
            return
        hidden = name[len(WHITEOUT) :]
        if not hidden or hidden in (b".", b"..") or hidden.startswith(WHITEOUT):
            raise Refused(f"{name!r} hides nothing that can be")
        os.mknod(hidden, stat.S_IFCHR, 0, dir_fd=parent)

    def _file(self, archive: tarfile.TarFile, info: tarfile.TarInfo, parent: int, name: bytes) -> None:
        extents = _extents(info)
        self._left -= sum(length for _, length in extents)
        if self._left < 0 or not 0 <= info.size < 2**62:
            raise Refused("what it holds is larger than a snapshot may be")
        source = archive.extractfile(info)
        assert source is not None
        fd = os.open(name, CREATE, 0o600, dir_fd=parent)
        try:
            for offset, length in extents:
                source.seek(offset)
                at, end = offset, offset + length
                while at < end:
                    piece = source.read(min(CHUNK_BYTES, end - at))
                    if not piece:
                        raise Refused(f"{info.name!r} is cut")
                    at += os.pwrite(fd, piece, at)
            os.ftruncate(fd, info.size)
            _own(fd, info)
        finally:
            os.close(fd)

    def _link(self, info: tarfile.TarInfo, parent: int, name: bytes) -> None:
        target = _parts(info.linkname)
        if not target or target[:-1] not in self._directories:
            raise Refused(f"{info.name!r} is one more name of nothing")
        with self._parent(target[:-1]) as above:
            try:
                found = os.stat(target[-1], dir_fd=above, follow_symlinks=False)
                if stat.S_ISDIR(found.st_mode) or stat.S_ISCHR(found.st_mode):
                    raise Refused(f"{info.name!r} is one more name of what can have only one")
                os.link(target[-1], name, src_dir_fd=above, dst_dir_fd=parent, follow_symlinks=False)
            except FileNotFoundError as error:
                raise Refused(f"{info.name!r} is one more name of nothing") from error


def _parts(path: str) -> tuple[bytes, ...]:
    """A path's names below the root."""
    raw = os.fsencode(path)
    parts = tuple(part for part in raw.split(b"/") if part not in (b"", b"."))
    if raw.startswith(b"/") or b".." in parts or b"\0" in raw or len(raw) > MAX_PATH_BYTES:
        raise Refused(f"{path[:300]!r} leads out of it, or is no name")
    if any(len(part) > MAX_NAME_BYTES for part in parts):
        raise Refused(f"{path[:300]!r} is too long a name")
    return parts


def _extents(info: tarfile.TarInfo) -> list[tuple[int, int]]:
    """Where a file's data lies: (offset, length), in order."""
    sparse: list[tuple[int, int]] | None = getattr(info, "sparse", None)
    end, extents = 0, [(0, info.size)] if sparse is None else sparse
    # Some end with one that is empty.
    extents = [extent for extent in extents if extent[1] != 0]
    for offset, length in extents:
        if offset < end or length < 0 or offset + length > info.size:
            raise Refused(f"{info.name!r} has impossible holes")
        end = offset + length
    return extents


def _owner(info: tarfile.TarInfo) -> tuple[int, int]:
    if not 0 <= info.uid < 2**32 - 1 or not 0 <= info.gid < 2**32 - 1:
        raise Refused(f"{info.name!r} has an impossible owner")
    return info.uid, info.gid


def _times(info: tarfile.TarInfo) -> tuple[int, int]:
    """Exact where the header is: a float has no room for nanoseconds."""
    text = info.pax_headers.get("mtime", "")
    whole, _, rest = text.lstrip("-").partition(".")
    if whole.isdecimal() and (not rest or rest.isdecimal()):
        found = int(whole) * 10**9 + int(rest[:9].ljust(9, "0"))
        found = -found if text.startswith("-") else found
    else:
        found = int(info.mtime) * 10**9
    if not -(2**63) <= found < 2**63:
        raise Refused(f"{info.name!r} has an impossible time")
    return found, found


def _own(fd: int, info: tarfile.TarInfo) -> None:
    os.fchown(fd, *_owner(info))
    os.fchmod(fd, info.mode & 0o7777)
    for key, value in info.pax_headers.items():
        name = _unescaped(os.fsencode(key).removeprefix(XATTR))
        if key.startswith("SCHILY.xattr.user."):
            os.setxattr(fd, name, os.fsencode(value))
    os.utime(fd, ns=_times(info))
