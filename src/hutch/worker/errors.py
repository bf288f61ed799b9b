"""Errors of workers.

    WorkerError                      the program says something that can't be meant; it does not load
    ExecutionError                   a capability failed
    ├── RateLimitError               … because the other side wants to be asked later
    └── WebhookVerificationError     … because a webhook is not from whom it says; it is never repeated
    InvalidToolInputError            the arguments of a tool are not what its schema says
    InvalidToolOutputError           its result is not

The names and texts are those of the vendor's SDK, which the platform tells apart.
"""

from __future__ import annotations

_DURING = "Error during worker execution: "


class WorkerError(Exception):
    """What a program declares can't be; the text says what to fix."""


class ExecutionError(Exception):
    """A capability failed."""

    def __init__(self, cause: BaseException | str) -> None:
        said = f"{type(cause).__name__}: {cause}" if isinstance(cause, BaseException) else cause
        super().__init__(f"{_DURING}{said}")


class RateLimitError(ExecutionError):
    """The other side has had enough. The run is repeated, not before `retry_after` seconds where that is known."""

    def __init__(self, retry_after: float | None = None) -> None:
        super().__init__("Rate limited by external API")
        self.retry_after = retry_after


class WebhookVerificationError(ExecutionError):
    """A webhook is not from whom it says."""

    def __init__(self, message: str = "Webhook signature verification failed") -> None:
        super().__init__(message)


class InvalidToolInputError(Exception):
    """The arguments of a tool are not what its schema says."""


class InvalidToolOutputError(Exception):
    """The result of a tool is not what its schema says."""
