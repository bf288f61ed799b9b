"""Webhooks: what a sender is answered, what is queued, what is tried again, and when a webhook is blocked.

    request ──admit──▶ answer (202 405 403 429), or: verify first
                          verify ──verified──▶ answer, queue or not, count
    queue ──▶ run ──executed──▶ done, again later, or a dead letter, count

Gaps of the contract and what fills them: a blocked webhook answers 403. A verification that returns 2xx and delivers leaves the
count to the run that follows, or else that run's refusals would never add up. What is our fault (a lost sandbox) is answered
503 and counted nowhere. Retries come after `RETRY_DELAYS_MS`, or later if the error says so.
"""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import msgspec

from hutch.workers.envelope import without_half_pairs
from hutch.workers.outcome import Failure, Outcome, Success

MAX_FAILURES = 5
"""Refused verifications in a row that block a webhook."""
RETRY_DELAYS_MS = (10_000, 60_000, 300_000)
"""Before the second, third and fourth attempt."""
MAX_ANSWER_BYTES = 8192
VERIFY_MS = 5000
"""A verification with the start of its sandbox."""
RETRY_AFTER_S = 5
METHODS = ("GET", "HEAD", "POST")
_CONTENT_TYPES = frozenset({"application/json", "text/plain"})
_NO_BODY = frozenset({204, 205})


