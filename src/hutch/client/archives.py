"""Archives: files on their way into a sandbox and out of it.

What comes out of a sandbox is hostile: nothing is written outside the target, and only plain files, directories and links that
stay inside."""

from __future__ import annotations

import gzip
import io
import os
import posixpath
import shutil
import stat
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import IO

from hutch.errors import BadRequestError, NotFoundError


def packed(files: Mapping[str, bytes], mode: int) -> bytes:
    """An archive of whole files, as one piece."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name.lstrip("/"))
            entry.size = len(content)
            entry.mode = mode & 0o777
            tar.addfile(entry, io.BytesIO(content))
    return archive.getvalue()


def head(name: str, size: int, mode: int) -> bytes:
    """What stands before a file's bytes in an archive."""
    entry = tarfile.TarInfo(name.lstrip("/"))
    entry.size = size
    entry.mode = mode & 0o777
    return entry.tobuf(format=tarfile.PAX_FORMAT)


def tail(size: int) -> bytes:
    """What stands behind them, when the file is the last one."""
    return bytes(-size % tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE)


def pack(source: Path | IO[bytes], target: str, archive: IO[bytes]) -> int:
    """Write `source` into `archive` so that it unpacks as the absolute guest path `target`; the bytes of the files.

    A symbolic link counts as what it points to: servers take no links. Raises `NotFoundError`, `BadRequestError`.
    """
    root = target.lstrip("/")
    if not root:
        raise BadRequestError("bad_option", "The target should be a path below / in the sandbox.")
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        if not isinstance(source, Path):
            return _add(tar, root, source, os.fstat(source.fileno()), 0o644)
        try:
            if not source.is_dir():
                return _add_path(tar, root, source)
            total = 0
            tar.addfile(_directory(root, source.stat()))
            for directory, names, files in os.walk(source, onerror=_refuse):
                base = Path(directory)
                for name in sorted(names):
                    if (base / name).is_symlink():
                        raise BadRequestError(
                            "not_copied", f"{base / name} is a link to a directory; copy that directory by itself."
                        )
                    tar.addfile(_directory(_inside(root, source, base / name), (base / name).stat()))
                for name in sorted(files):
                    total += _add_path(tar, _inside(root, source, base / name), base / name)
            return total
        except FileNotFoundError as error:
            raise NotFoundError("no_such_file", f"There is no file {error.filename}.") from error
        except OSError as error:
            raise BadRequestError("not_readable", f"{error.filename} can't be read: {error.strerror}.") from error


def _refuse(error: OSError) -> None:
    raise error


def _inside(root: str, source: Path, path: Path) -> str:
    return f"{root}/{path.relative_to(source).as_posix()}"


def _directory(name: str, status: os.stat_result) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type = tarfile.DIRTYPE
    entry.mode = stat.S_IMODE(status.st_mode) | 0o700
    entry.mtime = int(status.st_mtime)
    return entry


def _add_path(tar: tarfile.TarFile, name: str, path: Path) -> int:
    if not stat.S_ISREG(path.stat().st_mode):
        # Checked before it is opened: opening a pipe would wait for somebody to write to it.
        raise BadRequestError("not_copied", f"{path} is neither a file nor a directory.")
    with open(path, "rb") as content:
        status = os.fstat(content.fileno())
        return _add(tar, name, content, status, stat.S_IMODE(status.st_mode))


def _add(tar: tarfile.TarFile, name: str, content: IO[bytes], status: os.stat_result, mode: int) -> int:
    entry = tarfile.TarInfo(name)
    entry.size = status.st_size
    entry.mode = mode & 0o777
    entry.mtime = int(status.st_mtime)
    tar.addfile(entry, content)
    return entry.size


def unpack(archive: IO[bytes], target: Path) -> int:
    """Unpack a gzipped archive from a sandbox as the directory `target`; the bytes of the files. Raises `BadRequestError`.

    Symbolic links are made last, so nothing is ever written through one that the archive brought.
    """
    total = 0
    links: list[tuple[PurePosixPath, str]] = []
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=archive, mode="r:gz") as tar:
            for entry in tar:
                name = _within(entry.name, entry.name)
                if entry.isdir():
                    (target / name).mkdir(parents=True, exist_ok=True)
                elif entry.issym():
                    _within(str(name.parent / entry.linkname), entry.name)
                    links.append((name, entry.linkname))
                elif entry.isreg() or entry.islnk():
                    total += _extract(tar, entry, target / name)
                else:
                    raise _hostile(f"{entry.name!r} is no file, directory or link")
        for name, to in links:
            (target / name).symlink_to(to)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _hostile(str(error)) from error
    except OSError as error:
        raise BadRequestError("not_writable", f"{error.filename or target} can't be written: {error.strerror}.") from error
    return total


def _within(path: str, name: str) -> PurePosixPath:
    """`path` below the target, normalized. Raises for one that leaves it."""
    normal = PurePosixPath(posixpath.normpath(path))
    if normal.is_absolute() or ".." in normal.parts or "\0" in path:
        raise _hostile(f"{name!r} leads out of the directory")
    return normal


def _extract(tar: tarfile.TarFile, entry: tarfile.TarInfo, path: Path) -> int:
    """Write one file; of its mode only what is harmless. A hard link becomes a copy."""
    try:
        content = tar.extractfile(entry)
    except KeyError:
        content = None
    if content is None:
        raise _hostile(f"{entry.name!r} links to what is not there")
    path.parent.mkdir(parents=True, exist_ok=True)
    with content, open(path, "wb") as file:
        shutil.copyfileobj(content, file)
        size = file.tell()
    path.chmod((entry.mode & 0o755) | 0o600)
    return size


def _hostile(reason: str) -> BadRequestError:
    return BadRequestError("hostile_archive", f"What the sandbox sent is not unpacked: {reason}.")
