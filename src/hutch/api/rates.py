"""How often a project may ask: creations, deletions, and everything else, each with a bucket of its own.

A request counts as soon as it is known whose it is, whatever it is answered: a project that guesses names counts like one that
knows them. A project's tokens share its buckets; what tokens for a whole team do counts for the team. A fork of many counts as so
many creations. Requests without a valid token are nobody's and count for the address that they come from: with too many of them
another one is answered 429, and one with a valid token as ever. The counts are in memory: after a restart of the API process they
begin anew.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address, ip_address
from typing import Any

from starlette.types import Scope as Asgi

from hutch.control.rates import MINUTE_MS, SECOND_MS, Buckets, Decision, Rate
from hutch.errors import RateLimitedError
from hutch.settings import LimitSettings

MOST_CALLERS = 10_000
IPV6_HOST_BITS = 64
"""Whoever has one address of IPv6 has as many as these bits count."""
_DECIDED = "hutch.rate"
_FORK = re.compile(r"/v2/sandboxes/[^/]+/fork")
_NAMED = re.compile(r"/v2/sandboxes/[^/]+")


class RequestRates:
    """The buckets of all projects."""

    def __init__(self, limits: LimitSettings) -> None:
        self._all = Buckets(Rate(limits.requests_per_minute, MINUTE_MS), MOST_CALLERS)
        self._creates = Buckets(Rate(limits.creates_per_minute, MINUTE_MS), MOST_CALLERS)
        self._deletes = Buckets(Rate(limits.deletes_per_second, SECOND_MS), MOST_CALLERS)
        self._unauthorized = Buckets(Rate(limits.unauthorized_per_minute, MINUTE_MS), MOST_CALLERS)
        self._logins = Buckets(Rate(limits.logins_per_minute, MINUTE_MS), MOST_CALLERS)

    def count(self, asgi: Asgi, team_id: str, project_id: str | None, now_ms: int) -> None:
        """One request of a project; asked again for the same request it counts once. Raises `RateLimitedError`."""
        if _DECIDED in asgi:
            return
        buckets, what = self._of(asgi["method"], asgi["path"])
        decision = buckets.take((team_id, project_id), now_ms)
        asgi[_DECIDED] = None if decision is None else (decision, now_ms)
        _check(buckets, decision, what)

    def count_more_creates(self, asgi: Asgi, team_id: str, project_id: str | None, more: int, now_ms: int) -> None:
        """Creations of one request besides the first, which counted already: all of them or none. Raises `RateLimitedError`."""
        if more <= 0:
            return
        decision = self._creates.take((team_id, project_id), now_ms, more)
        if decision is not None:
            asgi[_DECIDED] = (decision, now_ms)
        _check(self._creates, decision, "creations of sandboxes")

    def count_unauthorized(self, asgi: Asgi, now_ms: int) -> None:
        """One request, or terminal, without what opens it. Raises `RateLimitedError`."""
        client = asgi.get("client")
        decision = self._unauthorized.take(_network(client[0] if client else ""), now_ms)
        _check(self._unauthorized, decision, "requests from your address without a valid token")

    def count_login(self, asgi: Asgi, now_ms: int) -> None:
        """One step of a login, of somebody who is not known yet. Raises `RateLimitedError`."""
        client = asgi.get("client")
        _check(self._logins, self._logins.take(_network(client[0] if client else ""), now_ms), "logins from your address")

    def _of(self, method: str, path: str) -> tuple[Buckets, str]:
        if method == "POST" and (path == "/v2/sandboxes" or _FORK.fullmatch(path)):
            return self._creates, "creations of sandboxes"
        if method == "DELETE" and _NAMED.fullmatch(path):
            return self._deletes, "deletions of sandboxes"
        return self._all, "requests"


def _check(buckets: Buckets, decision: Decision | None, what: str) -> None:
    if decision is not None and not decision.admitted:
        seconds = -(-decision.wait_ms // 1000)
        raise RateLimitedError(
            "rate_limited",
            f"Too many {what}: at most {decision.limit} in {buckets.rate.period_ms // 1000} s. Try again in {seconds} s.",
            retry_after_s=seconds,
        )


def _network(client: str) -> str:
    """What a client's address counts as."""
    try:
        address = ip_address(client.partition("%")[0])
    except ValueError:
        return client
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(IPv6Address(int(address) >> IPV6_HOST_BITS << IPV6_HOST_BITS))
    return str(address)


def headers(asgi: Asgi) -> list[tuple[bytes, bytes]]:
    """What an answer says about the bucket that its request counted in; nothing where none did."""
    found: tuple[Decision, int] | None = asgi.get(_DECIDED)
    if found is None:
        return []
    decision, now_ms = found
    values: dict[bytes, Any] = {
        b"x-ratelimit-limit": decision.limit,
        b"x-ratelimit-remaining": decision.remaining,
        b"x-ratelimit-reset": -(-(now_ms + decision.full_in_ms) // 1000),
    }
    return [(name, str(value).encode()) for name, value in values.items()]