class WebhookState(msgspec.Struct, frozen=True, kw_only=True):
    """What is stored of a webhook. `verifies` is the switch, which only counts when the worker can verify."""

    failures: int = 0
    verifies: bool = True

    @property
    def blocked(self) -> bool:
        return self.failures >= MAX_FAILURES


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the sender gets."""

    status: int
    body: str = ""
    content_type: str = "text/plain"
    headers: dict[str, str] = msgspec.field(default_factory=dict)


class Admission(enum.Enum):
    """What to do with a request that may go on."""

    QUEUE = "queue"
    VERIFY = "verify"


TOO_MANY = Answer(status=429, body='{"error":"Rate limit exceeded"}', content_type="application/json")
BLOCKED = Answer(status=403, body='{"error":"Webhook is blocked after failed verifications"}', content_type="application/json")
INVALID = Answer(status=400, body='{"error":"Verification failed"}', content_type="application/json")
BUSY = Answer(
    status=503,
    body='{"error":"Verification took too long"}',
    content_type="application/json",
    headers={"Retry-After": str(RETRY_AFTER_S)},
)


def accepted(event_id: str) -> Answer:
    """The answer to what is queued without verification."""
    return Answer(status=202, body=json.dumps({"eventId": event_id}), content_type="application/json")


def admit(state: WebhookState, method: str, *, can_verify: bool, limited: bool = False) -> Answer | Admission:
    """What happens to a request, before any code runs. `limited` when a rate is exceeded."""
    if limited:
        return TOO_MANY
    if state.blocked:
        return BLOCKED
    verify = can_verify and state.verifies
    allowed = METHODS if verify else ("POST",)
    if method not in allowed:
        return Answer(status=405, headers={"Allow": ", ".join(allowed)})
    return Admission.VERIFY if verify else Admission.QUEUE


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """What a verification led to. `state` is what is stored from then on."""

    answer: Answer
    queue: bool
    state: WebhookState


def verified(state: WebhookState, outcome: Outcome) -> Verified:
    """What an outcome of `verify` means."""
    if isinstance(outcome, Failure):
        if outcome.made_here and outcome.name in {"RunTimeoutError", "RunLostError", "RunCanceledError"}:
            return Verified(answer=BUSY, queue=False, state=state)
        return Verified(answer=INVALID, queue=False, state=_failed(state))
    found = _answer(outcome.value)
    if found is None:
        return Verified(answer=INVALID, queue=False, state=_failed(state))
    answer, deliver = found
    good = answer.status < 300
    queue = good if deliver is None else deliver
    return Verified(answer=answer, queue=queue, state=state if good and queue else _succeeded(state))


def _answer(value: Any) -> tuple[Answer, bool | None] | None:
    """An answer that a worker returned and whether it wants delivery; None for what is none."""
    if not isinstance(value, dict):
        return None
    status, body, kind, deliver = (value.get(name) for name in ("status", "body", "contentType", "deliver"))
    if isinstance(status, float) and status.is_integer():
        status = int(status)
    if not isinstance(status, int) or isinstance(status, bool) or not (200 <= status < 300 or 400 <= status < 500):
        return None
    if body is not None and (not isinstance(body, str) or len(body.encode()) > MAX_ANSWER_BYTES):
        return None
    if kind is not None and not (isinstance(kind, str) and kind in _CONTENT_TYPES):
        return None
    if deliver is not None and not isinstance(deliver, bool):
        return None
    text = "" if status in _NO_BODY else body or ""
    return Answer(status=status, body=text, content_type=kind or "text/plain"), deliver


class Next(enum.StrEnum):
    """What becomes of an event after an attempt."""

    DONE = "done"
    RETRY = "retry"
    REFUSED = "refused"
    """The handler says that it is forged: never tried again."""
    DEAD = "dead"
    """It failed too often: kept, until somebody sends it again."""


class Executed(msgspec.Struct, frozen=True, kw_only=True):
    next: Next
    state: WebhookState
    delay_ms: int = 0


def executed(state: WebhookState, outcome: Outcome, attempt: int) -> Executed:
    """What an attempt to handle an event means; `attempt` begins with 1."""
    if isinstance(outcome, Success):
        return Executed(next=Next.DONE, state=_succeeded(state))
    if outcome.name == "WebhookVerificationError":
        return Executed(next=Next.REFUSED, state=_failed(state))
    if outcome.name == "RunCanceledError" or attempt > len(RETRY_DELAYS_MS):
        return Executed(next=Next.DEAD, state=state)
    return Executed(next=Next.RETRY, state=state, delay_ms=max(RETRY_DELAYS_MS[attempt - 1], outcome.retry_after_ms or 0))


def switched(state: WebhookState, *, verifies: bool) -> WebhookState:
    """Somebody set the switch: if that changes it, the count begins anew."""
    return state if state.verifies == verifies else WebhookState(verifies=verifies)


def deployed(state: WebhookState) -> WebhookState:
    """The worker was deployed again: the count begins anew, the switch stays."""
    return WebhookState(verifies=state.verifies)


def _failed(state: WebhookState) -> WebhookState:
    return msgspec.structs.replace(state, failures=min(state.failures + 1, MAX_FAILURES))


def _succeeded(state: WebhookState) -> WebhookState:
    # A run that was queued before does not open what is blocked.
    return state if state.blocked else msgspec.structs.replace(state, failures=0)


def event(delivery_id: str, method: str, headers: Iterable[tuple[str, str]], raw: bytes) -> dict[str, Any]:
    """A `WebhookEvent`. `delivery_id` is the same for all attempts."""
    text = raw_text(raw)
    return {"deliveryId": delivery_id, "body": _body(text), "rawBody": text, "headers": header_map(headers), "method": method}


def verify_request(
    method: str, url: str, query: Sequence[tuple[str, str]], headers: Iterable[tuple[str, str]], raw: bytes
) -> dict[str, Any]:
    """The context of a verification. A query parameter that is repeated has its last value."""
    text = raw_text(raw) if method == "POST" else ""
    return {
        "request": {"method": method, "url": url, "query": dict(query), "headers": header_map(headers), "rawBody": text},
    }


def raw_text(raw: bytes) -> str:
    """A body as text, as it is, so that its signature can be computed: UTF-8, with U+FFFD for what is not."""
    return raw.decode("utf-8", "replace")


def header_map(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Headers by their names in lower case, those of one name joined."""
    found: dict[str, str] = {}
    for name, value in headers:
        lower = name.lower()
        found[lower] = f"{found[lower]}{'; ' if lower == 'cookie' else ', '}{value}" if lower in found else value
    return found


def _body(text: str) -> dict[str, Any]:
    """What `JSON.parse` makes of it when that is an object, and else nothing."""
    try:
        value = without_half_pairs(_DECODER.decode(text))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _no_constant(text: str) -> NoReturn:
    raise ValueError(text)


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(text)
    return value


_DECODER = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite)
