"""The chain of an audit log: what was altered, removed or inserted is found."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from hutch.control.audit_log import DONE, Chain, Entry, Head

Kept = list[tuple[Entry, str]]


def log(length: int) -> Kept:
    entries: Kept = []
    for seq in range(1, length + 1):
        previous = entries[-1][1] if entries else ""
        entry = Entry(
            "team_a", seq, 1000 + seq, "tok_a", "", "192.0.2.1", "token.created", f"tok_{seq}", DONE, previous, {"n": seq}
        )
        entries.append((entry, entry.digest()))
    return entries


def problems(entries: Kept, head: Head, expected: Head | None = None) -> list[str]:
    chain = Chain(expected)
    chain.check(entries)
    chain.end(head)
    return chain.problems


def head_of(entries: Kept) -> Head:
    return Head(entries[-1][0].seq, entries[-1][1]) if entries else Head()


@pytest.mark.parametrize("length", [0, 1, 5])
def test_a_log_that_nobody_touched_is_whole(length: int) -> None:
    entries = log(length)
    assert problems(entries, head_of(entries), head_of(entries[:2])) == []


def test_the_canonical_form_does_not_change() -> None:
    # Logs of before have to verify with every version of ours.
    text = (
        '{"action":"token.created","address":"192.0.2.1","at":1001,"detail":{"n":1},"member_id":"","outcome":"done","previous":"",'
        '"seq":1,"subject":"tok_1","team_id":"team_a","token_id":"tok_a"}'
    )
    assert log(1)[0][1] == hashlib.sha256(text.encode()).hexdigest()


def test_a_log_that_begins_anew_does_not_have_the_entry_of_before() -> None:
    entries = log(3)
    other = [(replace(entries[0][0], subject="tok_other"), "")]
    other = [(other[0][0], other[0][0].digest())]
    assert problems(other, head_of(other), head_of(entries)) != []
    assert problems(other, head_of(other), head_of(entries[:1])) != []
    assert problems(other, head_of(other)) == []


FIELDS = ["at", "token_id", "member_id", "address", "action", "subject", "outcome", "previous", "team_id", "detail"]


@given(length=some.integers(2, 8), data=some.data(), field=some.sampled_from(FIELDS))
def test_every_change_of_one_row_is_found(length: int, data: some.DataObject, field: str) -> None:
    entries = log(length)
    head = head_of(entries)
    index = data.draw(some.integers(0, length - 1))
    entry, kept = entries[index]
    value: Any = {"at": 1, "detail": {"n": "x"}}.get(field, "changed")
    altered = replace(entry, **{field: value})
    changes: dict[str, Callable[[], Kept]] = {
        "altered": lambda: [*entries[:index], (altered, kept), *entries[index + 1 :]],
        "altered with a new hash": lambda: [*entries[:index], (altered, altered.digest()), *entries[index + 1 :]],
        "removed": lambda: [*entries[:index], *entries[index + 1 :]],
        "inserted": lambda: [*entries[:index], (altered, altered.digest()), *entries[index:]],
        "twice": lambda: [*entries[: index + 1], *entries[index:]],
        "another hash": lambda: [*entries[:index], (entry, "0" * 64), *entries[index + 1 :]],
    }
    what = data.draw(some.sampled_from(sorted(changes)))
    assert problems(changes[what](), head), what
