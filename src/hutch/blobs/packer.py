"""A packer: one job in a process of its own, so that what a guest made takes no memory and no time from the host.

    in    job (length, MessagePack), then pieces of the input (length, bytes), a length of 0 at its end
    out   pieces (`D`, length, bytes), then the result (`R`) or an error (`E`) as MessagePack

It ends with its host: when nobody holds the other end of its input any more.
"""

from __future__ import annotations

import os
import resource
import struct
import sys
import threading
from collections.abc import Iterator
from typing import BinaryIO

import msgspec

from hutch.blobs.jobs import AnyJob, ImportJob, run
from hutch.errors import HutchError, InternalError

LENGTH = struct.Struct(">I")
FRAME = struct.Struct(">cI")
MAX_MEMORY_BYTES = 4 * 1024 * 1024 * 1024
"""Of private memory; the rest is for a bug."""
NICE = 19


class Failed(msgspec.Struct, frozen=True):
    """A `HutchError` on its way."""

    status: int
    code: str
    message: str


def main() -> int:
    """Do the job that standard input asks for."""
    given, out = sys.stdin.buffer, sys.stdout.buffer
    job = msgspec.msgpack.decode(_exactly(given, LENGTH.unpack(_exactly(given, LENGTH.size))[0]), type=AnyJob)
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    os.umask(0o077)
    if job.patient:
        os.nice(NICE)
    pieces = _pieces(given)
    if not isinstance(job, ImportJob):
        threading.Thread(target=_end_with_host, args=(given,), daemon=True).start()
    try:
        _write(out, b"R", msgspec.msgpack.encode(run(job, pieces, lambda piece: _write(out, b"D", piece))))
    except HutchError as error:
        _write(out, b"E", msgspec.msgpack.encode(Failed(error.status, error.code, error.message)))
    except MemoryError:
        fault = InternalError("packing_failed", "The snapshot needs more memory than a packer may have.")
        _write(out, b"E", msgspec.msgpack.encode(Failed(fault.status, fault.code, fault.message)))
    return 0


def _write(out: BinaryIO, kind: bytes, content: bytes) -> None:
    out.write(FRAME.pack(kind, len(content)) + content)
    out.flush()


def _pieces(given: BinaryIO) -> Iterator[bytes]:
    while length := LENGTH.unpack(_exactly(given, LENGTH.size))[0]:
        yield _exactly(given, length)


def _exactly(given: BinaryIO, size: int) -> bytes:
    found = given.read(size)
    if len(found) < size:
        os._exit(1)
    return found


def _end_with_host(given: BinaryIO) -> None:
    given.read(1)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
