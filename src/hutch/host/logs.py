"""A command's output: stored up to a cap, and handed to any number of readers.

Output is a sequence of pieces, each on a channel (1 standard output, 2 standard error), addressed by an *offset* that
counts the bytes of both. Up to the cap every piece is appended to a file as a 5-byte header and its bytes; a reader that
starts late or falls behind takes it from there. Past the cap nothing more is stored: readers that are attached still get
everything, and the producer waits for the slowest of them; readers that come later get a line that says what is missing.

Recent pieces are also kept in memory while somebody reads, so that following costs no reads of the file.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
from collections import deque
from dataclasses import dataclass
from pathlib import Path

HEADER = struct.Struct("<BI")
RECENT_BYTES = 1024 * 1024
READ_BYTES = 256 * 1024
# What a piece costs beside its bytes; a process that writes single bytes must not make the memory grow.
PIECE_OVERHEAD_BYTES = 128
STDOUT, STDERR = 1, 2

Piece = tuple[int, bytes]
"""Channel and bytes."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A piece in memory. `file_end` is where its record ends in the file, or -1 when it is not stored."""

    offset: int
    channel: int
    data: bytes
    file_end: int

    @property
    def cost(self) -> int:
        return len(self.data) + PIECE_OVERHEAD_BYTES


class Output:
    """The output of one command. `end` is the offset of what comes next.

    Pieces are numbered from 0; the first `stored` of them are records of the file, one each.
    """

    def __init__(self, path: Path, cap_bytes: int) -> None:
        self.path = path
        self.cap_bytes = cap_bytes
        self.end = 0
        self.stored = 0
        self.full = False
        self.closed = False
        self._size = 0
        self._descriptor = -1
        self._recent: deque[Kept] = deque()
        self._recent_cost = 0
        self._next = 0
        self._readers: set[Reader] = set()
        self._room = asyncio.Event()

    @classmethod
    def recover(cls, path: Path, cap_bytes: int) -> Output:
        """The output that a predecessor stored. A piece that was cut off by its death is dropped."""
        output = cls(path, cap_bytes)
        with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
            total = os.fstat(file.fileno()).st_size
            while output._size + HEADER.size <= total:
                file.seek(output._size)
                _, length = HEADER.unpack(file.read(HEADER.size))
                if output._size + HEADER.size + length > total:
                    break
                output._size += HEADER.size + length
                output.end += length
                output.stored += 1
            file.truncate(output._size)
        output._next = output.stored
        output.full = output._size + HEADER.size >= cap_bytes
        return output

    # -- producing ---------------------------------------------------------------------------------

    @property
    def wanted(self) -> bool:
        """Whether somebody or the file still takes output."""
        return not self.full or bool(self._readers)

    async def append(self, channel: int, data: bytes) -> None:
        """Add output. Past the cap this waits until every reader has room."""
        if not self.full:
            room = self.cap_bytes - self._size - HEADER.size
            if len(data) > room:
                if room > 0:
                    self._add(channel, data[:room], self._store(channel, data[:room]))
                data = data[max(0, room) :]
                self.full = True
            else:
                self._add(channel, data, self._store(channel, data))
                return
        while self._readers and self._recent_cost > RECENT_BYTES:
            self._room.clear()
            await self._room.wait()
        self._add(channel, data, -1)

    def skip(self, size: int) -> None:
        """The guest dropped `size` bytes because nobody wanted them."""
        self.end += size

    def _add(self, channel: int, data: bytes, file_end: int) -> None:
        if self._readers:
            piece = Kept(self.end, channel, data, file_end)
            self._recent.append(piece)
            self._recent_cost += piece.cost
        self.end += len(data)
        self._next += 1
        for reader in self._readers:
            reader.wake.set()
        self._trim()

    def _store(self, channel: int, data: bytes) -> int:
        """Append a record; where it ends, or -1 when the disk is full: then nothing is stored any more."""
        if self._descriptor < 0:
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            whole = os.writev(self._descriptor, (HEADER.pack(channel, len(data)), data)) == HEADER.size + len(data)
        except OSError:
            whole = False
        if not whole:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
            self.full = True
            return -1
        self._size += HEADER.size + len(data)
        self.stored += 1
        return self._size

    def _trim(self) -> None:
        """Drop pieces from memory that every reader has, or can take from the file."""
        slowest = min((reader.number for reader in self._readers), default=self._next)
        first = self._next - len(self._recent)
        while self._recent and (first < slowest or (self._recent_cost > RECENT_BYTES and first < self.stored)):
            self._recent_cost -= self._recent.popleft().cost
            first += 1
        if self._recent_cost <= RECENT_BYTES or not self._readers:
            self._room.set()

    def close(self) -> None:
        """No more output comes."""
        self.closed = True
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        for reader in self._readers:
            reader.wake.set()

    # -- reading -----------------------------------------------------------------------------------

    def reader(self) -> Reader:
        """A reader from the start; close it."""
        reader = Reader(self)
        self._readers.add(reader)
        return reader

    def leave(self, reader: Reader) -> None:
        self._readers.discard(reader)
        self._trim()

    def kept(self, number: int) -> Kept | None:
        """Piece `number`, if it is in memory."""
        first = self._next - len(self._recent)
        return self._recent[number - first] if first <= number < self._next else None

    def first_kept(self) -> int:
        return self._next - len(self._recent)

    def passed(self) -> None:
        """A reader went on."""
        if self._recent:
            self._trim()


