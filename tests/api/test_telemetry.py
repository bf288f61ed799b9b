"""Metrics over OTLP: what a collector gets is what `/metrics` says, and a collector that is none costs nothing."""

from __future__ import annotations

import asyncio
import gzip
import json
import math
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.parser import text_string_to_metric_families

from hutch.api import otlp
from hutch.api.metrics import Metrics
from hutch.api.telemetry import Sender
from hutch.settings import SettingsError, load
from scripts.setup.test_tools import COLLECTOR
from tests.api.conftest import Api, served
from tests.api.fake_host import FakeHost
from tests.conftest import CHECKOUT

LABELS = {"component", "method", "route", "status", "direction", "result", "code", "bound", "outcome", "version", "le"}
"""All that there are. One that names a sandbox, a session or a team would have as many values as there are of them."""
Values = dict[tuple[str, tuple[tuple[str, str], ...]], float]


# -- a collector of a test --------------------------------------------------------------------------


class Receiver:
    """Takes what an exporter sends, or does what a test has it do instead."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        self.requests: list[ExportMetricsServiceRequest] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.instead: Callable[[BaseHTTPRequestHandler], None] | None = None

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("content-length", 0)))
        self.paths.append(request.path)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        if self.instead is not None:
            self.instead(request)
            return
        self.requests.append(ExportMetricsServiceRequest.FromString(gzip.decompress(body)))
        respond(request, 200)


def respond(request: BaseHTTPRequestHandler, status: int, **headers: str) -> None:
    request.send_response(status)
    for name, value in {"content-length": "0", **headers}.items():
        request.send_header(name, value)
    request.end_headers()


@contextmanager
def receiving() -> Iterator[Receiver]:
    made: list[Receiver] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            try:
                made[0].handle(self)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        made.append(Receiver(server))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield made[0]
        server.shutdown()
        thread.join()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as running:
        yield running


def settings_for(url: str, **more: str) -> dict[str, str]:
    found = {"otlp_endpoint": url, "interval_s": "1", "timeout_s": "1", **more}
    return {f"HUTCH_TELEMETRY__{name.upper()}": value for name, value in found.items()}


@pytest.fixture
def telemetry() -> dict[str, str]:
    """More settings, by name; override it in a test's parameters."""
    return {}


@pytest.fixture
async def sending(
    tmp_path: Path, host: FakeHost, installed: Path, receiver: Receiver, telemetry: dict[str, str]
) -> AsyncIterator[Api]:
    async with served(tmp_path, host, settings_for(receiver.url, **telemetry), installed) as running:
        yield running


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.02)


# -- what both say ----------------------------------------------------------------------------------


def values_of(request: ExportMetricsServiceRequest) -> Values:
    """What a collector was told, as Prometheus writes it: buckets summed up, each with its bound."""
    found: Values = {}

    def put(name: str, labels: dict[str, str], value: float) -> None:
        found[(name, tuple(sorted(labels.items())))] = value

    for metric in request.resource_metrics[0].scope_metrics[0].metrics:
        for point in metric.sum.data_points or metric.gauge.data_points:
            put(metric.name, {one.key: one.value.string_value for one in point.attributes}, point.as_double)
        for spread in metric.histogram.data_points:
            labels = {one.key: one.value.string_value for one in spread.attributes}
            put(f"{metric.name}_sum", labels, spread.sum)
            put(f"{metric.name}_count", labels, spread.count)
            upto = 0
            for bound, count in zip([*spread.explicit_bounds, math.inf], spread.bucket_counts, strict=True):
                upto += count
                put(f"{metric.name}_bucket", {**labels, "le": "+Inf" if bound == math.inf else str(bound)}, upto)
    return found


def told_to_prometheus(text: str) -> Values:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def sent(registry: CollectorRegistry) -> ExportMetricsServiceRequest:
    """What would be sent now."""
    from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics

    exporter = otlp.Exporter(load(environment=settings_for("http://127.0.0.1:1")).telemetry)
    return encode_metrics(exporter.points(registry))


