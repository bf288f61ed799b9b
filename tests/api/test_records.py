"""Output bytes → NDJSON records: any bytes, split anywhere."""

from __future__ import annotations

import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from hutch.api.commands import LogRecords

CHUNKS = st.lists(
    st.tuples(
        st.sampled_from([1, 2]), st.binary(max_size=40) | st.text(max_size=10).map(lambda text: text.encode("utf-8", "replace"))
    )
)


def texts(chunks: list[tuple[int, bytes]]) -> dict[str, str]:
    """What a client puts together from the records of these chunks."""
    records = LogRecords()
    lines = b"".join(records.feed(channel, data) for channel, data in chunks) + records.finish()
    joined = {"stdout": "", "stderr": ""}
    for line in lines.decode().splitlines():
        item = json.loads(line)
        assert set(item) == {"data", "stream"}
        assert item["data"]
        joined[item["stream"]] += item["data"]
    return joined


@given(CHUNKS)
def test_the_records_say_what_the_bytes_said(chunks: list[tuple[int, bytes]]) -> None:
    for name, channel in (("stdout", 1), ("stderr", 2)):
        whole = b"".join(data for number, data in chunks if number == channel)
        assert texts(chunks)[name] == whole.decode("utf-8", "replace")


@given(st.text(), st.data())
def test_text_split_anywhere_is_the_same_text(text: str, data: st.DataObject) -> None:
    raw = text.encode("utf-8", "replace")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)))))
    edges = [0, *cuts, len(raw)]
    chunks = [(1, raw[start:end]) for start, end in pairwise(edges)]
    assert texts(chunks)["stdout"] == raw.decode()


def test_a_line_never_contains_a_raw_line_break() -> None:
    records = LogRecords()
    line = records.feed(1, "a\nb\u2028c\u2029d\x85e\r\x0b\x0c\x1c".encode()).decode()
    assert len(line.splitlines()) == 1
    assert line.endswith("\n")


def test_a_record_cut_between_any_two_bytes_reads_the_same() -> None:
    """Clients decode what they read piece by piece, so a record has no character of more than one byte."""
    text = "🐇é\u2028\x85\ud7ff\U0010ffff"
    line = LogRecords().feed(1, text.encode())
    assert line.isascii()
    assert json.loads(line) == {"data": text, "stream": "stdout"}
