"""A worker in Python: a tool, a sync, a button and a webhook."""

import hashlib
import hmac
import os
from typing import Annotated, Literal, TypedDict

from hutch.worker import (
    CREDENTIAL,
    AutomationEvent,
    Page,
    VerifyRequest,
    WebhookEvent,
    WebhookVerificationError,
    Worker,
    cron,
    page,
    upsert,
)
from hutch.worker import (
    properties as p,
)

worker = Worker()

# The network adds the token to requests to this host; the program never has it.
worker.credential("WEATHER_TOKEN", {"api.weather.example": {"Authorization": f"Bearer {CREDENTIAL}"}})

planets = worker.database(
    "planets",
    title="Planets",
    primary_key="Name",
    properties={"Name": p.title(), "Moons": p.number(), "Kind": p.select("rock", "gas"), "Neighbours": p.relation("planets")},
)

KNOWN = [("Mercury", 0, "rock"), ("Venus", 0, "rock"), ("Earth", 1, "rock"), ("Mars", 2, "rock"), ("Jupiter", 95, "gas")]
gently = worker.pacer("gently", requests=10, per_s=1)


class Greeting(TypedDict):
    greeting: str


@worker.tool(read_only=True)
def greet(
    name: Annotated[str, "Who is greeted"],
    language: Annotated[Literal["en", "de"], "English, if nothing is said"] = "en",
) -> Greeting:
    """Greet somebody."""
    print(f"greeting {name}")
    return {"greeting": f"{'Hallo' if language == 'de' else 'Hello'}, {name}!"}


@worker.sync(planets, schedule=cron("0 6 * * 1-5", "Europe/Berlin"))
def all_planets(state: int | None) -> Page:
    """Two planets in each run; rows of planets that are gone are deleted at the end."""
    gently.wait()
    at = state or 0
    rows = [
        upsert(name, Moons=moons, Kind=kind, Neighbours=[KNOWN[near][0] for near in (at + i - 1,) if near >= 0])
        for i, (name, moons, kind) in enumerate(KNOWN[at : at + 2])
    ]
    more = at + 2 < len(KNOWN)
    return page(rows, more=more, state=at + 2 if more else None)


@worker.automation()
def wave(event: AutomationEvent) -> None:
    """Wave at whoever pressed the button."""
    print(f"waving after {event.action_type}")


def signed(request: VerifyRequest) -> None:
    """Only who knows the secret may call."""
    wanted = hmac.new(os.environ["WEBHOOK_SECRET"].encode(), request.raw_body.encode(), hashlib.sha256).hexdigest()
    if not hmac.compare_digest(wanted, request.headers.get("x-signature", "")):
        raise WebhookVerificationError


@worker.webhook(verify=signed)
async def visited(events: list[WebhookEvent]) -> None:
    """Somebody came by."""
    for event in events:
        print(f"visited by {event.body.get('who')}")
