"""Opens an issue when the error rate of a service spikes, once for each spike, and closes it when that is over."""

from __future__ import annotations

import hashlib
import hmac
import os
from typing import Any
from urllib.parse import urlsplit

from services import close_issue, open_issue, open_issues, rates

from hutch.worker import (
    CREDENTIAL,
    AutomationEvent,
    Page,
    VerifyRequest,
    VerifyResponse,
    WebhookEvent,
    Worker,
    WorkerError,
    every,
    page,
    upsert,
)
from hutch.worker import properties as p

worker = Worker()
LABEL = "error-rate"

# Programs never see these tokens: the gateway adds each to requests to its own service.
for url, key in (("ERRORS_URL", "ERRORS_TOKEN"), ("ISSUES_URL", "ISSUES_TOKEN")):
    host = urlsplit(os.environ.get(url, "")).hostname
    if not host:
        raise WorkerError(f"{url} is not set. Before the deploy: hutch worker env set … {url}")
    worker.credential(key, {host: {"Authorization": f"Bearer {CREDENTIAL}"}})

tracker = worker.pacer("tracker", requests=20, per_s=1)

services = worker.database(
    "services",
    title="Error rates",
    primary_key="Service",
    properties={
        "Service": p.title(),
        "Errors per minute": p.number(),
        "State": p.select(("calm", "green"), ("spike", "red")),
        "Issue": p.url(),
    },
)


def settle(found: list[dict[str, Any]]) -> list[str | None]:
    """Open an issue for a spike that has none, and close those that are over; the open issue of each rate.

    The tracker knows what is open, and this worker remembers nothing: it may be run twice, or killed and run again. `since`, when
    the spike began, is the same until it is over, so that not even two runs at once open two issues.
    """
    limit = float(os.environ.get("SPIKE_PER_MINUTE", "50"))
    opened = open_issues(LABEL)
    settled: list[str | None] = []
    for rate in found:
        service, per_minute = rate["service"], rate["perMinute"]
        label = f"service:{service}"
        issue = next((one for one in opened if label in one["labels"]), None)
        if issue is None and per_minute >= limit:
            issue = open_issue(
                f"{LABEL}/{service}/{rate['since']}",
                title=f"{service}: {per_minute} errors per minute",
                body=f"Since {rate['since']} {service} has more than {limit:g} errors per minute.",
                labels=[LABEL, label],
            )
            print(f"opened {issue['url']}")
        elif issue is not None and per_minute < limit / 2:
            # Not at the limit itself, where a rate may come and go.
            close_issue(issue["number"], f"It is over: {per_minute} errors per minute.")
            print(f"closed {issue['url']}")
            issue = None
        settled.append(issue["url"] if issue else None)
    return settled


@worker.sync(services, schedule=every(minutes=1))
def error_rates(after: str | None) -> Page:
    tracker.wait()
    found, following = rates(after)
    changes = [
        upsert(
            rate["service"],
            {"Errors per minute": rate["perMinute"]},
            State="spike" if issue else "calm",
            Issue=issue,
        )
        for rate, issue in zip(found, settle(found), strict=True)
    ]
    return page(changes, more=following is not None, state=following)


def signed(request: VerifyRequest) -> VerifyResponse:
    """An error tracker that can call does not have to be waited for. It signs with the secret that both know."""
    secret = os.environ.get("ALARM_SECRET", "")
    expected = hmac.new(secret.encode(), request.raw_body.encode(), hashlib.sha256).hexdigest()
    if secret and hmac.compare_digest(expected.encode(), request.headers.get("x-signature", "").encode()):
        return VerifyResponse(202)
    return VerifyResponse(401, "this is not signed by us")


@worker.webhook(verify=signed)
def alarm(events: list[WebhookEvent]) -> None:
    """Takes the rate of one service from the error tracker."""
    settle([event.body for event in events])


@worker.automation(title="Check error rates")
def check(event: AutomationEvent) -> None:
    """The button: looks at every service now."""
    after: str | None = None
    while True:
        found, after = rates(after)
        settle(found)
        if after is None:
            return
