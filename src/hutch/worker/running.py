"""One run: what was sent ─▶ the capability ─▶ its result between two marks on standard output.

The marks and what is between them are the vendor's (docs/worker-runner.md): the result, and before it the program's own error, if
there was one.
"""

from __future__ import annotations

import json
import sys
import traceback
from typing import Any

from hutch.worker.errors import (
    ExecutionError,
    InvalidToolInputError,
    InvalidToolOutputError,
    RateLimitError,
    WorkerError,
)
from hutch.worker.registry import Capability, Worker

OUTPUT = "__notion_output__"
ERROR = "__notion_error__"
MAX_CAUSES = 10


class Failed(Exception):
    """A run failed; `error` is what is told."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error.get("message", ""))
        self.error = error


def run(worker: Worker, key: str, context: Any) -> int:
    """Run a capability, and write what came of it; the exit code. Raises `LookupError` and `WorkerError`, about which nothing is
    written."""
    capability = worker.capability(key)
    if capability.execute is None:
        kind, kinds = ("custom block", "custom blocks") if capability.tag == "custom_block" else ("OAuth", "OAuth capabilities")
        raise WorkerError(f'Cannot run {kind} capability "{key}" - {kinds} only provide configuration')
    verifies = capability.tag == "webhook" and isinstance(context, dict) and "request" in context
    execute = capability.verify if verifies else capability.execute
    if execute is None:
        raise WorkerError(f"The webhook {key!r} has no `verify`.")
    try:
        value = execute(context)
        written = _encoded({"_tag": "success", "value": value})
    except Exception as error:  # noqa: BLE001 - the program's, whatever it is
        if not isinstance(error, InvalidToolInputError | InvalidToolOutputError):
            _write(ERROR, _escaped(json.dumps(_original(error), ensure_ascii=False)))
        traceback.print_exc()
        _write(OUTPUT, _encoded({"_tag": "error", "error": told(capability, error)}))
        return 1
    _write(OUTPUT, written)
    return 0


def told(capability: Capability, error: Exception) -> dict[str, Any]:
    """What the platform is told about a failure."""
    trace = "".join(traceback.format_exception(error))
    if capability.tag == "tool":
        own = isinstance(error, InvalidToolInputError | InvalidToolOutputError)
        name = type(error).__name__ if own else "ToolExecutionError"
        return {"name": name, "message": str(error), "trace": trace}
    wrapped = error if isinstance(error, ExecutionError) else ExecutionError(error)
    name = type(wrapped).__name__
    if capability.tag == "sync":
        if isinstance(wrapped, RateLimitError):
            after = {} if wrapped.retry_after is None else {"retryAfter": wrapped.retry_after}
            return {"_tag": "rate_limit", "name": name, "message": str(wrapped), **after}
        return {"_tag": "generic", "name": "ExecutionError", "message": str(wrapped)}
    if capability.tag == "automation":
        name = "ExecutionError"
    after = {"retryAfter": wrapped.retry_after} if isinstance(wrapped, RateLimitError) and wrapped.retry_after is not None else {}
    return {"name": name, "message": str(wrapped), "trace": trace, **after}


def _original(error: BaseException, depth: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": type(error).__name__,
        "message": str(error),
        "stacktrace": "".join(traceback.format_exception(error, chain=False)),
    }
    cause = error.__cause__
    if cause is not None:
        found["cause"] = _original(cause, depth + 1) if depth < MAX_CAUSES else "[Circular Error]"
    return found


def _encoded(value: Any) -> str:
    """In one line. Raises `ValueError` and `TypeError` for what JSON can't say."""
    return json.dumps(value, ensure_ascii=True, allow_nan=False)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _write(mark: str, text: str) -> None:
    sys.stdout.write(f"\n<{mark}>{text}</{mark}>\n")
    sys.stdout.flush()
