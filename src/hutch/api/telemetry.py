"""Metrics to a collector: the same that `/metrics` answers, every `telemetry.interval_s`.

    registry ─▶ points (`hutch.api.otlp`) ─▶ a thread of its own ─▶ the exporter of OpenTelemetry ─▶ collector

Nothing waits for a collector: what is sent goes through a thread that nobody joins, one sending at a time. While one goes on,
those that are due are left out; all values are totals, so that the next one has what they would have had. What sends is
imported only where there is a collector, and before the process gives up the right to read the installation.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable
from typing import Protocol

from hutch.api.services import Services

log = logging.getLogger(__name__)

SENT, FAILED, SKIPPED = "sent", "failed", "skipped"
OUTCOMES = (SENT, FAILED, SKIPPED)
LIBRARY = logging.getLogger("opentelemetry")


class Exporting(Protocol):
    """What sends (`hutch.api.otlp.Exporter`)."""

    endpoint: str

    def points(self, registry: object) -> object:
        """All values as they are now."""

    def send(self, points: object) -> bool:
        """Whether the collector took them. Takes as long as `telemetry.timeout_s`."""


class Sender:
    """The thread, and at most one sending that waits for it. `done` is called in the thread, with whether it went well."""

    def __init__(self, exporter: Exporting, done: Callable[[bool], None]) -> None:
        self._exporter = exporter
        self._done = done
        self._due: queue.Queue[object] = queue.Queue(maxsize=1)
        self._busy, self._closed = threading.Event(), threading.Event()
        # A daemon: a collector that does not answer keeps no process from ending.
        threading.Thread(target=self._work, name="telemetry", daemon=True).start()

    def offer(self, points: object) -> bool:
        """Send these, unless the last ones are still being sent; whether they will be."""
        if self._busy.is_set():
            return False
        self._busy.set()
        self._due.put_nowait(points)
        return True

    def close(self) -> None:
        """Send nothing more. The thread ends when it has sent what it has."""
        self._closed.set()
        if not self._busy.is_set():
            self._busy.set()
            self._due.put_nowait(None)

    def _work(self) -> None:
        while not self._closed.is_set() and (points := self._due.get()) is not None:
            try:
                well = self._exporter.send(points)
            except Exception:
                log.exception("metrics could not be sent")
                well = False
            self._busy.clear()
            self._done(well)


async def keep_sending(services: Services, exporter: Exporting) -> None:
    """Send for ever."""
    counted = services.metrics.telemetry_exports
    for outcome in OUTCOMES:
        counted.labels(outcome)
    failing = False

    def done(well: bool) -> None:
        nonlocal failing
        counted.labels(SENT if well else FAILED).inc()
        if well is failing:
            failing = not well
            # The library says why, each time; once is enough.
            LIBRARY.setLevel(logging.CRITICAL if failing else logging.WARNING)
            if failing:
                log.warning("metrics can't be sent to %s; trying again, and saying so no more", exporter.endpoint)
            else:
                log.info("metrics are sent to %s again", exporter.endpoint)

    sender = Sender(exporter, done)
    try:
        while True:
            try:
                await services.refresh_metrics()
                if not sender.offer(exporter.points(services.metrics.registry)):
                    counted.labels(SKIPPED).inc()
            except Exception:
                log.exception("metrics could not be read")
            await asyncio.sleep(services.settings.telemetry.interval_s)
    finally:
        sender.close()
