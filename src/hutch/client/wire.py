"""What answers mean: JSON, the lines of a stream, and errors. No sockets. A server is believed nothing: what is too large, no
JSON or of another shape is an error of `hutch.errors`, never a crash or a guess."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import msgspec

from hutch.client.models import Command
from hutch.errors import GoneError, HutchError, InternalError, from_wire

T = TypeVar("T")
STDIN_CHUNK_BYTES = 512 * 1024
"""Most of one write to a command; bodies may have 1 MB, and base64 makes a third more of it."""
MAX_ERROR_BYTES = 64 * 1024
MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""Most of a JSON answer. A page of a list with the largest policies is a fraction of it."""
MAX_RECORD_BYTES = 8 * 1024 * 1024
"""Most of one line of a stream. Servers send 256 KiB of output at once, which escapes make six times as long."""


@dataclass(frozen=True, slots=True)
class Started:
    """A command runs."""

    command: Command


@dataclass(frozen=True, slots=True)
class Output:
    """Text that the process wrote. Bytes that are not UTF-8 arrive as U+FFFD; copy files for exact bytes."""

    stream: Literal["stdout", "stderr"]
    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The end; `command.exit_code` is set."""

    command: Command


class Fault(msgspec.Struct):
    """An error within a stream."""

    code: str = "stream_error"
    message: str = "The stream failed."


class Record(msgspec.Struct):
    """Any line of a stream: a command, output, or an error."""

    command: Command | None = None
    stream: str = ""
    data: str | Fault = ""


_RECORD = msgspec.json.Decoder(Record)


class Lines:
    """Bytes in, records out."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[Record]:
        """The records that are whole with these bytes. Raises `InternalError`."""
        *whole, rest = chunk.split(b"\n")
        if whole:
            whole[0] = b"".join([*self._rest, whole[0]])
            self._rest, self._size = [], 0
        if rest:
            self._rest.append(rest)
            self._size += len(rest)
            if self._size > MAX_RECORD_BYTES:
                raise InternalError("unexpected_answer", f"The server sent a line of more than {MAX_RECORD_BYTES} bytes.")
        for line in whole:
            if line:
                yield _record(line)

    def end(self) -> None:
        """The stream is over. A line without its newline is a broken answer; raises `InternalError`."""
        if self._rest:
            raise InternalError("stream_ended_early", "The server ended the stream in the middle of a line.")


def _record(line: bytes) -> Record:
    try:
        return _RECORD.decode(line)
    except (msgspec.DecodeError, RecursionError):
        return decode(line, Record)


def output_of(record: Record) -> Output:
    """Output, or the error that the record reports, raised."""
    if isinstance(record.data, Fault) or record.stream == "error":
        raise _reported(record.data)
    if record.stream == "stdout":
        return Output("stdout", record.data)
    if record.stream == "stderr":
        return Output("stderr", record.data)
    raise InternalError("unexpected_answer", "The server sent a record that is neither output nor a command.")


def _reported(fault: Fault | str) -> HutchError:
    if isinstance(fault, str):
        return InternalError("stream_error", fault)
    if fault.code == "sandbox_stopped":
        return GoneError(fault.code, fault.message)
    return from_wire(400, fault.code, fault.message)


def written(error: HutchError, known: int) -> int:
    """How much of a command's input was taken before it stopped to read; `known` where the error does not say."""
    count = error.details.get("bytesWritten")
    return count if isinstance(count, int) else known


def decode(raw: bytes, kind: type[T]) -> T:
    """JSON bytes as `kind`. Raises `InternalError` for an answer that this client does not understand."""
    try:
        return msgspec.json.decode(raw or b"{}", type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InternalError("unexpected_answer", f"The server's answer is not understood: {error}.") from error


def error_of(status: int, reason: str, raw: bytes) -> HutchError:
    """The error that an answer reports, also when it is not one of ours (a proxy's page, say)."""
    fallback = f"The server answered {status} {reason} without saying why."
    if 300 <= status < 400:
        return InternalError(
            "unexpected_answer",
            f"The server answered {status}: it sends elsewhere. Redirects are not followed, because the token would go along; "
            "give the URL that it means.",
        )
    try:
        reported: Any = json.loads(raw)["error"]
        code, message = reported["code"], reported["message"]
        details = {key: value for key, value in reported.items() if key not in ("code", "message")}
    except (ValueError, KeyError, TypeError, RecursionError):
        return from_wire(status, "unexpected_answer", fallback)
    if not isinstance(code, str) or not isinstance(message, str):
        return from_wire(status, "unexpected_answer", fallback)
    return from_wire(status, code, message, details)