class Reader:
    """One reader's place in an output: the number and offset of the piece that it takes next."""

    def __init__(self, output: Output) -> None:
        self.number = 0
        self.wake = asyncio.Event()
        self._output = output
        self._offset = 0
        self._file = -1
        self._file_position = 0

    async def next(self) -> Piece | None:
        """The next output, or None after the last. Pieces that lie together on one channel may come as one."""
        while True:
            piece = self._take()
            if piece is not None:
                return piece
            if self._output.closed:
                missing = self._offset < self._output.end
                self._offset = self._output.end
                return self._missing() if missing else None
            self.wake.clear()
            await self.wake.wait()

    def _take(self) -> Piece | None:
        output = self._output
        kept = output.kept(self.number)
        if kept is None:
            if self.number < output.stored:
                return self._from_file()
            if self.number < output.first_kept():
                # Attached late: what lay between the file and memory is gone.
                self.number = output.first_kept()
                kept = output.kept(self.number)
                if kept is None:
                    return None
            else:
                return None
        if kept.offset > self._offset:
            self._offset = kept.offset
            return self._missing()
        self.number += 1
        self._offset = kept.offset + len(kept.data)
        if kept.file_end >= 0:
            self._file_position = kept.file_end
        output.passed()
        return kept.channel, kept.data

    def _missing(self) -> Piece:
        return STDERR, f"\n[hutch: output beyond the {self._output.cap_bytes} bytes that are stored was dropped]\n".encode()

    def _from_file(self) -> Piece:
        """The stored pieces that come next and are on one channel, up to `READ_BYTES`."""
        if self._file < 0:
            self._file = os.open(self._output.path, os.O_RDONLY | os.O_CLOEXEC)
        buffer = os.pread(self._file, READ_BYTES + HEADER.size, self._file_position)
        channel, length = HEADER.unpack_from(buffer)
        if HEADER.size + length > len(buffer):
            buffer = os.pread(self._file, HEADER.size + length, self._file_position)
        parts, position, left = [], 0, self._output.stored - self.number
        while left and position + HEADER.size <= len(buffer):
            following, length = HEADER.unpack_from(buffer, position)
            if following != channel or position + HEADER.size + length > len(buffer):
                break
            parts.append(buffer[position + HEADER.size : position + HEADER.size + length])
            position += HEADER.size + length
            left -= 1
        self.number += len(parts)
        self._file_position += position
        self._offset += position - HEADER.size * len(parts)
        self._output.passed()
        return channel, b"".join(parts)

    def close(self) -> None:
        self._output.leave(self)
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
