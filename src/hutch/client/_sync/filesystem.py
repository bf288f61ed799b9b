# Written by scripts/write_sync_client.py from `_async/filesystem.py`; change that one.
"""The files of a sandbox or session: `sandbox.fs`."""

from __future__ import annotations

import posixpath
import secrets
import tempfile
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hutch.client import archives, results
from hutch.client._sync.local import chunks_of, write_file
from hutch.client._sync.waiting import in_thread
from hutch.client.results import CompletedCommand, DirectoryEntry, FileStat
from hutch.errors import BadRequestError, HutchError, InternalError, NotFoundError

if TYPE_CHECKING:
    from hutch.client._sync.runner import Runner

GUEST_TEMPORARY = "/tmp"  # noqa: S108 - the guest's, not ours


class Filesystem:
    """Relative paths start at `cwd`, or at the session's working directory. Writing is done as the sandbox's user.

    Every method raises `NotFoundError` for what is not there, and `BadRequestError` with the sandbox's words (`file_error`).
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def absolute(self, path: str, cwd: str | None = None) -> str:
        """Where a path is."""
        return posixpath.normpath(posixpath.join(self._runner.cwd or "/", cwd or "", path))

    # -- whole files -----------------------------------------------------------------------------------

    def read_bytes(self, path: str, *, cwd: str | None = None) -> bytes:
        """A file, whole, in memory; `read_stream` is for large ones."""
        return self._runner._do(lambda session: self._runner._client.files.get(session, self.absolute(path, cwd)))

    def read_text(self, path: str, *, cwd: str | None = None, encoding: str = "utf-8", errors: str = "strict") -> str:
        return (self.read_bytes(path, cwd=cwd)).decode(encoding, errors)

    def write_bytes(self, path: str, data: bytes, *, cwd: str | None = None, mode: int = 0o644) -> None:
        """Write a file, or write over it; directories above it are made."""
        target = self.absolute(path, cwd)
        self._runner._do(lambda session: self._runner._client.files.put(session, {target: data}, mode=mode))

    def write_text(
        self,
        path: str,
        text: str,
        *,
        cwd: str | None = None,
        encoding: str = "utf-8",
        errors: str = "strict",
        mode: int = 0o644,
    ) -> None:
        self.write_bytes(path, text.encode(encoding, errors), cwd=cwd, mode=mode)

    # -- streams ---------------------------------------------------------------------------------------

    def read_stream(self, path: str, *, cwd: str | None = None) -> Generator[bytes, None, None]:
        """A file's bytes as they come; what is not taken is not sent. Raises `UnavailableError` rather than end early."""
        target = self.absolute(path, cwd)

        def begin(session: str) -> tuple[Generator[bytes, None, None], bytes]:
            content = self._runner._client.files.read(session, target)
            return content, next(content, b"")

        content, first = self._runner._do(begin)
        with closing(content):
            if first:
                yield first
            for chunk in content:
                yield chunk

    def write_stream(
        self, path: str, chunks: Iterable[bytes], *, size: int | None = None, cwd: str | None = None, mode: int = 0o644
    ) -> None:
        """Write a file of what comes. With `size` (bytes) it goes straight through, and a stream of another size is refused;
        without, it is kept in a temporary file first. Nothing is sent twice: a session that is over is resumed before, not
        after."""
        if size is None:
            with tempfile.TemporaryFile() as content:
                size = 0
                for chunk in chunks:
                    in_thread(content.write, chunk)
                    size += len(chunk)
                content.seek(0)
                self.write_stream(path, chunks_of(content), size=size, cwd=cwd, mode=mode)
            return
        target = self.absolute(path, cwd)
        session = self._runner._ready()
        self._runner._client.files.write_archive(session, _archived(target, chunks, size, mode))

    # -- directories of this machine -----------------------------------------------------------------------

    def upload(self, source: str | Path, target: str, *, cwd: str | None = None) -> int:
        """Copy a file or directory of this machine to `target`; the bytes of the files. Links count as what they point to."""
        path = self.absolute(target, cwd)
        with tempfile.TemporaryFile() as archive:
            count = in_thread(archives.pack, Path(source), path, archive)

            def send(session: str) -> None:
                archive.seek(0)
                self._runner._client.files.write_archive(session, chunks_of(archive))

            self._runner._do(send)
        return count

    def download(self, source: str, target: str | Path, *, cwd: str | None = None) -> int:
        """Copy a file or directory to `target` on this machine; the bytes of the files. What a sandbox sends is not believed:
        nothing is written outside of `target` (`hostile_archive`)."""
        path = self.absolute(source, cwd)
        if not self.is_dir(path):
            return write_file(Path(target), self.read_stream(path))
        packed = f"{GUEST_TEMPORARY}/.hutch-cp-{secrets.token_hex(8)}.tar.gz"
        try:
            done = self._runner.run_command("tar", ["-czf", packed, "-C", path, "."])
            if done.returncode != 0:
                said = done.stderr.strip()[:1000]
                raise InternalError("copy_failed", f"tar in the sandbox ended with {done.returncode}: {said}")
            with tempfile.TemporaryFile() as archive:
                with closing(self.read_stream(packed)) as content:
                    for chunk in content:
                        in_thread(archive.write, chunk)
                archive.seek(0)
                return in_thread(archives.unpack, archive, Path(target))
        finally:
            # What went wrong before matters more.
            with suppress(HutchError):
                self._runner.run_command("rm", ["-f", packed])

    # -- names ---------------------------------------------------------------------------------------------

    def mkdir(self, path: str, *, cwd: str | None = None, recursive: bool = True) -> None:
        """Make a directory; with `recursive` those above it too, and one that is there is no error."""
        target = self.absolute(path, cwd)
        self._runner._do(lambda session: self._runner._client.files.mkdir(session, target, recursive=recursive))

    def exists(self, path: str, *, cwd: str | None = None) -> bool:
        """Whether something is there; a link counts as what it points to."""
        return self._test("-e", self.absolute(path, cwd))

    def is_file(self, path: str, *, cwd: str | None = None) -> bool:
        return self._test("-f", self.absolute(path, cwd))

    def is_dir(self, path: str, *, cwd: str | None = None) -> bool:
        return self._test("-d", self.absolute(path, cwd))

    def listdir(self, path: str = ".", *, cwd: str | None = None) -> list[DirectoryEntry]:
        """What is in a directory, by name."""
        target = self.absolute(path, cwd)
        return results.entries(target, (self._script(results.LIST, [target])).stdout)

    def stat(self, path: str, *, cwd: str | None = None) -> FileStat:
        """Size, kind, mode, owner and time of modification; of a link its own."""
        return results.status((self._script(results.STAT, [self.absolute(path, cwd)])).stdout)

    def remove(self, path: str, *, cwd: str | None = None, recursive: bool = False, missing_ok: bool = False) -> None:
        """Remove a file or an empty directory; with `recursive` whatever it is."""
        try:
            self._script(results.REMOVE_ALL if recursive else results.REMOVE, [self.absolute(path, cwd)])
        except NotFoundError:
            if not missing_ok:
                raise

    def rename(self, source: str, destination: str, *, cwd: str | None = None) -> None:
        """Move; a file that is there is replaced."""
        self._script(results.RENAME, [self.absolute(source, cwd), self.absolute(destination, cwd)])

    def _test(self, what: str, path: str) -> bool:
        return (self._runner.run_command("test", [what, path], cwd="/")).returncode == 0

    def _script(self, script: str, arguments: Sequence[str]) -> CompletedCommand:
        done = self._runner.run_command("sh", ["-c", script, "hutch-fs", *arguments], cwd="/")
        if done.returncode != 0:
            raise results.refused(arguments[0], done)
        return done


def _archived(path: str, chunks: Iterable[bytes], size: int, mode: int) -> Generator[bytes, None, None]:
    """An archive of one file. Broken off when there is more or less of it than was said."""
    yield archives.head(path, size, mode)
    sent = 0
    for chunk in chunks:
        sent += len(chunk)
        if sent > size:
            break
        yield chunk
    if sent != size:
        raise BadRequestError("bad_option", f"The stream has not the {size} bytes that were announced; nothing was written.")
    yield archives.tail(size)
