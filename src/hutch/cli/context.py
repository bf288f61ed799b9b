"""The context of a build: what COPY may take of one local directory. Nothing outside it is read, whatever its links say."""

from __future__ import annotations

import os
import re
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from hutch.errors import BadRequestError, NotFoundError

MAX_IGNORE_BYTES = 1024 * 1024
IGNORE_FILE = ".dockerignore"


class Context:
    """A directory, without what its `.dockerignore` names. Raises `NotFoundError` and `BadRequestError`."""

    def __init__(self, directory: Path) -> None:
        if not directory.is_dir():
            raise NotFoundError("no_such_file", f"There is no directory {directory}.")
        self.root = directory.resolve()
        self._rules = _rules(self.root / IGNORE_FILE)

    def find(self, source: str) -> list[Path]:
        """What a source of COPY names, which may have wildcards; paths below the root. Raises `NotFoundError`."""
        parts = [part for part in source.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise BadRequestError("not_copied", f"{source} leads out of the build's directory {self.root}.")
        if not parts:
            return [self.root]
        found = sorted(self.root.glob("/".join(parts))) if re.search(r"[*?\[]", source) else [self.root.joinpath(*parts)]
        found = [path for path in found if os.path.lexists(path) and not self._ignored(path)]
        if not found:
            raise NotFoundError("no_such_file", f"There is no {source} in {self.root}, or {IGNORE_FILE} names it.")
        return found

    def pack(self, archive: tarfile.TarFile, source: Path, target: str) -> list[str]:
        """Add a file, or what is in a directory, so that it unpacks as the guest path `target`; every path that is added. A link
        counts as what it leads to. Raises `BadRequestError` for links out of the directory."""
        try:
            if self._inside(source).is_dir():
                return list(self._pack_directory(archive, source, target, (self._inside(source),)))
            return [self._pack_file(archive, source, target)]
        except OSError as error:
            raise BadRequestError("not_readable", f"{error.filename} can't be read: {error.strerror}.") from error

    def is_directory(self, source: Path) -> bool:
        return self._inside(source).is_dir()

    def _pack_directory(self, archive: tarfile.TarFile, source: Path, target: str, above: tuple[Path, ...]) -> Iterator[str]:
        for path in sorted(source.iterdir()):
            place = f"{target.rstrip('/')}/{path.name}"
            if self._ignored(path) and not (path.is_dir() and self._excepted):
                continue
            real = self._inside(path)
            if not real.is_dir():
                yield self._pack_file(archive, path, place)
                continue
            if real in above:
                raise BadRequestError("not_copied", f"{path} is a link to a directory above it.")
            if not self._ignored(path):
                status = real.stat()
                entry = tarfile.TarInfo(place.lstrip("/"))
                entry.type, entry.mode, entry.mtime = tarfile.DIRTYPE, stat.S_IMODE(status.st_mode) | 0o700, int(status.st_mtime)
                archive.addfile(entry)
                yield place
            yield from self._pack_directory(archive, path, place, (*above, real))

    def _pack_file(self, archive: tarfile.TarFile, source: Path, target: str) -> str:
        real = self._inside(source)
        if not stat.S_ISREG(real.stat().st_mode):
            # Checked before it is opened: opening a pipe would wait for somebody to write to it.
            raise BadRequestError("not_copied", f"{source} is neither a file nor a directory.")
        with _opened(real) as content:
            status = os.fstat(content.fileno())
            entry = tarfile.TarInfo(target.lstrip("/"))
            entry.size, entry.mode, entry.mtime = status.st_size, stat.S_IMODE(status.st_mode), int(status.st_mtime)
            archive.addfile(entry, content)
        return target

    def _inside(self, path: Path) -> Path:
        """What a path leads to, if that is in the directory."""
        try:
            real = path.resolve(strict=True)
        except (OSError, RuntimeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is a link in a circle"
            raise BadRequestError("not_readable", f"{path} can't be read: {reason}.") from error
        if not real.is_relative_to(self.root):
            raise BadRequestError("not_copied", f"{path} is a link out of the build's directory {self.root}.")
        return real

    # -- .dockerignore -----------------------------------------------------------------------------

    @property
    def _excepted(self) -> bool:
        """Whether something in an ignored directory may be wanted all the same."""
        return any(keep for keep, _ in self._rules)

    def _ignored(self, path: Path) -> bool:
        name = path.relative_to(self.root).as_posix()
        ignored = False
        for keep, pattern in self._rules:
            if pattern.fullmatch(name):
                ignored = not keep
        return ignored


def _opened(path: Path) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")


def _rules(file: Path) -> list[tuple[bool, re.Pattern[str]]]:
    """Patterns, and whether each keeps what one before it left out; the last one counts."""
    if not file.is_file() or file.is_symlink():
        return []
    with file.open("rb") as content:
        lines = content.read(MAX_IGNORE_BYTES).decode("utf-8", "replace").removeprefix("\ufeff").splitlines()
    rules = []
    for line in lines:
        text = line.strip()
        if not text or line.startswith("#"):
            continue
        keep = text.startswith("!")
        cleaned = "/".join(part for part in text.removeprefix("!").strip().split("/") if part not in ("", "."))
        if cleaned:
            rules.append((keep, re.compile(_pattern(cleaned) + "(/.*)?", re.DOTALL)))
    return rules


def _pattern(glob: str) -> str:
    """`*` and `?` stop at slashes, `**` does not. Character classes are not special."""
    parts = re.split(r"(\*\*/?|\*|\?)", glob)
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(meaning.get(part, re.escape(part)) for part in parts)
