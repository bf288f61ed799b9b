"""The last envelope of a stream is found however the stream is cut, whatever else is in it, in bounded memory."""

from __future__ import annotations

import json
import resource
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.workers.envelope import MAX_ENVELOPE_BYTES, Scanner, decode, scan


def success(value: Any) -> bytes:
    return output(json.dumps({"_tag": "success", "value": value}).encode())


def output(text: bytes) -> bytes:
    return b"\n<__notion_output__>" + text + b"</__notion_output__>\n"


def thrown(value: Any) -> bytes:
    text = json.dumps(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return b"\n<__notion_error__>" + text.encode() + b"</__notion_error__>\n"


def value(stdout: bytes) -> Any:
    found = scan(stdout).envelope
    assert found is not None
    assert found.success
    return found.value


def test_a_value_is_found_between_prints() -> None:
    assert value(b"hello" + success({"a": [1, None, "x"]}) + b"bye\n") == {"a": [1, None, "x"]}


def test_the_last_envelope_counts() -> None:
    assert value(success(1) + b"noise" + success(2)) == 2


def test_undefined_is_none() -> None:
    assert value(output(b'{"_tag":"success"}')) is None


def test_tags_inside_strings_mean_nothing() -> None:
    text = "</__notion_output__> <__notion_output__>{}</__notion_output__>"
    assert value(success(text)) == text


def test_an_envelope_in_the_middle_of_a_line_is_none() -> None:
    assert scan(b"x" + success(1).strip()).envelope is None
    assert scan(success(1).strip() + b"x").envelope is None


def test_an_envelope_at_the_very_beginning_and_without_a_line_break_counts() -> None:
    assert value(success(1).strip()) == 1
    assert value(success(1).strip() + b"\r\n") == 1


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'{"_tag":"maybe"}',
        b'{"_tag":"error"}',
        b'{"_tag":"error","error":"text"}',
        b'{"_tag":"success","value":NaN}',
        b'{"_tag":"success","value":1,"value":2}',
        b'{"_tag":"success","value":"\xff"}',
        b'{"_tag":"success","value":1e999}',
        b'{"_tag":"success","value":' + b"[" * 300 + b"]" * 300 + b"}",
        b'{"_tag":"success","value":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_what_is_no_envelope_does_not_count_and_hides_none(text: bytes) -> None:
    assert scan(output(text)).envelope is None
    assert value(success("true one") + output(text)) == "true one"


def test_overlapping_tags_are_no_envelope() -> None:
    assert scan(b"<__notion_output__></__notion_output__>").envelope is None
    assert scan(b"<__notion_output__>").envelope is None


def test_what_was_thrown_is_unescaped() -> None:
    error = {"name": "Error", "message": "a < b && c > d &lt; </__notion_error__>", "cause": {"message": "inner"}}
    found = scan(thrown(error) + output(b'{"_tag":"error","error":{"name":"ExecutionError"}}'))
    assert found.thrown == error
    assert found.envelope is not None
    assert found.envelope.error == {"name": "ExecutionError"}


@pytest.mark.parametrize("text", [b"undefined", b"{", b"\xff\xfe"])
def test_something_thrown_that_is_no_json_is_none(text: bytes) -> None:
    assert scan(b"\n<__notion_error__>" + text + b"</__notion_error__>\n").thrown is None


PIECES = st.one_of(
    st.binary(max_size=60),
    st.sampled_from([b"\n", b"\r\n", b"<__notion_", b"\n<__notion_output__>", b"</__notion_output__>", b"\n<__notion_error__>"]),
    st.integers().map(success),
    st.text(max_size=20).map(success),
    st.text(max_size=20).map(lambda text: thrown({"message": text})),
    st.binary(max_size=20).map(lambda raw: output(raw.replace(b"\n", b""))),
)


def by_lines(data: bytes) -> Any:
    """The rule, said as simply as possible."""
    found = None
    for line in data.split(b"\n"):
        text = line.removesuffix(b"\r")
        if text.startswith(b"<__notion_output__>") and text.endswith(b"</__notion_output__>") and len(text) >= 39:
            try:
                sent = json.loads(text[19:-20])
            except ValueError:
                continue
            if isinstance(sent, dict) and sent.get("_tag") == "success":
                found = (sent.get("value"),)
    return found


@given(st.lists(PIECES, max_size=12), st.lists(st.integers(1, 40), min_size=1, max_size=5))
def test_cuts_do_not_matter_and_the_rule_is_the_simple_one(pieces: list[bytes], sizes: list[int]) -> None:
    data = b"".join(pieces)
    scanner, at, turn = Scanner(), 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        scanner.feed(data[at : at + size])
        at, turn = at + size, turn + 1
    found = scanner.finish()
    assert found == scan(data)
    assert (found.envelope and (found.envelope.value,)) == by_lines(data)


def test_a_gigabyte_of_prints_costs_little() -> None:
    chunk = (b"spam and more spam, " * 50 + b"\n") * 1024
    scanner = Scanner()
    scanner.feed(success("early"))
    before = resource.getrusage(resource.RUSAGE_SELF)
    for _ in range(2**30 // len(chunk) + 1):
        scanner.feed(chunk)
    after = resource.getrusage(resource.RUSAGE_SELF)
    found = scanner.finish().envelope
    assert found is not None
    assert found.value == "early"
    assert after.ru_maxrss - before.ru_maxrss < 64 * 1024
    assert after.ru_utime - before.ru_utime < 30


@pytest.mark.parametrize("unit", [success("x"), b"\n<__notion_", b"<__notion_output__>", b"\n", b"\x00"])
def test_many_small_and_forged_lines_are_read_in_linear_time(unit: bytes) -> None:
    data = unit * (8 * 2**20 // len(unit))
    scanner = Scanner()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    scanner.feed(data)
    scanner.feed(success("last"))
    found = scanner.finish()
    assert found.envelope is not None
    assert found.envelope.value == "last"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - before < 10


def test_a_line_that_never_ends_is_not_kept() -> None:
    scanner = Scanner()
    scanner.feed(b"\n<__notion_output__>")
    for _ in range(20):
        scanner.feed(b"a" * 2**20)
    assert len(scanner._line or b"") <= MAX_ENVELOPE_BYTES + 1
    found = scanner.finish()
    assert found.too_large
    assert found.envelope is None


def test_a_large_envelope_after_a_good_one_is_the_result_and_one_before_is_not() -> None:
    large = output(b'{"_tag":"success","value":"' + b"a" * MAX_ENVELOPE_BYTES + b'"}')
    assert scan(success(1) + large).too_large
    found = scan(large + success(1))
    assert not found.too_large
    assert found.envelope is not None


def test_a_long_line_that_is_no_envelope_hides_none() -> None:
    found = scan(success(1) + b"<__notion_step_started__>" + b"a" * (MAX_ENVELOPE_BYTES + 5) + b"\n")
    assert found.envelope is not None
    assert not found.too_large


@given(st.text(st.characters(exclude_categories=[]), max_size=20))
def test_halves_of_surrogate_pairs_are_replaced_and_nothing_else(text: str) -> None:
    expected = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    found = decode(json.dumps(text).encode())
    assert found == expected
    found.encode()


def test_numbers_are_those_of_javascript() -> None:
    assert decode(b"[18446744073709552000, 1e+21, -0, 0.5, 9007199254740993]") == [2.0**64, 1e21, 0, 0.5, 9007199254740993]


@given(st.binary(max_size=200))
def test_garbage_is_decoded_or_refused(raw: bytes) -> None:
    try:
        found = decode(raw)
    except ValueError:
        return
    assert found == json.loads(raw)
