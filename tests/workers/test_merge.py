"""A batch is as if its changes were applied one after the other."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hutch.workers.changes import Change, Delete, TableDelete, Upsert
from hutch.workers.merge import merged

KEYS = st.sampled_from("abc")
CHANGES = st.one_of(
    st.builds(Delete, key=KEYS, database=st.sampled_from([None, "own", "other"])),
    st.builds(
        Upsert,
        key=KEYS,
        database=st.sampled_from([None, "own", "other"]),
        properties=st.dictionaries(st.sampled_from("xyz"), st.integers(0, 9), max_size=3),
        markdown=st.none() | st.text(max_size=2),
    ),
)
Rows = dict[tuple[str, str], dict[str, object]]


def one_by_one(rows: Rows, changes: list[Change]) -> Rows:
    found = {place: dict(row) for place, row in rows.items()}
    for change in changes:
        assert isinstance(change, Upsert | Delete)
        place = (change.database or "own", change.key)
        if isinstance(change, Delete):
            found.pop(place, None)
            continue
        row = found.setdefault(place, {})
        row.update(change.properties)
        if change.markdown is not None:
            row["body"] = change.markdown
    return found


@given(st.lists(CHANGES, max_size=12))
def test_merged_writes_are_the_changes_in_order(changes: list[Change]) -> None:
    rows: Rows = {("own", "a"): {"x": -1, "y": -1, "body": "old"}, ("other", "b"): {"z": -1}}
    writes, warnings = merged(changes, "own", {"own", "other"})
    assert warnings == []
    found = {place: dict(row) for place, row in rows.items()}
    for write in writes:
        place = (write.database, write.key)
        if write.fresh:
            found.pop(place, None)
        if write.upsert is not None:
            row = found.setdefault(place, {})
            row.update(write.upsert.properties)
            if write.upsert.markdown is not None:
                row["body"] = write.upsert.markdown
    assert found == one_by_one(rows, changes)
    assert len({(write.database, write.key) for write in writes}) == len(writes)


def test_the_later_of_two_upserts_counts_whatever_their_times() -> None:
    changes = [
        Upsert(key="a", properties={"x": 1}, upstream_updated_at_ms=20),
        Upsert(key="a", properties={"x": 2}, upstream_updated_at_ms=10),
    ]
    (write,) = merged(changes, "own", {"own"})[0]
    assert write.upsert is not None
    assert (write.upsert.properties, write.upsert.upstream_updated_at_ms) == ({"x": 2}, 10)


def test_changes_that_lead_nowhere_are_warnings() -> None:
    writes, warnings = merged([Delete(key="a", database="gone"), TableDelete({"id": 1})], "own", {"own"})
    assert writes == []
    assert len(warnings) == 2
