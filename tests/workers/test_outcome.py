"""What a run came to follows from its envelope and its end, for every kind of capability."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.workers.changes import Batch, Delete, RecordUpsert, TableDelete, TableUpsert, Upsert, batch, timestamp_ms
from hutch.workers.envelope import MAX_ENVELOPE_BYTES, scan
from hutch.workers.outcome import End, Failure, Success, judge, recorded_exit_code, retry_after_ms
from tests.workers.test_envelope import output, success, thrown


def error(**fields: Any) -> bytes:
    return output(json.dumps({"_tag": "error", "error": fields}).encode())


def failed(tag: str, stdout: bytes, end: End = End.EXITED, exit_code: int | None = 1) -> Failure:
    found = judge(tag, scan(stdout), end, exit_code)
    assert isinstance(found, Failure)
    return found


OBSERVED = {
    "changes": [
        {
            "type": "upsert",
            "key": "1",
            "properties": {"Name": [["A"]], "ID": [["1"]], "P": [{"type": "primaryKey", "value": "p1"}]},
            "upstreamUpdatedAt": "2026-01-01T00:00:00Z",
            "icon": {"type": "notion", "icon": "pizza", "color": "blue"},
            "cover": {"type": "image", "url": "https://x/y.png", "position": 0.5},
            "pageContentMarkdown": "# hi",
            "targetDatabaseKey": "tasks",
        },
        {"type": "delete", "key": "2", "targetDatabaseKey": "projects"},
    ],
    "hasMore": True,
    "nextUserContext": {"page": 1},
    "nextPacerStates": {"api": {"lastScheduledAtMs": 1795448677339, "allowedRequests": 10, "intervalMs": 1000}},
}


def test_an_observed_batch_is_read() -> None:
    found = judge("sync", scan(success(OBSERVED)))
    assert isinstance(found, Success)
    assert isinstance(found.value, Batch)
    first, second = found.value.changes
    assert isinstance(first, Upsert)
    assert (first.key, first.database, first.markdown) == ("1", "tasks", "# hi")
    assert first.upstream_updated_at_ms == 1_767_225_600_000
    assert second == Delete(key="2", database="projects")
    assert found.value.has_more
    assert found.value.state == {"page": 1}
    assert found.value.pacers["api"].last_scheduled_at_ms == 1795448677339


def test_a_tool_may_return_anything() -> None:
    values: list[Any] = [None, 0, "", [], {"_tag": "error"}]
    for value in values:
        assert judge("tool", scan(success(value)), exit_code=0) == Success(value)


@pytest.mark.parametrize("tag", ["automation", "webhook", "workflow"])
def test_what_returns_nothing_says_success(tag: str) -> None:
    assert judge(tag, scan(success({"status": "success"}))) == Success(None)
    assert failed(tag, success({"status": "failure"})).name == "ResultInvalidError"
    assert failed(tag, success("success")).name == "ResultInvalidError"


def test_a_verification_may_return_anything_which_is_judged_elsewhere() -> None:
    assert judge("webhook", scan(success({"status": 200})), verify=True) == Success({"status": 200})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "`changes`"),
        ({"changes": None}, "`changes`"),
        ({"changes": [], "hasMore": "yes"}, "`hasMore`"),
        ({"changes": [None]}, "`changes[0]` should be an object"),
        ({"changes": [{"type": "update", "key": "1"}]}, '"upsert" or "delete"'),
        ({"changes": [{"type": ["upsert"], "key": "1"}]}, '"upsert" or "delete"'),
        ({"changes": [{"type": "upsert", "properties": {}}]}, "`key`"),
        ({"changes": [{"type": "upsert", "key": 5, "properties": {}}]}, "`key`"),
        ({"changes": [{"type": "upsert", "key": "a\x00", "properties": {}}]}, "no NUL"),
        ({"changes": [{"type": "upsert", "key": "k" * 1025, "properties": {}}]}, "1024"),
        ({"changes": [{"type": "upsert", "key": "1"}]}, "`properties`"),
        ({"changes": [{"type": "upsert", "key": "1", "properties": {}, "upstreamUpdatedAt": "yesterday"}]}, "yesterday"),
        ({"changes": [{"type": "upsert", "key": "1", "properties": {}, "upstreamUpdatedAt": 5}]}, "upstreamUpdatedAt"),
        ({"changes": [{"type": "upsert", "key": "1", "properties": {}, "icon": "x"}]}, "`icon`"),
        (
            {"changes": [{"type": "upsert", "key": "1", "properties": {}, "pageContentMarkdown": "a" * (2**20 + 1)}]},
            "there may be",
        ),
        ({"changes": [{"type": "delete", "key": "1"}] * 10_001}, "at most 10000"),
        ({"changes": [], "nextUserContext": "a" * 2**20}, "`nextState`"),
    ],
)
def test_a_batch_of_a_wrong_shape_is_an_error_that_says_what_to_fix(value: Any, expected: str) -> None:
    found = failed("sync", success(value))
    assert found.name == "ResultInvalidError"
    assert found.made_here
    assert expected in found.message


def test_pacer_states_that_make_no_sense_are_ignored() -> None:
    value = {"changes": [], "nextPacerStates": {"a": 1, "b": {"lastScheduledAtMs": "x"}, "c": OBSERVED["nextPacerStates"]["api"]}}  # type: ignore[index]
    assert list(batch(value, "sync").pacers) == ["c"]
    assert batch({"changes": [], "nextPacerStates": 7}, "sync").pacers == {}


def test_changes_of_tables_and_of_connectors_are_read() -> None:
    table = {"changes": [{"type": "upsert", "values": {"id": 1}}, {"type": "delete", "key": {"id": 1}}]}
    assert batch(table, "sync").changes == (TableUpsert({"id": 1}), TableDelete({"id": 1}))
    chat = {"changes": [{"type": "upsert", "key": "1", "record": {"messages": []}}]}
    assert batch(chat, "ai_connector").changes == (RecordUpsert(key="1", record={"messages": []}),)
    with pytest.raises(ValueError, match='the type "upsert"'):
        batch({"changes": [{"type": "delete", "key": "1"}]}, "ai_connector")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01", 0),
        ("1970-01-01T01:00:00.5+01:00", 500),
        ("1969-12-31T23:59:59.999Z", -1),
    ],
)
def test_times_are_read(text: str, expected: int) -> None:
    assert timestamp_ms(text) == expected


def test_a_tool_that_failed_is_a_failure_although_it_exits_with_0() -> None:
    found = failed("tool", error(name="ToolExecutionError", message="nope", trace="at x"), exit_code=0)
    assert (found.name, found.message, found.trace) == ("ToolExecutionError", "nope", "at x")
    assert recorded_exit_code(found, 0) == 1


def test_a_rate_limit_says_how_long_to_wait() -> None:
    found = failed("sync", error(_tag="rate_limit", name="RateLimitError", message="m", retryAfter=7.2))
    assert found.rate_limited
    assert found.retry_after_ms == 7200


def test_an_old_sdk_has_no_tag() -> None:
    found = failed("sync", error(name="ExecutionError", message="m"))
    assert not found.rate_limited
    assert found.retryable


@pytest.mark.parametrize("seconds", [None, "5", True, -1, math.nan, math.inf, [], {}])
def test_what_is_no_number_of_seconds_says_nothing(seconds: Any) -> None:
    assert retry_after_ms(seconds) is None


def test_a_wait_is_a_day_at_most() -> None:
    assert retry_after_ms(1e300) == 86_400_000


@pytest.mark.parametrize("name", ["WebhookVerificationError", "InvalidToolInputError"])
def test_what_would_be_refused_again_is_not_retried(name: str) -> None:
    assert not failed("webhook", error(name=name, message="m")).retryable
    assert not failed("workflow", error(_tag="terminal", name="Error", message="m")).retryable


@pytest.mark.parametrize(
    ("end", "name"),
    [
        (End.TIMED_OUT, "RunTimeoutError"),
        (End.OUT_OF_MEMORY, "RunOutOfMemoryError"),
        (End.CANCELED, "RunCanceledError"),
        (End.LOST, "RunLostError"),
        (End.OVER_BUDGET, "RunBudgetExceededError"),
        (End.EXITED, "NoResultError"),
    ],
)
def test_a_run_without_an_envelope_gets_an_error(end: End, name: str) -> None:
    found = failed("sync", b"just prints\n", end)
    assert (found.name, found.made_here) == (name, True)


def test_an_envelope_counts_more_than_the_end() -> None:
    assert judge("tool", scan(success(1)), End.TIMED_OUT) == Success(1)


def test_what_was_thrown_is_part_of_the_error() -> None:
    found = failed("sync", thrown({"name": "TypeError", "message": "no changes", "stacktrace": "at y"}))
    assert '"no changes"' in found.message
    assert found.trace == "at y"


def test_a_result_that_is_too_large_is_named_so() -> None:
    assert (
        failed("tool", output(b'{"_tag":"success","value":"' + b"a" * MAX_ENVELOPE_BYTES + b'"}')).name == "ResultTooLargeError"
    )


def test_texts_are_bounded() -> None:
    found = failed("tool", error(name="N\n" * 500, message="m" * 10**5, trace="t" * 10**5))
    assert (len(found.name) <= 128, "\n" in found.name, len(found.message), len(found.trace or "")) == (
        True,
        False,
        16_384,
        65_536,
    )


@pytest.mark.parametrize(("exit_code", "expected"), [(None, 1), (0, 1), (3, 3), (137, 137), (-9, 1), (999, 1)])
def test_an_exit_code_of_0_means_success(exit_code: int | None, expected: int) -> None:
    assert recorded_exit_code(Failure(name="E", message=""), exit_code) == expected
    assert recorded_exit_code(Success(None), exit_code) == 0


NAMES = st.text(max_size=5) | st.sampled_from(
    "changes hasMore nextUserContext nextPacerStates type key properties record values status name message retryAfter".split()
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=6),
    max_leaves=30,
)


@given(st.sampled_from(["sync", "ai_connector", "tool", "webhook", "automation"]), JSON, st.booleans())
def test_whatever_is_in_an_envelope_there_is_an_outcome(tag: str, value: Any, good: bool) -> None:
    stdout = success(value) if good else output(json.dumps({"_tag": "error", "error": value}).encode())
    assert isinstance(judge(tag, scan(stdout)), Success | Failure)