def test_every_metric_is_sent_with_its_name_labels_and_value() -> None:
    metrics = Metrics()
    metrics.requests.labels("GET", "/v2/sandboxes/{name}", "200").inc(3)
    for seconds in (0.0005, 0.02, 0.02, 500):
        metrics.seconds.labels("/v2/sandboxes/{name}").observe(seconds)
    metrics.usage_bytes.labels("egress").inc(2**53)
    told = told_to_prometheus(metrics.render().decode())
    assert len(told) > 20
    found = values_of(sent(metrics.registry))
    # Read from the kernel when it is asked for: the time of this process has gone on.
    own = ("hutch_platform_cpu_seconds_total", (("component", "api"),))
    assert found.pop(own) >= told.pop(own) > 0
    assert found == told


@given(
    counts=st.lists(st.floats(0, 1e15), max_size=5),
    gauges=st.lists(st.floats(allow_nan=False), max_size=3),
    seen=st.lists(st.floats(0, 1e6), max_size=20),
    texts=st.lists(st.text(max_size=8).filter(lambda text: not text.encode("utf-8", "ignore").startswith(b"\xef")), max_size=3),
)
def test_any_values_are_the_same_in_both_forms(
    counts: list[float], gauges: list[float], seen: list[float], texts: list[str]
) -> None:
    registry = CollectorRegistry()
    counter = Counter("c", "C.", ("l",), registry=registry)
    gauge, histogram = Gauge("g", "G.", registry=registry), Histogram("h", "H.", registry=registry, buckets=(0.1, 1, 10))
    for count, label in zip(counts, [*texts, "a", "b", "c"], strict=False):
        counter.labels(label).inc(count)
    for value in gauges:
        gauge.set(value)
    for value in seen:
        histogram.observe(value)
    found = values_of(sent(registry))
    for family in registry.collect():
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                labels = tuple(sorted(sample.labels.items()))
                assert found[(sample.name, labels)] == sample.value


def test_sums_are_totals_since_when_they_began() -> None:
    metrics = Metrics()
    before = time.time_ns()
    request = sent(metrics.registry)
    by_name = {metric.name: metric for metric in request.resource_metrics[0].scope_metrics[0].metrics}
    windows = by_name["hutch_usage_windows_total"].sum
    assert (windows.is_monotonic, windows.aggregation_temporality) == (True, 2)
    point = windows.data_points[0]
    assert before - 10**10 < point.start_time_unix_nano <= point.time_unix_nano <= time.time_ns()
    resource = {one.key: one.value.string_value for one in request.resource_metrics[0].resource.attributes}
    assert (resource["service.name"], resource["service.instance.id"]) == ("hutch", socket.gethostname())


# -- a server with a collector ----------------------------------------------------------------------


@pytest.mark.parametrize("telemetry", [{"headers": "authorization=Bearer s3cret,x-scope=a=b", "service_name": "here"}])
async def test_a_collector_gets_them_again_and_again_with_its_headers(sending: Api, receiver: Receiver) -> None:
    made = await sending.create(name="canary-box", env={"A": "b"})
    await until(lambda: len(receiver.requests) >= 3)
    assert set(receiver.paths) == {"/v1/metrics"}
    headers = receiver.headers[-1]
    assert (headers["authorization"], headers["x-scope"]) == ("Bearer s3cret", "a=b")
    assert (headers["content-type"], headers["content-encoding"]) == ("application/x-protobuf", "gzip")
    text = str(receiver.requests[-1])
    assert '"here"' in text
    for secret in ("s3cret", "canary-box", made["session"]["id"], sending.own.team_id, sending.own.project_id):
        assert secret not in text
    values = values_of(receiver.requests[-1])
    assert {name for _, labels in values for name, _ in labels} <= LABELS
    assert values[("hutch_host_up", ())] == 1
    created = [("method", "POST"), ("route", "/v2/sandboxes"), ("status", "200")]
    assert values[("hutch_http_requests_total", tuple(created))] == 1


async def test_a_host_that_is_away_is_told_of(sending: Api, receiver: Receiver, host: FakeHost) -> None:
    await until(lambda: receiver.requests and values_of(receiver.requests[-1])[("hutch_host_up", ())] == 1)
    await host.stop()
    await until(lambda: values_of(receiver.requests[-1])[("hutch_host_up", ())] == 0)
    await host.start()


