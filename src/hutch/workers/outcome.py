"""What a run came to: a value of the right shape, or an error with a name, whatever the worker printed and however it ended.

The envelope decides, not the exit code: a tool that fails exits with 0, and a program may be killed after it answered. A run
without an envelope gets an error from here. Names that the SDK gives: `ExecutionError`, `ToolExecutionError`,
`InvalidToolInputError`, `InvalidToolOutputError`, `RateLimitError`, `WebhookVerificationError`. Names from here:

    ResultInvalidError   the envelope is not what a capability of this kind returns
    ResultTooLargeError  the envelope is longer than `MAX_ENVELOPE_BYTES`
    RunTimeoutError      it ran longer than it may      RunOutOfMemoryError  it used more memory than it may
    RunBudgetExceededError  it used more than was to be spent
    RunCanceledError     somebody stopped it            RunLostError         its sandbox or host died
    NoResultError        it ended by itself without a result
"""

from __future__ import annotations

import enum
import math
from typing import Any, TypeAlias

import msgspec

from hutch.workers import changes
from hutch.workers.envelope import MAX_ENVELOPE_BYTES, Printed
from hutch.workers.reading import shown

MAX_NAME = 128
MAX_MESSAGE = 16_384
MAX_TRACE = 65_536
MAX_RETRY_AFTER_S = 86_400
EXIT_FAILED = 1


class End(enum.StrEnum):
    """How the program ended."""

    EXITED = "exited"
    TIMED_OUT = "timed_out"
    OUT_OF_MEMORY = "out_of_memory"
    CANCELED = "canceled"
    LOST = "lost"
    OVER_BUDGET = "over_budget"


class Success(msgspec.Struct, frozen=True):
    """The value: of a tool what it returned, of a sync a `changes.Batch`, of a webhook's verification what it returned, else
    None."""

    value: Any


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """An error. `tag` is the SDK's word on its kind (`generic`, `rate_limit`, `terminal`); `made_here` tells errors of the
    platform from those of the worker; `thrown` is what the handler threw, where that is known."""

    name: str
    message: str
    trace: str | None = None
    tag: str | None = None
    retry_after_ms: int | None = None
    made_here: bool = False
    thrown: Any = None

    @property
    def rate_limited(self) -> bool:
        return self.tag == "rate_limit" or self.name == "RateLimitError"

    @property
    def retryable(self) -> bool:
        """Whether trying again may help: not for what would be refused again, nor after somebody stopped it."""
        return self.tag != "terminal" and self.name not in _FINAL


_FINAL = frozenset({"WebhookVerificationError", "InvalidToolInputError", "RunCanceledError"})
Outcome: TypeAlias = Success | Failure


def judge(tag: str, printed: Printed, end: End = End.EXITED, exit_code: int | None = None, *, verify: bool = False) -> Outcome:
    """What a run of a capability of kind `tag` came to. `verify` for a webhook that was asked to verify a request."""
    envelope = printed.envelope
    if printed.too_large:
        return _made("ResultTooLargeError", f"The result has more than {MAX_ENVELOPE_BYTES} bytes. Return less at once.", printed)
    if envelope is None:
        return _no_result(printed, end, exit_code)
    if not envelope.success:
        return _failure(envelope.error, printed.thrown)
    try:
        return Success(_value(tag, envelope.value, verify))
    except ValueError as error:
        return _made("ResultInvalidError", f"The {tag} returned what can't be used: {error}.", printed)


def recorded_exit_code(outcome: Outcome, exit_code: int | None) -> int:
    """What is shown as the exit code of a run: 0 for a success and nothing else."""
    if isinstance(outcome, Success):
        return 0
    return exit_code if exit_code is not None and 0 < exit_code < 256 else EXIT_FAILED


def _value(tag: str, value: Any, verify: bool) -> Any:
    if tag in {"sync", "ai_connector"}:
        return changes.batch(value, tag)
    if tag == "tool" or verify:
        return value
    if not isinstance(value, dict) or value.get("status") != "success":
        raise ValueError('it should be `{"status": "success"}`')
    return None


def _failure(error: dict[str, Any], thrown: Any) -> Failure:
    name, message, trace, tag = (error.get(field) for field in ("name", "message", "trace", "_tag"))
    return Failure(
        name=_line(name) if isinstance(name, str) and name else "Error",
        message=message[:MAX_MESSAGE] if isinstance(message, str) else "",
        trace=trace[:MAX_TRACE] if isinstance(trace, str) else None,
        tag=_line(tag) if isinstance(tag, str) else None,
        retry_after_ms=retry_after_ms(error.get("retryAfter")),
        thrown=thrown,
    )


def retry_after_ms(seconds: Any) -> int | None:
    """How long to wait at least, from a number of seconds; None for what is none. A day at most."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not math.isfinite(seconds) or seconds < 0:
        return None
    return math.ceil(min(seconds, MAX_RETRY_AFTER_S) * 1000)


def _no_result(printed: Printed, end: End, exit_code: int | None) -> Failure:
    if end is End.TIMED_OUT:
        return _made("RunTimeoutError", "The run took longer than it may, and was ended.", printed)
    if end is End.OUT_OF_MEMORY:
        return _made("RunOutOfMemoryError", "The run used more memory than it may, and was ended.", printed)
    if end is End.OVER_BUDGET:
        return _made("RunBudgetExceededError", "The run has used up its budget, or that of its project or team.", printed)
    if end is End.CANCELED:
        return _made("RunCanceledError", "The run was canceled.", printed)
    if end is End.LOST:
        return _made("RunLostError", "The sandbox of the run was lost before there was a result.", printed)
    thrown = printed.thrown
    if isinstance(thrown, dict) and isinstance(thrown.get("message"), str):
        reason = f"after it threw {shown(thrown['message'], 300)}."
    elif exit_code:
        reason = f"with exit code {exit_code}; the log says why."
    else:
        reason = "with exit code 0: did it call process.exit, or never settle?"
    return _made("NoResultError", f"The run ended without a result, {reason}", printed)


def _made(name: str, message: str, printed: Printed) -> Failure:
    thrown = printed.thrown
    trace = thrown.get("stacktrace") if isinstance(thrown, dict) else None
    return Failure(
        name=name, message=message, trace=trace[:MAX_TRACE] if isinstance(trace, str) else None, made_here=True, thrown=thrown
    )


def _line(text: str) -> str:
    return "".join(letter for letter in text[:MAX_NAME] if letter.isprintable())
