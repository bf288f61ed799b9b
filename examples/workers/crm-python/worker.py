"""Keeps companies and people of a CRM in two related databases."""

from __future__ import annotations

import datetime as dt
import os
from typing import Any
from urllib.parse import urlsplit

from crm import get

from hutch.worker import CREDENTIAL, Page, Upsert, Worker, WorkerError, delete, every, manual, page, upsert
from hutch.worker import properties as p

worker = Worker()

host = urlsplit(os.environ.get("CRM_URL", "")).hostname
if not host:
    raise WorkerError("CRM_URL is not set. Before the deploy: hutch worker env set … CRM_URL")
# Programs never see the token: the gateway adds it to requests to the CRM.
worker.credential("CRM_TOKEN", {host: {"Authorization": f"Bearer {CREDENTIAL}"}})

# All syncs together ask no more often.
pacer = worker.pacer("crm", requests=50, per_s=1)

companies = worker.database(
    "companies",
    title="Companies",
    primary_key="Id",
    properties={"Id": p.title(), "Name": p.text(), "Stage": p.select(("lead", "blue"), ("customer", "green"))},
)
people = worker.database(
    "people",
    title="People",
    primary_key="Id",
    properties={
        "Id": p.title(),
        "Name": p.text(),
        "Email": p.email(),
        "Company": p.relation(companies, two_way="People"),
    },
)


@worker.sync(companies, schedule=every(minutes=15))
def all_companies(after: str | None) -> Page:
    """All companies: those that the CRM does not have any more are deleted."""
    pacer.wait()
    found, following = get("companies", after=after)
    changes = [upsert(one["id"], Name=one["name"], Stage=one["stage"]) for one in found]
    return page(changes, more=following is not None, state=following)


@worker.sync(people, schedule=manual())
def all_people(after: str | None) -> Page:
    """All people, when somebody asks for it; between that the sync below has what changed."""
    pacer.wait()
    found, following = get("people", after=after)
    return page(map(written, found), more=following is not None, state=following)


@worker.sync(people, mode="incremental", schedule=every(minutes=1))
def changed_people(progress: dict[str, Any] | None) -> Page:
    """What changed since the last complete cycle, page by page. `newest` becomes `since` when all pages are read, so that nothing
    is left out if a change comes meanwhile."""
    state = progress or {"since": 0, "newest": 0}
    pacer.wait()
    found, following = get("people", since=state["since"], after=state.get("after"))
    newest = max([state["newest"], *(one["changed"] for one in found)])
    changes = [delete(one["id"]) if one.get("deleted") else written(one) for one in found]
    if following is None:
        return page(changes, state={"since": newest, "newest": newest})
    return page(changes, more=True, state={"since": state["since"], "newest": newest, "after": following})


def written(person: dict[str, Any]) -> Upsert:
    return Upsert(
        person["id"],
        {"Name": person["name"], "Email": person["email"], "Company": [person["company"]]},
        upstream_updated_at=dt.datetime.fromtimestamp(person["changed"], dt.UTC),
    )
