"""The matrix of webhooks: what a sender sees, what is queued, what is tried again, what blocks."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.workers.outcome import Failure, Success
from hutch.workers.webhooks import (
    BUSY,
    INVALID,
    MAX_FAILURES,
    RETRY_DELAYS_MS,
    Admission,
    Answer,
    Next,
    WebhookState,
    accepted,
    admit,
    deployed,
    event,
    executed,
    switched,
    verified,
    verify_request,
)

FRESH = WebhookState()
BLOCKED = WebhookState(failures=MAX_FAILURES)


def status(found: Answer | Admission) -> int | Admission:
    return found.status if isinstance(found, Answer) else found


@pytest.mark.parametrize(
    ("method", "can_verify", "verifies", "expected"),
    [
        ("POST", False, True, Admission.QUEUE),
        ("GET", False, True, 405),
        ("HEAD", False, True, 405),
        ("PUT", False, True, 405),
        ("POST", True, True, Admission.VERIFY),
        ("GET", True, True, Admission.VERIFY),
        ("HEAD", True, True, Admission.VERIFY),
        ("DELETE", True, True, 405),
        ("POST", True, False, Admission.QUEUE),
        ("GET", True, False, 405),
    ],
)
def test_what_is_admitted(method: str, can_verify: bool, verifies: bool, expected: int | Admission) -> None:
    assert status(admit(WebhookState(verifies=verifies), method, can_verify=can_verify)) == expected


def test_limits_and_blocks_come_before_everything() -> None:
    limited = admit(BLOCKED, "POST", can_verify=True, limited=True)
    assert isinstance(limited, Answer)
    assert (limited.status, json.loads(limited.body)) == (429, {"error": "Rate limit exceeded"})
    assert status(admit(BLOCKED, "POST", can_verify=True)) == 403


def test_what_is_queued_has_an_id() -> None:
    assert accepted("e-1") == Answer(status=202, body='{"eventId": "e-1"}', content_type="application/json")


@pytest.mark.parametrize(
    ("value", "expected", "queue"),
    [
        ({"status": 200}, Answer(status=200), True),
        ({"status": 200.0, "body": "ok"}, Answer(status=200, body="ok"), True),
        (
            {"status": 299, "body": "{}", "contentType": "application/json"},
            Answer(status=299, body="{}", content_type="application/json"),
            True,
        ),
        ({"status": 200, "deliver": False}, Answer(status=200), False),
        ({"status": 204, "body": "dropped"}, Answer(status=204), True),
        ({"status": 400}, Answer(status=400), False),
        ({"status": 401, "deliver": True}, Answer(status=401), True),
        ({"status": 499, "body": "x" * 8192}, Answer(status=499, body="x" * 8192), False),
    ],
)
def test_an_answer_of_the_worker_is_given(value: Any, expected: Answer, queue: bool) -> None:
    found = verified(FRESH, Success(value))
    assert (found.answer, found.queue) == (expected, queue)


@pytest.mark.parametrize(
    "value",
    [
        *(
            None,
            [],
            "ok",
            {},
            {"status": "200"},
            {"status": True},
            {"status": 199},
            {"status": 302},
            {"status": 500},
            {"status": 1e300},
        ),
        *({"status": 200, "body": "x" * 8193}, {"status": 200, "body": "é" * 4097}, {"status": 200, "body": {"a": 1}}),
        *({"status": 200, "contentType": "text/html"}, {"status": 200, "contentType": "text/plain\r\nx: y"}),
        *({"status": 200, "contentType": ["text/plain"]}, {"status": 200, "deliver": "yes"}),
    ],
)
def test_an_answer_that_is_none_is_a_failed_verification(value: Any) -> None:
    found = verified(WebhookState(failures=2), Success(value))
    assert (found.answer, found.queue, found.state.failures) == (INVALID, False, 3)


def test_throwing_is_a_failed_verification_and_time_is_not() -> None:
    thrown = verified(FRESH, Failure(name="ExecutionError", message=""))
    assert (thrown.answer.status, thrown.state.failures) == (400, 1)
    late = verified(FRESH, Failure(name="RunTimeoutError", message="", made_here=True))
    assert (late.answer, late.queue, late.state) == (BUSY, False, FRESH)
    assert late.answer.headers == {"Retry-After": "5"}
    forged = verified(FRESH, Failure(name="RunTimeoutError", message=""))
    assert forged.answer.status == 400


def test_a_deliberate_refusal_resets_the_count() -> None:
    assert verified(WebhookState(failures=4), Success({"status": 401})).state.failures == 0
    assert verified(WebhookState(failures=4), Success({"status": 200, "deliver": False})).state.failures == 0
    assert verified(WebhookState(failures=4), Success({"status": 200})).state.failures == 4


def test_a_handler_that_fails_is_tried_three_times_more() -> None:
    failure = Failure(name="ExecutionError", message="")
    found = [executed(FRESH, failure, attempt) for attempt in (1, 2, 3, 4)]
    assert [item.next for item in found] == [Next.RETRY, Next.RETRY, Next.RETRY, Next.DEAD]
    assert tuple(item.delay_ms for item in found[:3]) == RETRY_DELAYS_MS
    assert all(item.state == FRESH for item in found)


def test_a_rate_limit_is_waited_for() -> None:
    assert executed(FRESH, Failure(name="RateLimitError", message="", retry_after_ms=10**6), 1).delay_ms == 10**6


def test_a_forged_event_is_never_tried_again_and_five_block() -> None:
    state = FRESH
    for number in range(1, 6):
        assert not state.blocked
        found = executed(state, Failure(name="WebhookVerificationError", message=""), 1)
        state = found.state
        assert (found.next, state.failures) == (Next.REFUSED, number)
    assert state.blocked
    assert executed(state, Success(None), 1).state.blocked
    assert not deployed(state).blocked
    assert not switched(state, verifies=False).blocked
    assert switched(state, verifies=True).blocked


def test_other_errors_neither_count_nor_reset() -> None:
    assert executed(WebhookState(failures=4), Failure(name="ExecutionError", message=""), 1).state.failures == 4
    assert executed(WebhookState(failures=4), Success(None), 1).state.failures == 0


def test_the_switch_survives_deployments() -> None:
    assert not deployed(WebhookState(failures=3, verifies=False)).verifies


def test_an_event_has_its_raw_body_and_the_parsed_one() -> None:
    raw = '{"a": "é", "a": 2}'.encode()
    assert event("d", "POST", [("X-A", "1"), ("x-a", "2"), ("Cookie", "a=1"), ("cookie", "b=2")], raw) == {
        "deliveryId": "d",
        "body": {"a": 2},
        "rawBody": '{"a": "é", "a": 2}',
        "headers": {"x-a": "1, 2", "cookie": "a=1; b=2"},
        "method": "POST",
    }


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[1]",
        b"text",
        b'"s"',
        b"{",
        b"\xff",
        b'{"a":NaN}',
        b'{"a":1e999}',
        b'{"a":' * 100_000,
        b'{"a":' + b"9" * 5000 + b"}",
    ],
)
def test_a_body_that_is_no_object_is_empty(raw: bytes) -> None:
    assert event("d", "POST", [], raw)["body"] == {}


@given(
    st.binary(max_size=60)
    | st.text(st.characters(exclude_categories=[]), max_size=8).map(lambda text: json.dumps({"a": text}).encode())
)
def test_any_body_makes_an_event_that_can_be_sent(raw: bytes) -> None:
    json.dumps(event("d", "POST", [], raw), ensure_ascii=False, allow_nan=False).encode()


def test_a_verification_sees_the_request() -> None:
    query = [("a", "1"), ("a", "2")]
    assert verify_request("POST", "https://h/x?a=1&a=2", query, [("X-Sig", "s")], b"raw") == {
        "request": {
            "method": "POST",
            "url": "https://h/x?a=1&a=2",
            "query": {"a": "2"},
            "headers": {"x-sig": "s"},
            "rawBody": "raw",
        }
    }
    assert verify_request("GET", "https://h/x", [], [], b"ignored")["request"]["rawBody"] == ""
