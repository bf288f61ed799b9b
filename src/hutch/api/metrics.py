"""Prometheus metrics of the API process (`docs/metrics.md`)."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from hutch import __version__
from hutch.host.protocol import HostInfo

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Metrics:
    """One registry per application, so that two applications in a process do not mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "hutch_http_requests", "Requests answered.", ("method", "route", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "hutch_http_request_seconds",
            "Time from a request's head to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.running = Gauge("hutch_http_requests_running", "Requests being answered.", registry=self.registry)
        self.host_up = Gauge("hutch_host_up", "1 while the host answers.", registry=self.registry)
        self.host_ready = Gauge("hutch_host_ready", "1 while a create would succeed.", registry=self.registry)
        self.host_sessions = Gauge("hutch_host_sessions", "Sessions alive on the host.", registry=self.registry)
        self.host_pooled = Gauge("hutch_host_pooled", "Machines that wait in pools.", registry=self.registry)
        self.host_events = Counter("hutch_host_events", "Events of the host that were applied.", registry=self.registry)
        build = Gauge("hutch_build_info", "Always 1; the version is a label.", ("version",), registry=self.registry)
        build.labels(__version__).set(1)

    def set_host(self, info: HostInfo | None) -> None:
        """What the host said of itself just now; None when it does not answer."""
        self.host_up.set(info is not None)
        self.host_ready.set(info is not None and info.ready)
        self.host_sessions.set(info.sessions if info is not None else 0)
        self.host_pooled.set(info.pooled if info is not None else 0)

    def render(self) -> bytes:
        return generate_latest(self.registry)
