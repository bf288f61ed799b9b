"""Prometheus metrics of the API process (`docs/metrics.md`)."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from hutch import __version__
from hutch.host.protocol import HostInfo, IngressState
from hutch.metering.quantities import Quantities

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class IngressMetrics(Collector):
    """What the ingress has counted, as it said it last. It counts from zero when it was started again, as Prometheus expects."""

    def __init__(self) -> None:
        self.state: IngressState | None = None

    def collect(self) -> Iterator[Metric]:
        state = self.state
        yield GaugeMetricFamily("hutch_ingress_up", "1 while the ingress answers.", value=state is not None)
        connections = GaugeMetricFamily("hutch_ingress_connections", "Connections of clients.")
        routes = GaugeMetricFamily("hutch_ingress_routes", "Names that are served.")
        counters = {
            "results": CounterMetricFamily("hutch_ingress_answers", "Answers of programs.", labels=["result"]),
            "refusals": CounterMetricFamily("hutch_ingress_refusals", "Answers of the ingress's own.", labels=["code"]),
            "closed": CounterMetricFamily("hutch_ingress_connections_closed", "Connections closed unread.", labels=["bound"]),
            "wakes": CounterMetricFamily("hutch_ingress_wakes", "Sandboxes resumed for requests.", labels=["outcome"]),
        }
        passed = CounterMetricFamily("hutch_ingress_bytes", "Bytes from and to clients.", labels=["direction"])
        if state is not None:
            connections.add_metric([], state.connections)
            routes.add_metric([], state.routes)
            for name, family in counters.items():
                for label, count in getattr(state, name).items():
                    family.add_metric([label], count)
            passed.add_metric(["received"], state.received_bytes)
            passed.add_metric(["sent"], state.sent_bytes)
        yield from (connections, routes, *counters.values(), passed)


class PlatformMetrics(Collector):
    """CPU time of the platform's own processes. One that was started again counts from zero, as Prometheus expects."""

    def __init__(self) -> None:
        self.cpu_us: dict[str, int] = {}

    def collect(self) -> Iterator[Metric]:
        seconds = CounterMetricFamily(
            "hutch_platform_cpu_seconds", "CPU time of the platform's own processes.", labels=["component"]
        )
        for component, spent in {"api": time.process_time_ns() // 1000, **self.cpu_us}.items():
            seconds.add_metric([component], spent / 1_000_000)
        yield seconds


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
        self.usage_windows = Counter("hutch_usage_windows", "Usage windows that were written down.", registry=self.registry)
        self.usage_cpu = Counter("hutch_usage_active_cpu_seconds", "Active CPU of all sandboxes.", registry=self.registry)
        self.usage_startup = Counter(
            "hutch_usage_startup_cpu_seconds", "CPU of machines before sessions got them.", registry=self.registry
        )
        self.usage_gateway = Counter(
            "hutch_usage_gateway_cpu_seconds", "CPU of the gateway for sandboxes.", registry=self.registry
        )
        self.usage_disk = Counter(
            "hutch_usage_disk_byte_seconds", "What writable layers held, over time.", registry=self.registry
        )
        self.usage_memory = Counter(
            "hutch_usage_memory_byte_seconds", "Memory that sandboxes held, over time.", registry=self.registry
        )
        self.usage_bytes = Counter(
            "hutch_usage_interface_bytes", "Bytes of sandboxes' interfaces.", ("direction",), registry=self.registry
        )
        self.usage_creations = Counter("hutch_usage_creations", "Sessions that began.", registry=self.registry)
        self.webhooks = Counter("hutch_webhooks", "Deliveries to webhooks.", ("outcome",), registry=self.registry)
        self.telemetry_exports = Counter(
            "hutch_telemetry_exports", "Sendings of metrics to a collector.", ("outcome",), registry=self.registry
        )
        self.ingress = IngressMetrics()
        self.registry.register(self.ingress)
        self.platform = PlatformMetrics()
        self.registry.register(self.platform)
        build = Gauge("hutch_build_info", "Always 1; the version is a label.", ("version",), registry=self.registry)
        build.labels(__version__).set(1)

    def count_usage(self, used: Quantities, windows: int) -> None:
        """So many windows with these sums were written down."""
        self.usage_windows.inc(windows)
        self.usage_cpu.inc(used.active_cpu_us / 1_000_000)
        self.usage_startup.inc(used.startup_cpu_us / 1_000_000)
        self.usage_gateway.inc(used.gateway_cpu_us / 1_000_000)
        self.usage_disk.inc(used.disk_byte_seconds)
        self.usage_memory.inc(used.memory_byte_seconds)
        self.usage_bytes.labels("egress").inc(used.egress_bytes)
        self.usage_bytes.labels("ingress").inc(used.ingress_bytes)
        self.usage_creations.inc(used.creations)

    def set_host(self, info: HostInfo | None) -> None:
        """What the host said of itself just now; None when it does not answer."""
        self.host_up.set(info is not None)
        self.host_ready.set(info is not None and info.ready)
        self.host_sessions.set(info.sessions if info is not None else 0)
        self.host_pooled.set(info.pooled if info is not None else 0)
        self.platform.cpu_us = info.platform_cpu_us if info is not None else {}

    def render(self) -> bytes:
        return generate_latest(self.registry)
