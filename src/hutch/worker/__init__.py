"""Workers in Python: what `@notionhq/workers` is for programs in TypeScript, with the same manifest and the same results.

    from hutch.worker import Worker, every, properties as p

    worker = Worker()
    people = worker.database("people", title="People", primary_key="Id", properties={"Id": p.title(), "Name": p.text()})

    @worker.sync(people, schedule=every(minutes=15))
    def all_people(state):
        return page([upsert("1", Id="1", Name="Ada")])

    @worker.tool()
    def greet(name: str) -> str:
        "Greet somebody."
        return f"Hello, {name}!"

A capability is a function, plain or `async`, under a decorator; its key is its name unless `key` says otherwise. Registration
looks at everything that can be known then, and raises `WorkerError` with what to fix.

Only the standard library is needed: the platform puts this package beside the program in its sandbox, so that a project does not
depend on anything. `python -m hutch.worker` runs a program as the platform does.
"""

from hutch.worker import columns, properties
from hutch.worker.blocks import block_property, data_source
from hutch.worker.changes import Change, Delete, Page, Record, Upsert, delete, page, record, upsert
from hutch.worker.columns import Column
from hutch.worker.credentials import CREDENTIAL
from hutch.worker.errors import RateLimitError, WebhookVerificationError, WorkerError
from hutch.worker.events import AutomationEvent, VerifyRequest, VerifyResponse, WebhookEvent
from hutch.worker.properties import Database, Property
from hutch.worker.registry import OAuth, Pacer, Worker
from hutch.worker.schedules import Schedule, continuous, cron, every, manual
from hutch.worker.tables import Row, RowDelete, Table, delete_row, row

__all__ = [
    "CREDENTIAL",
    "AutomationEvent",
    "Change",
    "Column",
    "Database",
    "Delete",
    "OAuth",
    "Pacer",
    "Page",
    "Property",
    "RateLimitError",
    "Record",
    "Row",
    "RowDelete",
    "Schedule",
    "Table",
    "Upsert",
    "VerifyRequest",
    "VerifyResponse",
    "WebhookEvent",
    "WebhookVerificationError",
    "Worker",
    "WorkerError",
    "block_property",
    "columns",
    "continuous",
    "cron",
    "data_source",
    "delete",
    "delete_row",
    "every",
    "manual",
    "page",
    "properties",
    "record",
    "row",
    "upsert",
]
