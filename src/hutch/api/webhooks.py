"""Sending events to webhooks: at least once, signed, again and again for a day.

    due ─▶ taken for two minutes ─▶ address vetted ─▶ POST ─▶ 2xx: delivered │ anything else: later │ a day: given up

Somebody else names the receiver. It is looked up and vetted for each request, connected to by the address that was vetted, never
followed elsewhere, and what it answers but for the status is not read. A team's receivers that hang keep only that team waiting.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import Counter
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
import msgspec

from hutch import __version__
from hutch.api.services import Services
from hutch.control import shapes, webhooks
from hutch.control.records import BudgetEvent
from hutch.errors import BadRequestError, HutchError
from hutch.metering.budgets import Period
from hutch.oci.addresses import AddressClosed, Addresses
from hutch.storage import budget_events as rows
from hutch.storage import budgets as budget_rows

log = logging.getLogger(__name__)

PAUSES_MS = tuple(seconds * 1000 for seconds in (5, 30, 120, 600, 1800, 3600, 7200))
"""Between two attempts, the last one again and again."""
GIVE_UP_MS = 86_400_000
TIMEOUT_S = 10.0
"""For all of a delivery: somebody else's receiver may take its time with each byte."""
LEASE_MS = 120_000
"""How long whoever took an event has for it: more than a delivery takes, with a name server that does not answer."""
AT_ONCE = 32
OF_TEAM_AT_ONCE = 2
LOOK_EVERY_S = 30.0
TAKEN_S = 1.0


