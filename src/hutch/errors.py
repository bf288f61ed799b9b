"""The one error tree.

    HutchError
    ├── BadRequestError      400  the caller sent something that can't be meant
    ├── UnauthorizedError    401  no token, or one that does not verify
    ├── PaymentRequiredError 402  a budget or quota is exhausted
    ├── ForbiddenError       403  a token without access to the team or project it names
    ├── NotFoundError        404  no such thing for this caller
    ├── RequestTimeoutError  408  the rest of the request did not come in time
    ├── ConflictError        409  the name is taken, the thing is busy
    ├── GoneError            410  the session ended; clients resume on this
    ├── PreconditionFailedError 412  what the caller wants to change is not what it has seen
    ├── PayloadTooLargeError 413  body, header or path beyond a documented bound
    ├── UnsupportedMediaError 415 a body in a coding that is not read here
    ├── MisdirectedError     421  the host name is not one of the API's
    ├── NotReadyError        422  the session is past the point of accepting commands
    ├── RateLimitedError     429  try again after `retry_after_s`
    ├── InternalError        500  a fault of ours
    ├── UnavailableError     503  a part is down or full; try again after `retry_after_s`
    └── StalledError         504  the guest does not read; `details` say how far it got

Errors are raised where they are known and become HTTP answers in `hutch.api.errors` and exit codes in
`hutch.cli.errors`, nowhere else; the client makes the same classes of answers again, so they are public. Codes are stable:
clients compare them. A message is a full sentence that says what was wrong, with which value, and what to do.
"""

from __future__ import annotations

from typing import ClassVar


class HutchError(Exception):
    """Base of all errors that a caller may see.

    `code` is the stable identifier, `message` the sentence, `details` extra JSON fields of the error body.
    """

    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retry_after_s: int | None = None,
        details: dict[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s
        self.details = details or {}

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"

    def body(self) -> dict[str, object]:
        """The JSON body of an HTTP answer: `{"error": {"code", "message", ...details}}`."""
        return {"error": {"code": self.code, "message": self.message, **self.details}}


class BadRequestError(HutchError):
    status = 400


class UnauthorizedError(HutchError):
    status = 401


class PaymentRequiredError(HutchError):
    status = 402


class ForbiddenError(HutchError):
    status = 403


class NotFoundError(HutchError):
    status = 404


class RequestTimeoutError(HutchError):
    status = 408


class ConflictError(HutchError):
    status = 409


class GoneError(HutchError):
    status = 410


class PreconditionFailedError(HutchError):
    status = 412


class PayloadTooLargeError(HutchError):
    status = 413


class UnsupportedMediaError(HutchError):
    status = 415


class MisdirectedError(HutchError):
    status = 421


class NotReadyError(HutchError):
    status = 422


class RunFailedError(HutchError):
    """A worker's run that failed by the worker's own doing. `name` is that of its error, as its SDK gives it."""

    status = 422

    def __init__(self, name: str, message: str) -> None:
        super().__init__("run_failed", message)
        self.name = name


class RateLimitedError(HutchError):
    status = 429
    retryable = True


class InternalError(HutchError):
    status = 500


class UnavailableError(HutchError):
    status = 503
    retryable = True


class StalledError(HutchError):
    status = 504


BY_STATUS: dict[int, type[HutchError]] = {
    kind.status: kind
    for kind in (
        BadRequestError,
        UnauthorizedError,
        PaymentRequiredError,
        ForbiddenError,
        NotFoundError,
        RequestTimeoutError,
        ConflictError,
        GoneError,
        PreconditionFailedError,
        PayloadTooLargeError,
        UnsupportedMediaError,
        MisdirectedError,
        NotReadyError,
        RateLimitedError,
        InternalError,
        UnavailableError,
        StalledError,
    )
}


def from_wire(status: int, code: str, message: str, details: dict[str, object] | None = None) -> HutchError:
    """The error that a peer process reported, as the same class again; an unknown status is a fault of ours."""
    return BY_STATUS.get(status, InternalError)(code, message, details=details)
