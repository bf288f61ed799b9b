"""How often a project's webhooks are taken, its jobs, tools and syncs run, and its workers built: the limits that senders and
workers were written for. Each project has its own, whatever others do.

In memory: after a restart the counts begin anew, and each of several API processes has its own.
"""

from __future__ import annotations

from collections.abc import Hashable

from hutch.control.rates import MINUTE_MS, Buckets, Rate
from hutch.settings import WorkerSettings

HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
MOST_CALLERS = 10_000


class _Both:
    """A bound for bursts and one for the long run."""

    def __init__(self, burst: int, many: int, burst_ms: int = MINUTE_MS, many_ms: int = HOUR_MS) -> None:
        self._buckets = [Buckets(Rate(burst, burst_ms), MOST_CALLERS), Buckets(Rate(many, many_ms), MOST_CALLERS)]

    def wait_ms(self, caller: Hashable, now_ms: int) -> int:
        """Counts one; or how long to wait, when that is too many."""
        for buckets in self._buckets:
            decision = buckets.take(caller, now_ms)
            if decision is not None and not decision.admitted:
                return max(1, decision.wait_ms)
        return 0

    def charge(self, caller: Hashable, now_ms: int, amount: int) -> None:
        for buckets in self._buckets:
            buckets.charge(caller, now_ms, amount)

    def overdrawn_ms(self, caller: Hashable, now_ms: int) -> int:
        return max(buckets.overdrawn_ms(caller, now_ms) for buckets in self._buckets)


class WorkerRates:
    """Those of all projects."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._of_worker = Buckets(Rate(settings.webhook_requests_per_minute, MINUTE_MS), MOST_CALLERS)
        self._of_project = Buckets(Rate(settings.project_webhook_requests_per_minute, MINUTE_MS), MOST_CALLERS)
        self._admissions = _Both(settings.deliveries_per_minute, settings.deliveries_per_hour)
        self._runs = _Both(settings.queued_runs_per_minute, settings.queued_runs_per_hour)
        self._with_tools = settings.limit_tools
        self._syncs = _Both(settings.sync_runs_per_minute, settings.sync_runs_per_hour)
        self._changes = _Both(settings.row_changes_per_minute, settings.row_changes_per_hour)
        self._builds = _Both(settings.build_burst, settings.builds_per_day, 5 * MINUTE_MS, DAY_MS)

    def requested(self, project_id: str, worker_id: str, now_ms: int) -> bool:
        """Whether one more request of a webhook may be looked at."""
        found = [self._of_worker.take(worker_id, now_ms), self._of_project.take(project_id, now_ms)]
        return all(decision is None or decision.admitted for decision in found)

    def delivered(self, project_id: str, now_ms: int) -> int:
        """Counts one more event that is queued; or after how many milliseconds to ask again."""
        return self._admissions.wait_ms(project_id, now_ms)

    def run(self, project_id: str, now_ms: int) -> int:
        """Counts one more run of what is queued; or after how many milliseconds to ask again."""
        return self._runs.wait_ms(project_id, now_ms)

    def tool(self, project_id: str, now_ms: int) -> int:
        """Counts one more run of a tool, together with what is queued; or after how many milliseconds to ask again."""
        return self._runs.wait_ms(project_id, now_ms) if self._with_tools else 0

    def sync(self, project_id: str, now_ms: int) -> int:
        """Counts one more run of a sync; or after how many milliseconds to ask again, also because of rows that were changed."""
        return self._changes.overdrawn_ms(project_id, now_ms) or self._syncs.wait_ms(project_id, now_ms)

    def changed(self, project_id: str, count: int, now_ms: int) -> None:
        """Counts rows that a sync has changed. What a run returns is written whole; the next one waits."""
        self._changes.charge(project_id, now_ms, count)

    def build(self, project_id: str, now_ms: int) -> int:
        """Counts one more build; or after how many milliseconds to ask again."""
        return self._builds.wait_ms(project_id, now_ms)