class Delivery(Exception):
    """An event was not taken; `final`: nor will it be."""

    def __init__(self, reason: str, *, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


@dataclass(frozen=True, slots=True)
class Sender:
    """Sends one request to wherever it may go."""

    addresses: Addresses
    private_hosts: tuple[str, ...]
    trust: ssl.SSLContext
    lookups: Executor

    @classmethod
    def of(cls, private_hosts: tuple[str, ...], trust: ssl.SSLContext) -> Sender:
        # Threads of its own: those of the loop are for everybody, and name servers of others may hang.
        lookups = ThreadPoolExecutor(AT_ONCE, "webhook")
        return cls(Addresses.of(frozenset(private_hosts)), private_hosts, trust, lookups)

    async def send(self, url: str, headers: dict[str, str], body: bytes) -> None:
        """Raises `Delivery` unless it was answered 2xx."""
        try:
            target, address = await self._vetted(url)
            async with asyncio.timeout(TIMEOUT_S):
                status = await self._status(target, address, headers, body)
        except TimeoutError as error:
            raise Delivery(f"no answer within {TIMEOUT_S:.0f} seconds") from error
        except AddressClosed as error:
            raise Delivery("its address is a private one") from error
        except (OSError, UnicodeError) as error:
            raise Delivery("its name can't be resolved") from error
        except httpx.HTTPError as error:
            raise Delivery(f"it can't be reached: {type(error).__name__}") from error
        if status == 410:
            raise Delivery("it answered 410: it is gone", final=True)
        if not 200 <= status < 300:
            raise Delivery(f"it answered {status}")

    async def _vetted(self, url: str) -> tuple[webhooks.Target, str]:
        """Where to send, and at which address. No timeout but the resolver's: its thread is busy until then, and so is the
        team's place."""
        try:
            target = webhooks.target(url, self.private_hosts)
        except BadRequestError as error:
            # The operator's settings were others when it was set.
            raise Delivery("its URL is not allowed any more") from error
        return target, await self.addresses.find(target.authority, target.host, target.port, self.lookups)

    async def _status(self, target: webhooks.Target, address: str, headers: dict[str, str], body: bytes) -> int:
        at = f"[{address}]" if ":" in address else address
        sent = {"host": target.authority, "user-agent": f"hutch/{__version__}", "content-type": "application/json", **headers}
        # Neither a proxy nor a .netrc of this machine has a part in this, and no connection outlives its request.
        async with (
            httpx.AsyncClient(verify=self.trust, timeout=TIMEOUT_S, trust_env=False, follow_redirects=False) as client,
            client.stream(
                "POST",
                f"{target.scheme}://{at}:{target.port}{target.path}",
                content=body,
                headers=sent,
                extensions={"sni_hostname": target.host},
            ) as response,
        ):
            return response.status_code


async def keep_sending(services: Services) -> None:
    """For ever: send what is due."""
    sender = Sender.of(services.settings.webhooks.private_hosts, services.trust)
    running: dict[asyncio.Task[None], str] = {}
    try:
        while True:
            services.webhooks_due.clear()
            pause = LOOK_EVERY_S
            try:
                pause = await _begin_due(services, sender, running)
            except HutchError as error:
                log.warning("webhooks wait: %s", error.message)
            except Exception:
                log.exception("webhooks could not be sent")
            woken = asyncio.ensure_future(services.webhooks_due.wait())
            try:
                await asyncio.wait({woken, *running}, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
            finally:
                woken.cancel()
            for task in [task for task in running if task.done()]:
                del running[task]
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        sender.lookups.shutdown(wait=False, cancel_futures=True)


async def _begin_due(services: Services, sender: Sender, running: dict[asyncio.Task[None], str]) -> float:
    """Begin to send what is due; seconds until more is."""
    busy = {team for team, count in Counter(running.values()).items() if count >= OF_TEAM_AT_ONCE}
    free, now = AT_ONCE - len(running), services.clock()
    if free <= 0:
        return LOOK_EVERY_S
    async with services.database.read() as connection:
        due = await rows.next_due(connection, busy)
    if due is None or due > now:
        return LOOK_EVERY_S if due is None else min(LOOK_EVERY_S, (due - now) / 1000 + 0.001)
    async with services.database.write() as connection:
        # One more may run already of a team that is not busy.
        most = 1 if running else OF_TEAM_AT_ONCE
        events = await rows.take_due(connection, now, until=now + LEASE_MS, limit=free, of_team=most, without=busy)
    for event in events:
        running[asyncio.ensure_future(_send(services, sender, event))] = event.team_id
    # Where there were none, another process has them.
    return 0.0 if events else TAKEN_S


async def _send(services: Services, sender: Sender, event: BudgetEvent) -> None:
    """One delivery, and what came of it. What goes wrong here is tried again when the lease is over."""
    try:
        await _deliver(services, sender, event)
    except Exception:
        log.exception("event %s could not be sent", event.id)


async def _deliver(services: Services, sender: Sender, event: BudgetEvent) -> None:
    try:
        async with services.database.read() as connection:
            budget = (await budget_rows.of_key(connection, event.key)).get(Period(event.period))
        if budget is None or budget.webhook is None:
            raise Delivery("its budget has no webhook any more", final=True)
        hook = services.sealer.open(budget.webhook, budget_rows.webhook_row(event.key, Period(event.period)))
        now_s = services.clock() // 1000
        body = payload(event)
        headers = {
            "webhook-id": event.id,
            "webhook-timestamp": str(now_s),
            "webhook-signature": webhooks.signature(hook["secret"], event.id, now_s, body),
        }
        await sender.send(hook["url"], headers, body)
    except Delivery as failure:
        now = services.clock()
        services.metrics.webhooks.labels("failed").inc()
        due = None
        if not failure.final and now - (event.first_sent_at or now) < GIVE_UP_MS:
            due = now + PAUSES_MS[min(event.attempts, len(PAUSES_MS) - 1)]
        else:
            log.warning("event %s is not sent any more: %s", event.id, failure)
        async with services.database.write() as connection:
            await rows.failed(connection, event.seq, f"The webhook did not take it: {failure}.", due)
        return
    services.metrics.webhooks.labels("delivered").inc()
    async with services.database.write() as connection:
        await rows.delivered(connection, event.seq, services.clock())


def payload(event: BudgetEvent) -> bytes:
    """The body of a delivery; the same each time."""
    shape: dict[str, Any] = shapes.budget_event(event)
    data = {name: value for name, value in shape.items() if name not in ("type", "delivery")}
    at = datetime.fromtimestamp(event.at / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return msgspec.json.encode({"type": shape["type"], "timestamp": at, "data": data})
