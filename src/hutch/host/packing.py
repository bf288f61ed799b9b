"""Packers of this host: processes that read and write what guests made (`hutch.blobs.packer`)."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterable, Awaitable, Callable
from typing import Protocol, TypeVar

import msgspec

from hutch.blobs.jobs import FRAME, LENGTH, AnyJob, Failed
from hutch.errors import InternalError, from_wire

T = TypeVar("T")

Send = Callable[[bytes], Awaitable[None]]


class Packing(Protocol):
    """Does jobs."""

    async def run(self, job: AnyJob, kind: type[T], given: AsyncIterable[bytes] | None = None, send: Send | None = None) -> T:
        """A job and its result. `given` is its input, `send` takes its output. Raises `HutchError`."""


class Packers:
    """Does each job in a process of its own, which ends when its caller does."""

    async def run(self, job: AnyJob, kind: type[T], given: AsyncIterable[bytes] | None = None, send: Send | None = None) -> T:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "hutch.blobs.packer", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdin is not None
        assert process.stdout is not None
        feeding = asyncio.ensure_future(_feed(process.stdin, job, given))
        result = asyncio.ensure_future(_result(process.stdout, kind, send))
        try:
            await asyncio.wait({feeding, result}, return_when=asyncio.FIRST_COMPLETED)
            if not result.done():
                # An input that breaks off has no result.
                await feeding
            return await result
        finally:
            for task in (feeding, result):
                task.cancel()
            await asyncio.gather(feeding, result, return_exceptions=True)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def _feed(to: asyncio.StreamWriter, job: AnyJob, given: AsyncIterable[bytes] | None) -> None:
    raw = msgspec.msgpack.encode(job)
    to.write(LENGTH.pack(len(raw)) + raw)
    # A packer that has refused does not read on; its result says why.
    with contextlib.suppress(ConnectionError):
        await to.drain()
        if given is not None:
            async for piece in given:
                if piece:
                    to.write(LENGTH.pack(len(piece)) + piece)
                    await to.drain()
            to.write(LENGTH.pack(0))
            await to.drain()


async def _result(source: asyncio.StreamReader, kind: type[T], send: Send | None) -> T:
    while True:
        try:
            tag, size = FRAME.unpack(await source.readexactly(FRAME.size))
            content = await source.readexactly(size)
        except asyncio.IncompleteReadError as error:
            raise InternalError("packing_failed", "The process that packs snapshots ended in the middle of its work.") from error
        if tag == b"R":
            return msgspec.msgpack.decode(content, type=kind)
        if tag == b"E":
            failed = msgspec.msgpack.decode(content, type=Failed)
            raise from_wire(failed.status, failed.code, failed.message)
        if send is not None:
            await send(content)
