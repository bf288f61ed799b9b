"""States of sessions and sandboxes, and how a host's report changes what the control plane knows.

    none ──create──▶ pending ──▶ running ──stop, timeout──▶ stopping ──▶ stopped
                        │           │  └──────snapshot──▶ snapshotting ──▶ stopped
                        └───crash───┴──▶ failed             platform ──▶ aborted

A host's reports arrive by several ways (the answer to a request, the event stream, a listing after a restart) and in any
order, so `merge` never goes back: a state only moves right in the picture and a final state is final.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

from hutch.control.records import SessionRow
from hutch.host.protocol import LIVE, SessionRecord, SessionStatus

T = TypeVar("T")

_RANK = {
    SessionStatus.PENDING: 0,
    SessionStatus.RUNNING: 1,
    SessionStatus.STOPPING: 2,
    SessionStatus.SNAPSHOTTING: 3,
    SessionStatus.STOPPED: 4,
    SessionStatus.FAILED: 4,
    SessionStatus.ABORTED: 4,
}

UNKNOWN_TO_HOST = "The host does not know this session any more."
SOURCE_MISSING = "The server was restarted before the source of the sandbox was there."


def is_live(status: SessionStatus) -> bool:
    return status in LIVE


def sandbox_status(status: SessionStatus) -> str:
    """The status of a sandbox whose current session has `status`: `running` (or about to), `stopping` or `stopped`."""
    if status in (SessionStatus.PENDING, SessionStatus.RUNNING):
        return "running"
    return "stopping" if status in LIVE else "stopped"


@dataclass(frozen=True, slots=True)
class Merged:
    """A session after a report. `ended` is true for the one report that ended it: its usage is added up then."""

    session: SessionRow
    changed: bool
    ended: bool


def merge(session: SessionRow, report: SessionRecord, now: int) -> Merged:
    """`session` with what `report` adds to it. Idempotent, and indifferent to the order of reports."""
    if not is_live(session.status) or _RANK[report.status] < _RANK[session.status]:
        return Merged(session, changed=False, ended=False)
    ended = not is_live(report.status)
    stopped_at = report.stopped_at if report.stopped_at is not None else (now if ended else None)
    pending = session.fetching and report.status is SessionStatus.RUNNING
    merged = replace(
        session,
        status=SessionStatus.PENDING if pending else report.status,
        cwd=report.cwd or session.cwd,
        timeout_ms=max(session.timeout_ms, report.timeout_ms),
        started_at=_first(report.started_at, session.started_at),
        requested_stop_at=_first(session.requested_stop_at, report.requested_stop_at),
        stopped_at=stopped_at,
        aborted_at=stopped_at if report.status is SessionStatus.ABORTED else session.aborted_at,
        active_cpu_us=_first(report.active_cpu_us, session.active_cpu_us),
        ingress_bytes=_first(report.ingress_bytes, session.ingress_bytes),
        egress_bytes=_first(report.egress_bytes, session.egress_bytes),
        stop_reason=_first(report.stop_reason, session.stop_reason),
        snapshotted_at=_first(session.snapshotted_at, report.snapshot.created_at if report.snapshot is not None else None),
        cgroup=report.cgroup or session.cgroup,
        isolation=report.isolation or session.isolation,
    )
    if merged == session:
        return Merged(session, changed=False, ended=False)
    if merged.status is not session.status:
        merged = replace(merged, updated_at=now)
    return Merged(merged, changed=True, ended=ended)


def lost(session: SessionRow, now: int, reason: str = UNKNOWN_TO_HOST) -> Merged:
    """`session` after its host said that it does not know it: `failed` before it ran, `aborted` after."""
    if not is_live(session.status):
        return Merged(session, changed=False, ended=False)
    status = SessionStatus.FAILED if session.status is SessionStatus.PENDING else SessionStatus.ABORTED
    aborted_at = now if status is SessionStatus.ABORTED else None
    ended = replace(session, status=status, stopped_at=now, aborted_at=aborted_at, stop_reason=reason, updated_at=now)
    return Merged(ended, changed=True, ended=True)


def fetched(session: SessionRow, report: SessionRecord, now: int) -> Merged:
    """`session` once its source is there."""
    return merge(replace(session, fetching=False), report, now)


def duration_ms(session: SessionRow) -> int | None:
    """How long a finished session ran; 0 when it never started, None while it is live."""
    if session.stopped_at is None:
        return None
    return max(0, session.stopped_at - session.started_at) if session.started_at is not None else 0


def _first(preferred: T | None, other: T | None) -> T | None:
    return preferred if preferred is not None else other
