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


class PutNetwork(Body):
    """`allow` (patterns of names), `subnets` (ranges) and `plaintextHttp` belong to the mode `set`."""

    mode: Literal["declared", "set", "learn"]
    allow: Annotated[list[Text], Field(max_length=1000)] | None = None
    subnets: Annotated[list[Text], Field(max_length=256)] | None = None
    plaintextHttp: bool = False


class ConfirmNetwork(Body):
    deployment: Annotated[Text, Field(min_length=1, max_length=64)]


class ProjectReview(Body):
    review: bool


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


class DestinationSet(TypedDict):
    """Names (patterns), ranges of addresses, and whether plain HTTP is spoken to the names."""

    allow: list[str]
    subnets: list[str]
    plaintextHttp: bool


class RefusedDestination(TypedDict):
    """A name or an address, the code of the reason, and how often."""

    name: str
    reason: str
    count: Count


class RunNetwork(TypedDict):
    """What a run did with the network. `partial`: there was more than is kept."""

    used: DestinationSet
    refused: list[RefusedDestination]
    partial: bool


class RunFull(RunEntry):
    """`input` is what the capability was called with, missing where none was kept. `output` is its value or error. `logs` has
    both streams. `network` comes a moment after the end."""

    phases: Phases
    logs: str
    input: NotRequired[Any]
    output: NotRequired[Any]
    cost: NotRequired[Cost]
    network: NotRequired[RunNetwork]


class RunRead(TypedDict):
    run: RunFull


class LearnedDestinations(TypedDict):
    since: Time
    runs: Count
    network: DestinationSet


class WaitingDeployment(TypedDict):
    """A deployment that reaches more than the one that serves, and waits until somebody agrees."""

    deployment: Id
    added: list[str]
    removed: list[str]


class WorkerNetwork(TypedDict):
    """`allowed` is what holds, as far as bounds allow: `outside` is what they don't. `declared` is what the files of the serving
    deployment say. `used` and `refused` are of the last `runs`; `learned` is what those used since learning began."""

    mode: Literal["declared", "set", "learn"]
    allowed: DestinationSet
    outside: list[str]
    used: DestinationSet
    refused: list[RefusedDestination]
    runs: Count
    review: bool
    declared: NotRequired[DestinationSet]
    learned: NotRequired[LearnedDestinations]
    waiting: NotRequired[WaitingDeployment]


class NetworkRead(TypedDict):
    network: WorkerNetwork


class Confirmed(TypedDict):
    """`deployment` serves from now on."""

    deployment: Id
    added: list[str]
    removed: list[str]


class ReviewShape(TypedDict):
    review: bool


class RunCanceled(TypedDict):
    run: RunEntry


for _kind in list(globals().values()):
    if is_typeddict(_kind) and _kind.__module__ == __name__:
        # A field that is not declared is a mistake.
        _kind.__pydantic_config__ = ConfigDict(extra="forbid", strict=True)
