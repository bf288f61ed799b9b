"""What wrk prints, read."""

from __future__ import annotations

import pytest

from bench import wrk

PRINTED = """Running 8s test @ http://192.0.2.1:8000/
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     2.24ms  812.00us  14.55ms   91.22%
    Req/Sec    14.20k     1.02k   16.11k    80.00%
  Latency Distribution
     50%  812.00us
     75%    2.31ms
     90%    2.70ms
     99%    1.10s
  113203 requests in 8.00s, 15.98MB read
  Socket errors: connect 1, read 2, write 0, timeout 3
  Non-2xx or 3xx responses: 4
Requests/sec:  14148.71
Transfer/sec:      2.00GB
"""


def test_a_report_is_read() -> None:
    load = wrk.read(PRINTED, used_cpu_s=2.0)
    assert (load.requests, load.errors, load.per_second) == (113203, 10, 14148.71)
    assert (load.p50_ms, load.p99_ms, load.mib_per_second) == (0.812, 1100, 2048)
    assert load.per_cpu_second == pytest.approx(56601.5)


def test_what_is_no_report_is_an_error() -> None:
    with pytest.raises(ValueError, match="unpack"):
        wrk.read("unable to connect", used_cpu_s=0)
