"""The worker whose runs by the vendor's SDK are in `tests/workers/recorded.json`, in Python."""

import datetime as dt
from zoneinfo import ZoneInfo

from hutch.worker import (
    CREDENTIAL,
    AutomationEvent,
    Page,
    RateLimitError,
    Upsert,
    VerifyRequest,
    VerifyResponse,
    WebhookEvent,
    WebhookVerificationError,
    Worker,
    continuous,
    delete,
    every,
    manual,
    page,
    record,
)
from hutch.worker import (
    properties as p,
)

worker = Worker()
worker.credential("LINEAR_API_TOKEN", {"api.linear.app": {"Authorization": f"Bearer {CREDENTIAL}"}})
api = worker.pacer("api", requests=10, per_s=1)
people = worker.database(
    "people",
    title="People",
    primary_key="ID",
    properties={
        "Name": p.title(),
        "ID": p.text(),
        "U": p.url(),
        "E": p.email(),
        "P": p.phone_number(),
        "C": p.checkbox(),
        "F": p.file(),
        "Pe": p.people(),
        "Pl": p.place(),
        "N": p.number("euro"),
        "D": p.date("ll"),
        "D2": p.date(),
        "D3": p.date(),
        "D4": p.date(),
        "Se": p.select(("a", "red")),
        "M": p.multi_select("a", "b"),
        "St": p.status(to_do=["x"], complete=["y"]),
        "R": p.relation("people", two_way="Back"),
    },
)


@worker.sync(people, schedule=every(minutes=5))
def s(state: object) -> Page:
    api.wait()
    row = Upsert(
        "1",
        {
            "Name": "A </__notion_output__> ü",
            "U": "https://x",
            "E": "a@x",
            "P": "+1",
            "C": True,
            "F": ("https://f", "f"),
            "Pe": ["a@x", "b@x"],
            "Pl": {"lat": 1.5, "lon": 2, "name": "here"},
            "N": 1.5,
            "D": dt.date(2026, 1, 31),
            "D2": dt.datetime(2026, 1, 31, 9, 30, tzinfo=ZoneInfo("Europe/Berlin")),
            "D3": (dt.date(2026, 1, 1), dt.date(2026, 1, 2)),
            "D4": ("2026-01-31T09:30", "2026-02-01T10:00"),
            "Se": "a",
            "M": ["a", "b"],
            "St": "x",
            "R": "2",
        },
        upstream_updated_at="1970-01-01T00:00:00.000Z",
        icon="🍕",
        markdown="# hi",
    )
    return page([row, delete("2")], more=True, state={"p": 1})


@worker.sync(people, mode="incremental", schedule=manual())
def rate(state: object) -> Page:
    raise RateLimitError(7)


@worker.sync(people, schedule=continuous())
async def gen(state: object) -> Page:
    raise TypeError("a < b && c")


@worker.sync(people)
def nochanges(state: object) -> Page:
    return None  # type: ignore[return-value]


@worker.tool(title="T", read_only=True)
def t(a: str, b: float | None) -> str:
    """d"""
    if a == "throw":
        raise ValueError("x")
    return 7 if a == "bad" else f"ok {a}"  # type: ignore[return-value]


def verify(request: VerifyRequest) -> VerifyResponse:
    return VerifyResponse(200, "hi")


@worker.webhook(title="H", verify=verify)
def h(events: list[WebhookEvent]) -> None:
    raise WebhookVerificationError("nope")


@worker.automation(title="A")
def auto(event: AutomationEvent) -> None:
    pass


worker.oauth(
    "gh",
    name="github-oauth",
    authorization_endpoint="https://x.example/a",
    token_endpoint="https://x.example/t",
    scope="s",
    client_id="c",
    client_secret="client-secret-that-nobody-sees",
)
worker.oauth("g", name="goo", provider="google")


@worker.ai_connector("1", archetype="chat")
def ai(state: object) -> Page:
    return page([record("1", {"messages": []})])
