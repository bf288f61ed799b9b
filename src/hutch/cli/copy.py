"""`hutch cp`: files in and out, by way of an archive."""

from __future__ import annotations

import asyncio
import posixpath
import secrets
import sys
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated

import typer

from hutch.cli import options, output, stdio
from hutch.cli.archive import pack, unpack
from hutch.cli.connection import with_client
from hutch.client import Client, Created
from hutch.errors import BadRequestError, InternalError, NotFoundError

CHUNK_BYTES = 256 * 1024
GUEST_TEMPORARY = "/tmp"  # noqa: S108 - the guest's, not ours


@dataclass(frozen=True, slots=True)
class Remote:
    """`NAME:PATH`; a relative path starts at the session's working directory."""

    name: str
    path: str


def remote(text: str) -> Remote | None:
    """`NAME:PATH`, or None for a local path. A local path with a colon is told apart by a slash before it: `./a:b`."""
    name, separator, path = text.partition(":")
    return Remote(name, path) if separator and name and "/" not in name else None


def copy(
    source: Annotated[str, typer.Argument(help="A path here, NAME:PATH in a sandbox, or - for standard input.")],
    target: Annotated[str, typer.Argument(help="NAME:PATH in a sandbox, a path here, or - for standard output.")],
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Copy a file or directory into a sandbox, or out of one."""
    there, here = remote(target), remote(source)

    async def work(client: Client) -> None:
        if there is not None and here is None:
            count = await _put(client, source, there)
        elif here is not None and there is None:
            count = await _get(client, here, target)
        else:
            raise BadRequestError("bad_option", "Exactly one of the two should be NAME:PATH in a sandbox.")
        if as_json:
            output.write_json({"source": source, "target": target, "bytes": count})

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


def local_name(path: str) -> str:
    """The last part of a local path, also of `.` and `..`."""
    return Path(path).resolve().name


def local_target(target: str, name: str) -> Path:
    """Where a copy called `name` goes: below `target` when that is a directory, or says so with a slash."""
    return Path(target) / name if target.endswith("/") or Path(target).is_dir() else Path(target)


# -- in ---------------------------------------------------------------------------------------------


async def _put(client: Client, source: str, target: Remote) -> int:
    """Copy into the sandbox; the bytes of the files. An existing directory as target takes the source below its own name."""
    created = await client.sandboxes.woken(target.name)
    path = posixpath.normpath(posixpath.join(created.session.cwd, target.path or "."))
    with tempfile.TemporaryFile() as archive:
        if source == "-":
            with tempfile.TemporaryFile() as content:
                async for chunk in stdio.chunks(sys.stdin.fileno(), CHUNK_BYTES):
                    content.write(chunk)
                content.seek(0)
                count = await asyncio.to_thread(pack, content, path, archive)
        else:
            if target.path.endswith("/") or target.path in ("", ".") or await _is_directory(client, created, path):
                path = posixpath.join(path, local_name(source))
            count = await asyncio.to_thread(pack, Path(source), path, archive)
        archive.seek(0)
        await client.files.write_archive(created.session.id, chunks_of(archive), cwd="/")
    return count


async def _is_directory(client: Client, created: Created, path: str) -> bool:
    code, _, _ = await client.commands.run(created.session.id, ["test", "-d", path])
    return code == 0


async def chunks_of(file: IO[bytes]) -> AsyncIterator[bytes]:
    """What a file holds."""
    while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
        yield chunk


# -- out --------------------------------------------------------------------------------------------


async def _get(client: Client, source: Remote, target: str) -> int:
    """Copy out of the sandbox; the bytes of the files."""
    created = await client.sandboxes.woken(source.name)
    path = posixpath.normpath(posixpath.join(created.session.cwd, source.path or "."))
    if await _is_directory(client, created, path):
        if target == "-":
            raise BadRequestError("bad_option", f"{path} is a directory; only a file can go to standard output.")
        return await _get_directory(client, created.session.id, path, target)
    count = 0
    if target == "-":
        async with aclosing(client.files.read(created.session.id, path)) as content:
            async for chunk in content:
                await stdio.write_all(sys.stdout.fileno(), chunk)
                count += len(chunk)
        return count
    local = local_target(target, posixpath.basename(path))
    try:
        return await write_file(local, client.files.read(created.session.id, path))
    except NotFoundError:
        raise NotFoundError("not_found", f"There is no file {path} in sandbox '{source.name}'.") from None


async def write_file(local: Path, content: AsyncGenerator[bytes, None]) -> int:
    """Write what comes into a local file; its bytes. Into a neighbour first: what breaks off must not leave half a file under the
    name. Raises `BadRequestError` (`not_writable`)."""
    partial, count = local.with_name(f".{local.name}.{secrets.token_hex(4)}"), 0
    try:
        with await asyncio.to_thread(partial.open, "xb") as file:
            async with aclosing(content):
                async for chunk in content:
                    file.write(chunk)
                    count += len(chunk)
        partial.replace(local)
    except OSError as error:
        raise BadRequestError("not_writable", f"{local} can't be written: {error.strerror}.") from error
    finally:
        partial.unlink(missing_ok=True)
    return count


async def _get_directory(client: Client, session_id: str, path: str, target: str) -> int:
    """Pack in the sandbox, fetch the archive, unpack what may be unpacked."""
    packed = f"{GUEST_TEMPORARY}/.hutch-cp-{secrets.token_hex(8)}.tar.gz"
    parent, name = posixpath.split(path) if path != "/" else ("/", ".")
    directory = local_target(target, name if name != "." else "root")
    try:
        code, _, complaint = await client.commands.run(
            session_id, ["tar", "-czf", packed, "-C", posixpath.join(parent, name), "."]
        )
        if code != 0:
            raise InternalError("copy_failed", f"tar in the sandbox ended with {code}: {complaint.strip()[:1000]}")
        with tempfile.TemporaryFile() as archive:
            async with aclosing(client.files.read(session_id, packed)) as content:
                async for chunk in content:
                    archive.write(chunk)
            archive.seek(0)
            return await asyncio.to_thread(unpack, archive, directory)
    finally:
        await client.commands.run(session_id, ["rm", "-f", packed])
