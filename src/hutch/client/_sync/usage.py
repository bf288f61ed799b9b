# Written by scripts/write_sync_client.py from `_async/usage.py`; change that one.
"""What was used, what it costs, and budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from hutch.client import paths
from hutch.client._sync.transport import Http
from hutch.client.models import BudgetList, EventPage, Json, ReceiptKeys, Usage, UsageReport


class Usages:
    def __init__(self, http: Http) -> None:
        self._http = http

    def of(self, name: str) -> Usage:
        """What a sandbox used in all its sessions until now."""
        return self._http.call("GET", f"{paths.own_sandbox(name)}/usage", Usage, query=self._http.project())

    def receipt(self, name: str) -> Json:
        """A signed receipt of that."""
        path, query = f"{paths.own_sandbox(name)}/receipt", self._http.project()
        return self._http.call("GET", path, dict[str, Any], query=query)

    def session_receipt(self, session_id: str) -> Json:
        """A signed receipt of one session, also when its sandbox is deleted."""
        return self._http.call("GET", paths.session_receipt(session_id), dict[str, Any])

    def command_receipt(self, session_id: str, command_id: str) -> Json:
        """A signed receipt of what a session used while one command ran, until a day after the session's end."""
        return self._http.call("GET", paths.command_receipt(session_id, command_id), dict[str, Any])

    def receipt_keys(self) -> dict[str, bytes]:
        """The raw public keys that verify the server's receipts, by id."""
        found = self._http.call("GET", f"{paths.OWN}/receipt-keys", ReceiptKeys, scoped=False)
        return found.raw()

    def report(
        self,
        *,
        start: str | int | None = None,
        end: str | int | None = None,
        group_by: Literal["day", "sandbox", "worker", "tag"] = "day",
        tag: str | None = None,
    ) -> UsageReport:
        """What the project (or with a token of a team all of it) used from `start` to `end`: milliseconds since 1970 or ISO 8601;
        default: the last 30 days. `tag` is the key of a tag to group by."""
        given = {"from": start, "to": end, "group_by": group_by, "tag": tag}
        query = self._http.project() | {name: str(value) for name, value in given.items() if value is not None}
        return self._http.call("GET", f"{paths.OWN}/usage", UsageReport, query=query)

    def budgets(self, *, team: str | None = None, project: str | None = None) -> BudgetList:
        """The budgets of a team or project, with what is spent. Ids or slugs."""
        path, query = paths.place("budget", team, project, self._http.server.team_id)
        return self._http.call("GET", path, BudgetList, query=query, scoped=False)

    def events(self, *, after: int = 0, limit: int = 100) -> EventPage:
        """What owners of budgets were told with numbers above `after`: of the project, or with a token of a team of all of it."""
        query = self._http.project() | {"after": str(after), "limit": str(limit)}
        return self._http.call("GET", f"{paths.OWN}/events", EventPage, query=query)

    def set_budget(
        self,
        *,
        team: str | None = None,
        project: str | None = None,
        period: Literal["day", "month", "total"] = "total",
        soft: Mapping[str, int] | None = None,
        notify_at: Sequence[int] = (),
        webhook: str | Literal[False] | None = None,
        **limits: int,
    ) -> BudgetList:
        """Limit what a team or project may use in each period: `active_cpu_us`, `memory_byte_seconds`, `egress_bytes`,
        `money_nano`, `concurrency`, `creations_per_minute`, `storage_bytes`. Without limits there is no budget any more.

        `soft` limits stop nothing; they and the percentages `notify_at` make events, which are sent to `webhook` (False: nowhere;
        None: where they are sent now). A new webhook's secret is in the answer, this once.
        """
        path, query = paths.place("budget", team, project, self._http.server.team_id)
        body: dict[str, Any] = {**limits, "period": period, "notify_at": list(notify_at)}
        if soft:
            body["soft"] = dict(soft)
        if webhook is not None:
            body["webhook"] = webhook or None
        return self._http.call("PUT", path, BudgetList, body=body, query=query, scoped=False)
