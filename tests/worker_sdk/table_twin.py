"""The worker of `tests/workers/recorded_tables.json`, in Python."""

import datetime as dt

from hutch.worker import Page, Worker, block_property, data_source, delete_row, manual, page, row
from hutch.worker import columns as c

worker = Worker()
events = worker.table(
    "events",
    title="Events",
    upsert_key=["id", "day"],
    columns={
        "id": c.text("Id"),
        "day": c.date(),
        "at": c.timestamp(),
        "n": c.number(),
        "ok": c.checkbox(),
        "any": c.json(),
        "kind": c.select("a", ("b", "red")),
        "tags": c.multi_select(),
        "ns": c.array("number"),
    },
)


@worker.sync(events, mode="incremental", schedule=manual())
def rows(state: object) -> Page:
    day = dt.date(2026, 1, 31)
    at = dt.datetime(2026, 1, 31, 9, 30, tzinfo=dt.UTC)
    whole = row(id="1", day=day, at=at, n=1.5, ok=True, any={"a": [1, None]}, kind="b", tags=["x", "y"], ns=(1, 2))
    return page([whole, delete_row({"id": "2"}, day=day)], state={"p": 1})


issues = data_source(
    "Issues",
    icon="https://x.example/i.png",
    properties={
        "title": block_property("Title", "title"),
        "state": block_property("State", "status", description="how far"),
    },
)
worker.custom_block(
    "board",
    path="blocks/board",
    command="make",
    output="out",
    slash_command="/issues",
    name="Issue board",
    description="Issues",
    icon="🔨",
    data_sources={"issues": issues},
)
worker.custom_block("plain", type="static", path="public")
