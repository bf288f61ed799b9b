"""The files of a sandbox or session: `sandbox.fs`."""

from __future__ import annotations

import posixpath
import secrets
import tempfile
from collections.abc import AsyncGenerator, AsyncIterable, Sequence
from contextlib import aclosing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hutch.client import archives, results
from hutch.client._async.local import chunks_of, write_file
from hutch.client._async.waiting import in_thread
from hutch.client.results import CompletedCommand, DirectoryEntry, FileStat
from hutch.errors import BadRequestError, HutchError, InternalError, NotFoundError

if TYPE_CHECKING:
    from hutch.client._async.runner import Runner

GUEST_TEMPORARY = "/tmp"  # noqa: S108 - the guest's, not ours


class AsyncFilesystem:
    """Relative paths start at `cwd`, or at the session's working directory. Writing is done as the sandbox's user.

    Every method raises `NotFoundError` for what is not there, and `BadRequestError` with the sandbox's words (`file_error`).
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def absolute(self, path: str, cwd: str | None = None) -> str:
        """Where a path is."""
        return posixpath.normpath(posixpath.join(self._runner.cwd or "/", cwd or "", path))

    # -- whole files -----------------------------------------------------------------------------------

    async def read_bytes(self, path: str, *, cwd: str | None = None) -> bytes:
        """A file, whole, in memory; `read_stream` is for large ones."""
        return await self._runner._do(lambda session: self._runner._client.files.get(session, self.absolute(path, cwd)))

    async def read_text(self, path: str, *, cwd: str | None = None, encoding: str = "utf-8", errors: str = "strict") -> str:
        return (await self.read_bytes(path, cwd=cwd)).decode(encoding, errors)

    async def write_bytes(self, path: str, data: bytes, *, cwd: str | None = None, mode: int = 0o644) -> None:
        """Write a file, or write over it; directories above it are made."""
        target = self.absolute(path, cwd)
        await self._runner._do(lambda session: self._runner._client.files.put(session, {target: data}, mode=mode))

    async def write_text(
        self,
        path: str,
        text: str,
        *,
        cwd: str | None = None,
        encoding: str = "utf-8",
        errors: str = "strict",
        mode: int = 0o644,
    ) -> None:
        await self.write_bytes(path, text.encode(encoding, errors), cwd=cwd, mode=mode)

    # -- streams ---------------------------------------------------------------------------------------

    async def read_stream(self, path: str, *, cwd: str | None = None) -> AsyncGenerator[bytes, None]:
        """A file's bytes as they come; what is not taken is not sent. Raises `UnavailableError` rather than end early."""
        target = self.absolute(path, cwd)

        async def begin(session: str) -> tuple[AsyncGenerator[bytes, None], bytes]:
            content = self._runner._client.files.read(session, target)
            return content, await anext(content, b"")

        content, first = await self._runner._do(begin)
        async with aclosing(content):
            if first:
                yield first
            async for chunk in content:
                yield chunk

    async def write_stream(
        self, path: str, chunks: AsyncIterable[bytes], *, size: int | None = None, cwd: str | None = None, mode: int = 0o644
    ) -> None:
        """Write a file of what comes. With `size` (bytes) it goes straight through, and a stream of another size is refused;
        without, it is kept in a temporary file first. Nothing is sent twice: a session that is over is resumed before, not
        after."""
        if size is None:
            with tempfile.TemporaryFile() as content:
                size = 0
                async for chunk in chunks:
                    await in_thread(content.write, chunk)
                    size += len(chunk)
                content.seek(0)
                await self.write_stream(path, chunks_of(content), size=size, cwd=cwd, mode=mode)
            return
        target = self.absolute(path, cwd)
        session = await self._runner._ready()
        await self._runner._client.files.write_archive(session, _archived(target, chunks, size, mode))

    # -- directories of this machine -----------------------------------------------------------------------

    async def upload(self, source: str | Path, target: str, *, cwd: str | None = None) -> int:
        """Copy a file or directory of this machine to `target`; the bytes of the files. Links count as what they point to."""
        path = self.absolute(target, cwd)
        with tempfile.TemporaryFile() as archive:
            count = await in_thread(archives.pack, Path(source), path, archive)

            async def send(session: str) -> None:
                archive.seek(0)
                await self._runner._client.files.write_archive(session, chunks_of(archive))

            await self._runner._do(send)
        return count

    async def download(self, source: str, target: str | Path, *, cwd: str | None = None) -> int:
        """Copy a file or directory to `target` on this machine; the bytes of the files. What a sandbox sends is not believed:
        nothing is written outside of `target` (`hostile_archive`)."""
        path = self.absolute(source, cwd)
        if not await self.is_dir(path):
            return await write_file(Path(target), self.read_stream(path))
        packed = f"{GUEST_TEMPORARY}/.hutch-cp-{secrets.token_hex(8)}.tar.gz"
        try:
            done = await self._runner.run_command("tar", ["-czf", packed, "-C", path, "."])
            if done.returncode != 0:
                said = done.stderr.strip()[:1000]
                raise InternalError("copy_failed", f"tar in the sandbox ended with {done.returncode}: {said}")
            with tempfile.TemporaryFile() as archive:
                async with aclosing(self.read_stream(packed)) as content:
                    async for chunk in content:
                        await in_thread(archive.write, chunk)
                archive.seek(0)
                return await in_thread(archives.unpack, archive, Path(target))
        finally:
            # What went wrong before matters more.
            with suppress(HutchError):
                await self._runner.run_command("rm", ["-f", packed])

    # -- names ---------------------------------------------------------------------------------------------

    async def mkdir(self, path: str, *, cwd: str | None = None, recursive: bool = True) -> None:
        """Make a directory; with `recursive` those above it too, and one that is there is no error."""
        target = self.absolute(path, cwd)
        await self._runner._do(lambda session: self._runner._client.files.mkdir(session, target, recursive=recursive))

    async def exists(self, path: str, *, cwd: str | None = None) -> bool:
        """Whether something is there; a link counts as what it points to."""
        return await self._test("-e", self.absolute(path, cwd))

    async def is_file(self, path: str, *, cwd: str | None = None) -> bool:
        return await self._test("-f", self.absolute(path, cwd))

    async def is_dir(self, path: str, *, cwd: str | None = None) -> bool:
        return await self._test("-d", self.absolute(path, cwd))

    async def listdir(self, path: str = ".", *, cwd: str | None = None) -> list[DirectoryEntry]:
        """What is in a directory, by name."""
        target = self.absolute(path, cwd)
        return results.entries(target, (await self._script(results.LIST, [target])).stdout)

    async def stat(self, path: str, *, cwd: str | None = None) -> FileStat:
        """Size, kind, mode, owner and time of modification; of a link its own."""
        return results.status((await self._script(results.STAT, [self.absolute(path, cwd)])).stdout)

    async def remove(self, path: str, *, cwd: str | None = None, recursive: bool = False, missing_ok: bool = False) -> None:
        """Remove a file or an empty directory; with `recursive` whatever it is."""
        try:
            await self._script(results.REMOVE_ALL if recursive else results.REMOVE, [self.absolute(path, cwd)])
        except NotFoundError:
            if not missing_ok:
                raise

    async def rename(self, source: str, destination: str, *, cwd: str | None = None) -> None:
        """Move; a file that is there is replaced."""
        await self._script(results.RENAME, [self.absolute(source, cwd), self.absolute(destination, cwd)])

    async def _test(self, what: str, path: str) -> bool:
        return (await self._runner.run_command("test", [what, path], cwd="/")).returncode == 0

    async def _script(self, script: str, arguments: Sequence[str]) -> CompletedCommand:
        done = await self._runner.run_command("sh", ["-c", script, "hutch-fs", *arguments], cwd="/")
        if done.returncode != 0:
            raise results.refused(arguments[0], done)
        return done


async def _archived(path: str, chunks: AsyncIterable[bytes], size: int, mode: int) -> AsyncGenerator[bytes, None]:
    """An archive of one file. Broken off when there is more or less of it than was said."""
    yield archives.head(path, size, mode)
    sent = 0
    async for chunk in chunks:
        sent += len(chunk)
        if sent > size:
            break
        yield chunk
    if sent != size:
        raise BadRequestError("bad_option", f"The stream has not the {size} bytes that were announced; nothing was written.")
    yield archives.tail(size)
