"""Archives of `hutch cp`. What comes out of a sandbox is hostile: nothing is written outside the target, and only plain files,
directories and links that stay inside."""

from __future__ import annotations

import os
import stat
import tarfile
from pathlib import Path
from typing import IO

from hutch.errors import BadRequestError, NotFoundError


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
    """Unpack a gzipped archive from a sandbox as the directory `target`; the bytes of the files. Raises `BadRequestError`."""
    total = 0
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=archive, mode="r:gz") as tar:
            for entry in tar:
                if not (entry.isreg() or entry.isdir() or entry.issym() or entry.islnk()):
                    raise BadRequestError(
                        "hostile_archive", f"The sandbox sent {entry.name!r}, which is no file, directory or link."
                    )
                tar.extract(entry, target, filter="data")
                total += entry.size if entry.isreg() else 0
    except (tarfile.TarError, EOFError) as error:
        raise BadRequestError("hostile_archive", f"The sandbox's archive can't be unpacked: {error}.") from error
    except OSError as error:
        raise BadRequestError("not_writable", f"{error.filename or target} can't be written: {error.strerror}.") from error
    return total
