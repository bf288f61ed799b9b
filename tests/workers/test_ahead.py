"""When what takes time has to begin, so that it is done before it is due."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from hutch.workers import memory
from hutch.workers.ahead import starts


def test_the_last_of_many_that_are_due_together_begins_last() -> None:
    assert starts([10_000, 10_000, 10_000], 500, 1_000) == [7_500, 8_000, 8_500]
    assert starts([10_000, 60_000], 500, 1_000) == [8_500, 58_500]
    assert starts([], 500) == []


@given(st.lists(st.integers(0, 100_000), max_size=30).map(sorted), st.integers(1, 5_000), st.integers(0, 5_000))
def test_one_after_another_all_are_done_in_time_and_none_begins_too_early(due: list[int], each: int, spare: int) -> None:
    found = starts(due, each, spare)
    assert len(found) == len(due)
    ends = [at + each for at in found]
    assert all(end <= at - spare for end, at in zip(ends, due, strict=True))
    assert all(end <= after for end, after in zip(ends, found[1:], strict=False))
    # As late as can be: what begins next, or its own time, follows at once.
    following = [*found[1:], float("inf")][: len(found)]
    assert all(end == min(at - spare, after) for end, at, after in zip(ends, due, following, strict=True))


def test_memory_is_plenty_while_a_quarter_is_free(tmp_path: Path) -> None:
    def judged(text: str) -> bool:
        (tmp_path / "meminfo").write_text(text)
        with open(tmp_path / "meminfo", "rb") as file:
            return memory.is_plenty(file.fileno())

    for free, plenty in ((250, True), (249, False)):
        assert judged(f"MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: {free} kB\n") is plenty
    assert judged("nothing of the kind\n")
    assert memory.is_plenty(None)
    assert memory.is_plenty() in (True, False)
