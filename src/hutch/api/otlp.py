"""Prometheus metrics as points of OpenTelemetry, and what sends them. Imported only where a collector is configured.

Names and labels stay what they are: `hutch_http_requests_total` is a sum of that name, a label an attribute. There is one
registry of what is counted, and this is another form of it, so that the two can't tell different things.
"""

from __future__ import annotations

import itertools
import socket
import ssl
import time
from collections.abc import Iterable
from typing import Any

import requests
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.samples import Sample

from hutch import __version__
from hutch.settings import TelemetrySettings

SCOPE = InstrumentationScope("hutch", __version__)
TOTAL = AggregationTemporality.CUMULATIVE
_Labels = tuple[tuple[str, str], ...]


class Exporter:
    """Sends to one collector: without redirects, which would take the headers elsewhere, and without proxies."""

    def __init__(self, settings: TelemetrySettings) -> None:
        assert settings.otlp_endpoint is not None
        self.endpoint = settings.otlp_endpoint
        session = requests.Session()
        session.trust_env = False
        session.max_redirects = 0
        places = ssl.get_default_verify_paths()
        self._exporter = OTLPMetricExporter(
            endpoint=self.endpoint,
            certificate_file=places.cafile or places.capath,
            headers=settings.header_map(),
            timeout=settings.timeout_s,
            compression=Compression.Gzip,
            session=session,
        )
        name = socket.gethostname()
        self._resource = Resource.create(
            {
                "service.name": settings.service_name,
                "service.version": __version__,
                "service.instance.id": name,
                "host.name": name,
            }
        )

    def points(self, registry: CollectorRegistry) -> MetricsData:
        """All values as they are now."""
        metrics = list(converted(registry.collect(), time.time_ns()))
        return MetricsData([ResourceMetrics(self._resource, [ScopeMetrics(SCOPE, metrics, "")], "")])

    def send(self, points: MetricsData) -> bool:
        """Whether the collector took them."""
        return self._exporter.export(points) is MetricExportResult.SUCCESS


def converted(families: Iterable[Family], now_ns: int) -> Iterable[Metric]:
    """Families of Prometheus as metrics of OpenTelemetry; those without a value are left out."""
    for family in families:
        if family.type == "counter":
            began = _began(family)
            values = [sample for sample in family.samples if sample.name.endswith("_total")]
            points = [_number(sample, now_ns, began.get(_labels(sample), 0)) for sample in values]
            if points:
                yield Metric(f"{family.name}_total", family.documentation, "", Sum(points, TOTAL, is_monotonic=True))
        elif family.type == "histogram":
            distributions = _distributions(family, now_ns)
            if distributions:
                yield Metric(family.name, family.documentation, "", Histogram(distributions, TOTAL))
        else:
            points = [_number(sample, now_ns, 0) for sample in family.samples]
            if points:
                yield Metric(family.name, family.documentation, "", Gauge(points))


def _labels(sample: Sample) -> _Labels:
    """Whose value it is: the labels without a bucket's bound."""
    return tuple(sorted((name, value) for name, value in sample.labels.items() if name != "le"))


def _number(sample: Sample, now_ns: int, began_ns: int) -> NumberDataPoint:
    return NumberDataPoint(dict(_labels(sample)), began_ns, now_ns, float(sample.value))


def _began(family: Family) -> dict[_Labels, int]:
    """Since when each value counts, in nanoseconds; those that nobody knows it of are missing."""
    return {_labels(sample): int(sample.value * 1e9) for sample in family.samples if sample.name.endswith("_created")}


def _distributions(family: Family, now_ns: int) -> list[HistogramDataPoint]:
    began = _began(family)
    buckets: dict[_Labels, list[tuple[float, float]]] = {}
    sums: dict[_Labels, float] = {}
    for sample in family.samples:
        if sample.name.endswith("_bucket"):
            buckets.setdefault(_labels(sample), []).append((float(sample.labels["le"]), sample.value))
        elif sample.name.endswith("_sum"):
            sums[_labels(sample)] = float(sample.value)
    # What was least and most is not known, and is left out.
    unknown: Any = None
    points = []
    for labels, counted in buckets.items():
        counted.sort()
        upto = [int(count) for _, count in counted]
        each = [upto[0], *(more - less for less, more in itertools.pairwise(upto))]
        points.append(
            HistogramDataPoint(
                dict(labels),
                began.get(labels, 0),
                now_ns,
                count=upto[-1],
                sum=sums.get(labels, 0.0),
                bucket_counts=each,
                explicit_bounds=[bound for bound, _ in counted[:-1]],
                min=unknown,
                max=unknown,
            )
        )
    return points
