"""The files in the disk of a virtual machine, taken out of it and put into it by a machine that is started for that alone.

No host mounts a file system that a guest has written: a kernel's drivers for file systems believe too much of what they read. So
a machine with the guest's own kernel does it, jailed like any other and without a network. Its agent stays in the initramfs,
where it mounts the disk and nothing else, and its program sends the files as a stream or takes such a stream
(`hutch.blobs.stream`). No program of the disk runs. What a broken or hostile disk does to that kernel is the end of the machine,
and an error here.

The machine writes to the disk in both directions: a file system that was not unmounted has a journal to be replayed first. So it
gets a copy.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from hutch.isolation import tsc
from hutch.isolation.qemu import Qemu
from hutch.isolation.qemu_command import MIB, Accelerator, kernel_line_alone
from hutch.isolation.qemu_probe import Booted, with_machine
from hutch.wire import Stream
from hutch.wire.connection import ConnectionClosed, Data

T = TypeVar("T")
MEMORY_BYTES = 384 * MIB
"""Two million names of one directory fit into it, beside the kernel's own."""
PROGRAM = b"/init"
LEAST_S = 60.0
BYTES_PER_S = 1 * MIB
"""What an emulated machine on a busy host does at least, small files included. KVM does a hundred times that."""
MAX_SAID_BYTES = 4096
MAX_SHOWN = 300
LAST_WORDS_S = 0.2

Send = Callable[[bytes], Awaitable[None]]


class ConversionFailed(OSError):
    """A machine can't take files out of this disk, or put these in; the text has what it said."""


def time_limit_s(size_bytes: int) -> float:
    """How long what has so many bytes may take, beside the machine's start."""
    return LEAST_S + size_bytes / BYTES_PER_S


async def take_out(
    qemu: Qemu,
    layer: Path,
    keep: Callable[[AsyncIterator[bytes]], Awaitable[T]],
    *,
    size_bytes: int,
    parent: Path,
    cgroup: str,
) -> T:
    """Have a machine send the files of the disk in `layer`, which has `size_bytes`, and `keep` take the stream. Raises `OSError`,
    and what `keep` raises."""

    async def use(booted: Booted) -> T:
        stream = await _start(booted, b"--send-disk", stdin=False)

        async def pieces() -> AsyncGenerator[bytes]:
            said = b""
            while (item := await stream.next()) is not None:
                if not isinstance(item, Data):
                    _check(item.decode(dict[str, object]), said)
                elif item.channel == 1:
                    yield bytes(item.data)
                else:
                    said = (said + item.data)[:MAX_SAID_BYTES]

        async with contextlib.aclosing(pieces()) as sent:
            return await keep(sent)

    return await _with_machine(qemu, layer, use, size_bytes, parent, cgroup)


async def put_in(
    qemu: Qemu,
    layer: Path,
    give: Callable[[Send], Awaitable[None]],
    *,
    size_bytes: int,
    parent: Path,
    cgroup: str,
) -> None:
    """Have a machine put files into the empty disk in `layer`: `give` sends their stream. Raises `OSError`, and what `give`
    raises."""

    async def use(booted: Booted) -> None:
        stream = await _start(booted, b"--receive-disk", stdin=True)

        async def given() -> None:
            await give(lambda piece: stream.send_data(piece, 0))
            await stream.send_event({"eof": True})

        giving, ended = asyncio.ensure_future(given()), asyncio.ensure_future(_ended(stream))
        try:
            # A program that has ended takes nothing any more, and nobody else would tell.
            await asyncio.wait({giving, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                await giving
            await ended
        finally:
            for task in (giving, ended):
                task.cancel()
            await asyncio.gather(giving, ended, return_exceptions=True)

    await _with_machine(qemu, layer, use, size_bytes, parent, cgroup)


async def _with_machine(
    qemu: Qemu, layer: Path, use: Callable[[Booted], Awaitable[T]], size_bytes: int, parent: Path, cgroup: str
) -> T:
    limit_s = time_limit_s(size_bytes)

    async def in_time(booted: Booted) -> T:
        try:
            async with asyncio.timeout(limit_s):
                return await use(booted)
        except TimeoutError as error:
            raise TimeoutError(f"the machine was not done within {limit_s:.0f} s") from error
        except ConnectionClosed as error:
            # Its console's last words are read by a thread that ends with it.
            await asyncio.sleep(LAST_WORDS_S)
            raise ConversionFailed(qemu.last_words(booted.plan.directory) or "the machine ended before it was done") from error

    return await with_machine(
        qemu,
        # It wants an image, and mounts none.
        (qemu.guest.probe_root,),
        in_time,
        deadline_s=qemu.traits.boot_timeout_s,
        parent=parent,
        memory_bytes=MEMORY_BYTES,
        cgroup=cgroup,
        kernel_line=kernel_line_alone(tsc.frequency_khz() if qemu.accelerator is Accelerator.TCG else None),
        layer=layer,
    )


async def _start(booted: Booted, option: bytes, *, stdin: bool) -> Stream:
    params = {"id": "convert", "argv": [PROGRAM, option], "env": {}, "user": "root", "stdin": stdin}
    stream = booted.connection.open("command.start", params)
    # Not ended: that would detach us from the command.
    await stream.reply()
    return stream


async def _ended(stream: Stream) -> None:
    """Wait for the end of a program. Raises `ConversionFailed` with what it said, unless that is a success."""
    said = b""
    while (item := await stream.next()) is not None:
        if isinstance(item, Data):
            said = (said + item.data)[:MAX_SAID_BYTES]
        else:
            _check(item.decode(dict[str, object]), said)
            return
    raise ConversionFailed("the machine did not say how its program ended")


def _check(event: dict[str, object], said: bytes) -> None:
    """Raises `ConversionFailed` for the end of a program that failed."""
    ended = event.get("exit")
    code = ended.get("exit_code") if isinstance(ended, dict) else None
    if code != 0:
        # What a guest made up may be in it.
        shown = "".join(letter if letter.isprintable() else "?" for letter in said.decode(errors="replace").strip())
        raise ConversionFailed(shown.removeprefix("hutch-agent: ")[:MAX_SHOWN] or f"its program ended with {code}")
