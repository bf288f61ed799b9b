"""NAME: try it with `hutch worker dev`, deploy it with `hutch worker deploy`."""

from hutch.worker import Page, Worker, every, page, upsert
from hutch.worker import properties as p

worker = Worker()

things = worker.database("things", title="Things", primary_key="Id", properties={"Id": p.title(), "Size": p.number()})


@worker.sync(things, schedule=every(minutes=30))
def all_things(state: object) -> Page:
    """All things there are; rows of others are deleted."""
    return page([upsert("first", Size=1), upsert("second", Size=2)])


@worker.tool(read_only=True)
def greet(name: str) -> str:
    """Greet somebody."""
    return f"Hello, {name}!"