def slow(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("content-length", "1000")
    request.end_headers()
    for _ in range(100):
        request.wfile.write(b"x")
        # It is the slowness that is tested.
        time.sleep(0.1)


FAULTS: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {
    "an error": lambda request: respond(request, 500),
    "too many": lambda request: respond(request, 429, **{"retry-after": "3600"}),
    "not authorized": lambda request: respond(request, 401),
    "elsewhere": lambda request: respond(request, 307, location="http://127.0.0.1:9/steal"),
    "silent": lambda request: time.sleep(5),
    "slow": slow,
    "broken": lambda request: request.connection.shutdown(socket.SHUT_RDWR),
}


@pytest.mark.parametrize("telemetry", [{"headers": "authorization=Bearer s3cret", "timeout_s": "4"}])
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_collector_that_fails_slows_nothing_and_is_asked_again(
    sending: Api, receiver: Receiver, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.instead = FAULTS[fault]
    await until(lambda: receiver.paths)
    counted = sending.services.metrics.telemetry_exports
    began, slowest = time.monotonic(), 0.0
    while time.monotonic() - began < 1.5:
        asked = time.monotonic()
        assert (await sending.http.get("/hutch/v1/whoami")).status_code == 200
        slowest = max(slowest, time.monotonic() - asked)
    # Who waited for the collector waited for `telemetry.timeout_s`.
    assert slowest < 3.0

    await until(lambda: counted.labels("failed")._value.get() + counted.labels("skipped")._value.get())
    receiver.instead = None
    await until(lambda: receiver.requests)
    assert counted.labels("sent")._value.get() <= len(receiver.requests)
    assert all("s3cret" not in record.getMessage() for record in caplog.records)
    assert "/steal" not in receiver.paths


@pytest.mark.parametrize("telemetry", [{"timeout_s": "60"}])
async def test_a_server_ends_at_once_while_a_collector_is_silent(
    tmp_path: Path, host: FakeHost, installed: Path, receiver: Receiver, telemetry: dict[str, str]
) -> None:
    ended = threading.Event()

    def wait(request: BaseHTTPRequestHandler) -> None:
        ended.wait(30)

    receiver.instead = wait
    async with served(tmp_path, host, settings_for(receiver.url, **telemetry), installed):
        await until(lambda: receiver.paths)
        began = time.monotonic()
    assert time.monotonic() - began < 5
    ended.set()


async def test_a_collector_that_is_not_there_is_said_once(
    tmp_path: Path, host: FakeHost, installed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    async with served(tmp_path, host, settings_for(f"http://127.0.0.1:{port}"), installed) as running:
        counted = running.services.metrics.telemetry_exports
        await until(lambda: counted.labels("failed")._value.get() >= 2)
    # The thread of a test before this one may still be sending.
    assert (
        sum(f"127.0.0.1:{port}/" in record.getMessage() for record in caplog.records if record.name == "hutch.api.telemetry") == 1
    )


def test_one_sending_at_a_time_and_none_after_the_end() -> None:
    class Slow:
        endpoint = ""

        def __init__(self) -> None:
            self.going = threading.Event()
            self.took: list[object] = []

        def points(self, registry: object) -> object:
            return registry

        def send(self, points: object) -> bool:
            self.took.append(points)
            assert self.going.wait(10)
            if points == "second":
                raise ValueError("an exporter that is broken")
            return True

    done: list[bool] = []
    exporter = Slow()
    sender = Sender(exporter, done.append)
    assert sender.offer("first")
    assert not sender.offer("left out")
    exporter.going.set()
    end = time.monotonic() + 10
    while not sender.offer("second"):
        assert time.monotonic() < end
    while len(done) < 2:
        assert time.monotonic() < end
    assert (exporter.took, done) == (["first", "second"], [True, False])
    sender.close()
    assert not sender.offer("third")


# -- without one ------------------------------------------------------------------------------------


def test_nothing_that_sends_is_imported_without_a_collector() -> None:
    """FastAPI imports OpenTelemetry's API, which is a few names; what measures, encodes and sends is not there."""
    late = ("opentelemetry.sdk", "opentelemetry.exporter", "opentelemetry.proto", "google.protobuf", "requests")
    script = (
        "import sys, os, pathlib\n"
        "from hutch.api import main, startup\nfrom hutch.serving import eager\nfrom hutch.settings import load\n"
        "settings = load(pathlib.Path(os.devnull))\nloaded = startup.load(settings)\neager.import_everything(settings)\n"
        f"print(loaded.exporter, sorted(name for name in sys.modules if name.startswith({late!r})))\n"
    )
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(CHECKOUT / "src")}
    printed = subprocess.check_output([sys.executable, "-c", script], env=environment, text=True, timeout=60)
    assert printed == "None []\n"


@pytest.mark.parametrize(
    "environment",
    [
        {"HUTCH_TELEMETRY__OTLP_ENDPOINT": "collector:4318"},
        {"HUTCH_TELEMETRY__OTLP_ENDPOINT": "grpc://collector:4317"},
        {"HUTCH_TELEMETRY__OTLP_ENDPOINT": "http://collector:4318?x=1"},
        {"HUTCH_TELEMETRY__HEADERS": "authorization"},
        {"HUTCH_TELEMETRY__HEADERS": '["a=b\\r\\nx: s3cret"]'},
        {"HUTCH_TELEMETRY__HEADERS": "bad name=s3cret"},
    ],
)
def test_settings_that_can_not_be_meant_are_refused_without_their_secrets(environment: dict[str, str]) -> None:
    with pytest.raises(SettingsError) as refused:
        load(Path(os.devnull), environment=environment)
    assert "s3cret" not in str(refused.value)


# -- the real one -----------------------------------------------------------------------------------

CONFIGURATION = """
receivers:
  otlp:
    protocols:
      http:
        endpoint: 127.0.0.1:{port}
exporters:
  debug:
    verbosity: detailed
service:
  telemetry:
    metrics:
      level: none
  pipelines:
    metrics:
      receivers: [otlp]
      exporters: [debug]
"""


@contextmanager
def real_collector(directory: Path) -> Iterator[tuple[str, Path]]:
    """URL and log of OpenTelemetry's own collector."""
    assert COLLECTOR.exists(), f"{COLLECTOR} is not there; `make setup-test` builds it."
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config, log = directory / "collector.yaml", directory / "collector.log"
    config.write_text(CONFIGURATION.format(port=port))
    with log.open("wb") as output:
        process = subprocess.Popen([str(COLLECTOR), "--config", str(config)], stdout=output, stderr=output)
    try:
        end = time.monotonic() + 30
        while "Everything is ready" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            # The collector says so in its log alone.
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}", log
    finally:
        process.terminate()
        process.wait(20)


async def test_the_real_collector_takes_them(tmp_path: Path, host: FakeHost, installed: Path) -> None:
    with real_collector(tmp_path) as (url, log):
        async with served(tmp_path, host, settings_for(url, timeout_s="10"), installed) as running:
            await running.create(name="one")
            counted = running.services.metrics.telemetry_exports
            pattern = r"-> method: Str\(POST\)\n\s+-> route: Str\(/v2/sandboxes\)\n\s+-> status: Str\(200\)"
            await until(lambda: re.search(pattern, log.read_text()))
            assert counted.labels("failed")._value.get() == 0
            names = {line.split()[-1] for line in log.read_text().splitlines() if line.strip().startswith("-> Name: ")}
            text = (await running.http.get("/metrics")).text
    told = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in text_string_to_metric_families(text)
        if family.samples and not family.name.endswith("_created")
    }
    assert len(told) > 10
    assert told <= names
    assert "service.name: Str(hutch)" in log.read_text()


def test_the_secret_headers_are_in_no_configuration_that_is_shown() -> None:
    settings = load(Path(os.devnull), environment={"HUTCH_TELEMETRY__HEADERS": "authorization=s3cret"})
    assert "s3cret" not in json.dumps([str(value) for value in settings.effective()])
