"""What a run printed: the result among everything else, taken from a stream that may be endless, binary, or forged.

The SDK writes its result to standard output as one line, `<__notion_output__>JSON</__notion_output__>`, and what was thrown as
another before it, `<__notion_error__>…`, with `&`, `<` and `>` escaped. The worker's own prints are in the same stream, so:

- Only whole lines count, from the first byte to the last: JSON has no line breaks, and tags inside strings mean nothing.
- The last line that is an envelope counts. A worker that prints one later forges a result, but only its own.
- A line longer than `MAX_ENVELOPE_BYTES` is read past. If it began as an envelope, the result is that it was too large.

`hutch.workers.outcome` says what it means for the run. Nothing here holds more than twice `MAX_ENVELOPE_BYTES`, and what is
not an envelope is searched at the speed of `bytes.find`.
"""

from __future__ import annotations

import json
import math
from collections import deque
from typing import Any, NoReturn

import msgspec

OUTPUT = (b"<__notion_output__>", b"</__notion_output__>")
ERROR = (b"<__notion_error__>", b"</__notion_error__>")
MAX_ENVELOPE_BYTES = 8 * 2**20
MAX_ERROR_BYTES = 256 * 2**10
MAX_DEPTH = 200
MAX_CANDIDATES = 16
"""Lines with tags around what is no envelope, after the last one that is."""
_START = b"\n<__notion_"
_INT64 = range(-(2**63), 2**63)
_INT64_DIGITS = 20


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """A result as it was printed: a value, or an error as an object. The value of `undefined` is None."""

    success: bool
    value: Any = None
    error: dict[str, Any] = msgspec.field(default_factory=dict)


class Printed(msgspec.Struct, frozen=True, kw_only=True):
    """What was found. `thrown` is what the handler threw: an object, or whatever else was thrown. `too_large` when the last
    envelope was."""

    envelope: Envelope | None = None
    thrown: Any = None
    too_large: bool = False


class Scanner:
    """Reads standard output in pieces of any size."""

    def __init__(self) -> None:
        self._tail = b"\n"
        """While between lines of interest: the end of what was seen, which may be the beginning of `_START`."""
        self._line: bytearray | None = None
        self._skipping = False
        """The line that began is too long to be kept."""
        self._outputs: deque[bytes] = deque(maxlen=MAX_CANDIDATES)
        self._held = 0
        self._thrown: bytes | None = None
        self._too_large = False

    def feed(self, chunk: bytes) -> None:
        """The next bytes."""
        data, at = (self._tail + chunk, 0) if self._line is None else (chunk, 0)
        while at < len(data):
            if self._line is None:
                at = data.find(_START, at)
                if at < 0:
                    break
                at += 1
                self._line = bytearray()
            end = data.find(b"\n", at)
            self._collect(data, at, end if end >= 0 else len(data))
            if end < 0:
                return
            self._end_line()
            at = end
        # Between lines: what may be the beginning of one of interest is searched again with the next bytes.
        self._tail = data[-(len(_START) - 1) :]

    def _collect(self, data: bytes, start: int, end: int) -> None:
        assert self._line is not None
        if not self._skipping:
            self._line += data[start : min(end, start + MAX_ENVELOPE_BYTES + 1 - len(self._line))]
            self._skipping = len(self._line) > MAX_ENVELOPE_BYTES

    def _end_line(self) -> None:
        line, skipped = bytes(self._line or b"").removesuffix(b"\r"), self._skipping
        self._line, self._skipping = None, False
        if skipped:
            if line.startswith(OUTPUT[0]):
                self._outputs.clear()
                self._held, self._too_large = 0, True
        elif _is_tagged(line, OUTPUT):
            self._keep(line)
        elif _is_tagged(line, ERROR) and len(line) <= MAX_ERROR_BYTES:
            self._thrown = line

    def _keep(self, line: bytes) -> None:
        if len(self._outputs) == MAX_CANDIDATES:
            self._held -= len(self._outputs.popleft())
        self._outputs.append(line)
        self._held += len(line)
        while self._held > MAX_ENVELOPE_BYTES and len(self._outputs) > 1:
            self._held -= len(self._outputs.popleft())
        self._too_large = False

    def finish(self) -> Printed:
        """What the stream held. Nothing can be fed afterwards."""
        if self._line is not None:
            self._end_line()
        found = next((envelope for line in reversed(self._outputs) if (envelope := _envelope(line))), None)
        self._outputs.clear()
        return Printed(envelope=found, thrown=_thrown(self._thrown), too_large=self._too_large)


def scan(stdout: bytes) -> Printed:
    """What a whole output holds."""
    scanner = Scanner()
    scanner.feed(stdout)
    return scanner.finish()


def _is_tagged(line: bytes, tags: tuple[bytes, bytes]) -> bool:
    return len(line) >= len(tags[0]) + len(tags[1]) and line.startswith(tags[0]) and line.endswith(tags[1])


def _envelope(line: bytes) -> Envelope | None:
    try:
        sent = decode(line[len(OUTPUT[0]) : -len(OUTPUT[1])])
    except ValueError:
        return None
    if not isinstance(sent, dict):
        return None
    if sent.get("_tag") == "success":
        return Envelope(success=True, value=sent.get("value"))
    error = sent.get("error")
    if sent.get("_tag") == "error" and isinstance(error, dict):
        return Envelope(success=False, error=error)
    return None


def _thrown(line: bytes | None) -> Any:
    if line is None:
        return None
    escaped = line[len(ERROR[0]) : -len(ERROR[1])].decode("utf-8", "replace")
    # In the reverse of the order in which they were escaped; nothing but these three is.
    text = escaped.replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&")
    if text == "undefined":
        return None
    try:
        return decode(text.encode())
    except ValueError:
        return None


def decode(raw: bytes) -> Any:
    """JSON as `JSON.stringify` writes it. Raises `ValueError`.

    Unlike what people send, it may have integers beyond 64 bits (JavaScript prints 2^64 like that), which become floats, and
    halves of surrogate pairs, which become U+FFFD as databases don't take them. The SDK never writes a name twice.
    """
    try:
        value = _DECODER.decode(raw.decode())
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    if b"\\ud" in raw or b"\\uD" in raw:
        value = without_half_pairs(value)
    _bounded(value)
    return value


def without_half_pairs(value: Any) -> Any:
    """JSON with U+FFFD for each half of a surrogate pair, which JavaScript has and UTF-8 does not."""
    text = json.dumps(value, ensure_ascii=False)
    return json.loads(text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"))


def _bounded(value: Any) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"is nested more than {MAX_DEPTH} deep")
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, dict | list)
        ]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("has a name more than once in an object")
    return value


def _integer(text: str) -> int | float:
    if len(text) <= _INT64_DIGITS and (value := int(text)) in _INT64:
        return value
    return _number(text)


def _number(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError("has a number that is too large")
    return value


def _constant(text: str) -> NoReturn:
    raise ValueError(f"has {text}, which is no JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_number, parse_constant=_constant)
