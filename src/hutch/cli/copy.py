"""`hutch cp`: files in and out, by way of an archive."""

from __future__ import annotations

import posixpath
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from hutch.cli import options, output, stdio
from hutch.cli.connection import with_client
from hutch.client import AsyncClient, AsyncSandbox
from hutch.errors import BadRequestError, NotFoundError

CHUNK_BYTES = 256 * 1024


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

    async def work(client: AsyncClient) -> None:
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


async def _put(client: AsyncClient, source: str, target: Remote) -> int:
    """Copy into the sandbox; the bytes of the files. An existing directory as target takes the source below its own name."""
    fs = (await _awake(client, target.name)).fs
    path = fs.absolute(target.path or ".")
    if source != "-":
        if target.path.endswith("/") or target.path in ("", ".") or await fs.is_dir(path):
            path = fs.absolute(local_name(source), path)
        return await fs.upload(source, path)
    if path == "/":
        raise BadRequestError("bad_option", "The target should be a path below / in the sandbox.")
    count = 0

    async def counted() -> AsyncIterator[bytes]:
        nonlocal count
        async for chunk in stdio.chunks(sys.stdin.fileno(), CHUNK_BYTES):
            count += len(chunk)
            yield chunk

    await fs.write_stream(path, counted())
    return count


# -- out --------------------------------------------------------------------------------------------


async def _get(client: AsyncClient, source: Remote, target: str) -> int:
    """Copy out of the sandbox; the bytes of the files."""
    fs = (await _awake(client, source.name)).fs
    path = fs.absolute(source.path or ".")
    if target == "-":
        if await fs.is_dir(path):
            raise BadRequestError("bad_option", f"{path} is a directory; only a file can go to standard output.")
        count = 0
        async with aclosing(fs.read_stream(path)) as content:
            async for chunk in content:
                await stdio.write_all(sys.stdout.fileno(), chunk)
                count += len(chunk)
        return count
    try:
        return await fs.download(path, local_target(target, posixpath.basename(path) or "root"))
    except NotFoundError:
        raise NotFoundError("not_found", f"There is no file {path} in sandbox '{source.name}'.") from None


async def _awake(client: AsyncClient, name: str) -> AsyncSandbox:
    """A sandbox, resumed if it stopped and there is something to go on from."""
    sandbox = await client.get_sandbox(name)
    if sandbox.status != "running" and sandbox.current_snapshot_id is not None:
        await sandbox.resume()
    return sandbox
