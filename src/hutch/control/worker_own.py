"""Requests and answers of Hutch's own endpoints about workers: webhooks, deliveries, automations, buttons, runs.

Times are milliseconds since 1970, as everywhere but at the vendor's door (`hutch.control.worker_wire`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired, TypeAlias

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict, is_typeddict

from hutch.control.answers import Count, Duration, SessionId, Time
from hutch.control.requests import Body, Text
from hutch.control.worker_wire import Id

MAX_RETRIES = 3
MAX_BUTTON_LIFE_S = 366 * 86_400

# -- requests ----------------------------------------------------------------------------------------


class ChangeWebhook(Body):
    verification: bool


class Trigger(Body):
    """`event` is what the automation gets; `retries`: how often a failed run is repeated; `wait`: answer when it is over."""

    event: dict[str, Any] = Field(default_factory=dict)
    retries: Annotated[int, Field(ge=0, le=MAX_RETRIES)] = 0
    wait: bool = False


class NewButton(Body):
    expires_in_s: Annotated[int, Field(ge=60, le=MAX_BUTTON_LIFE_S)] = 30 * 86_400


class ChangeWorker(Body):
    name: Text = Field(min_length=1, max_length=128)


class Replay(Body):
    """`deployment`: id of another one than the one that serves; `network`: `deny-all` cuts off side effects."""

    deployment: Annotated[Text, Field(min_length=1, max_length=64)] | None = None
    network: Literal["deny-all"] | None = None


# -- answers -----------------------------------------------------------------------------------------

JobStatus: TypeAlias = Literal["queued", "running", "done", "refused", "dead"]


class Accepted(TypedDict):
    eventId: Id


class TooMany(TypedDict):
    """As the vendor says it, and not as other errors are."""

    error: str


class WebhookShape(TypedDict):
    """A webhook. Whoever knows its `url` may call it. `can_verify`: the worker has a `verify`; `verification`: it is used;
    `blocked` after `failures` verifications in a row that failed, until the next deploy or change of the switch."""

    key: str
    url: str
    can_verify: bool
    verification: bool
    failures: Count
    blocked: bool


class WebhookRead(TypedDict):
    webhook: WebhookShape


class WebhookList(TypedDict):
    webhooks: list[WebhookShape]


class OutcomeError(TypedDict):
    name: str
    message: str


class JobShape(TypedDict):
    """A delivery or a trigger. `id` is the `deliveryId` that a worker sees. `error` is that of the last attempt. `refused`: the
    worker says that it is forged; `dead`: it failed too often."""

    id: Id
    key: str
    status: JobStatus
    attempts: Count
    created_at: Time
    not_before: NotRequired[Time]
    ended_at: NotRequired[Time]
    run_id: NotRequired[Id]
    error: NotRequired[OutcomeError]


class JobRead(TypedDict):
    job: JobShape


class DeliveryPage(TypedDict):
    """Newest first. `next` is the `cursor` of the next page, null at the end."""

    deliveries: list[JobShape]
    next: str | None


class ButtonShape(TypedDict):
    id: Id
    created_at: Time
    expires_at: Time


class ButtonMade(TypedDict):
    """A new button. Its `url` is shown once."""

    button: ButtonShape
    url: str


class ButtonList(TypedDict):
    buttons: list[ButtonShape]


class RunEntry(TypedDict):
    """One execution in a sandbox. `name` is KIND:KEY. `exit_code` 0 is a success; it and `ended_at` are missing while it goes
    on."""

    id: Id
    name: str
    deployment_id: Id
    started_at: Time
    ended_at: NotRequired[Time]
    exit_code: NotRequired[int]
    job_id: NotRequired[Id]
    session_id: NotRequired[SessionId]


class RunPage(TypedDict):
    """Newest first. `next` is the `cursor` of the next page, null at the end."""

    runs: list[RunEntry]
    next: str | None


class Phases(TypedDict):
    """What its time went to. `queued_ms`: before there was a sandbox for it; `sandbox_ms`: until that had loaded the worker;
    `program_ms`: until the end. What is not known is missing."""

    queued_ms: NotRequired[Duration]
    sandbox_ms: NotRequired[Duration]
    program_ms: NotRequired[Duration]


class Cost(TypedDict):
    """Until now, or in all when `final`. `receipt` is the path of a signed receipt of its session."""

    amount_nano: Count
    currency: str
    final: bool
    receipt: str


class RunFull(RunEntry):
    """`input` is what the capability was called with, missing where none was kept. `output` is its value or error. `logs` has
    both streams."""

    phases: Phases
    logs: str
    input: NotRequired[Any]
    output: NotRequired[Any]
    cost: NotRequired[Cost]


class RunRead(TypedDict):
    run: RunFull


class RunCanceled(TypedDict):
    run: RunEntry


for _kind in list(globals().values()):
    if is_typeddict(_kind) and _kind.__module__ == __name__:
        # A field that is not declared is a mistake.
        _kind.__pydantic_config__ = ConfigDict(extra="forbid", strict=True)
