"""How soon a new sandbox answers: `tti.seq`, `create.first`, `tti.burst`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from bench.http import HttpError
from bench.javascript import javascript
from bench.machine import busy_cpu_s
from bench.measure import Result, Series, Target, at_most
from bench.raw import Raw, raw_runsc
from bench.sdk import Sdk
from bench.server import serving
from hutch.settings import load

NODE = ("node", "-v")
TRUE = ("/bin/true",)
BURST = 50
POLL_S = 0.02
SETTLED_S = 0.4
"""Longer than a machine takes to start."""


async def tti_seq(quick: bool) -> list[Result]:
    """Create → `node -v` has answered, one after another, by the vendor's JavaScript SDK, with the pool and without."""
    return [
        await _by_javascript("tti.seq", None, 10 if quick else 100, {"p50": 100, "p99": 250}),
        await _by_javascript("tti.seq.nopool", 0, 5 if quick else 50, {"p50": 300}),
    ]


async def _by_javascript(name: str, pool: int | None, count: int, limits: dict[str, float]) -> Result:
    with serving(pool) as server:
        async with javascript(server.where) as sdk:
            probe = await sdk.first_command(["uname", "-r"])
            assert "gvisor" in probe.stdout, f"`uname -r` said {probe.stdout!r}: that is no sandbox"
            cpu = busy_cpu_s()
            found = [(await sdk.first_command(NODE)).ms for _ in range(count)]
            cpu_ms = (busy_cpu_s() - cpu) * 1000 / count
    samples = [ms for ms in found if ms is not None]
    kept = "pool off" if pool == 0 else "default pool, refilling meanwhile"
    what = f"@vercel/sandbox: create → `{' '.join(NODE)}`, one after another, {kept}"
    return _beside_raw(name, what, Series.of(samples, "ms", count - len(samples)), NODE, limits, cpu_ms)


async def create_first(quick: bool) -> list[Result]:
    """Create → `/bin/true` has ended, one after another: with a full pool, with the pool as fast as it refills, and without."""
    return [
        await _sequence("create.first", TRUE, None, 10 if quick else 100, {"p50": 30}, full_pool=True),
        await _sequence("create.first.drained", TRUE, None, 10 if quick else 100, {}),
        await _sequence("create.first.nopool", TRUE, 0, 5 if quick else 50, {"p50": 180}),
    ]


async def _sequence(
    name: str, argv: Sequence[str], pool: int | None, count: int, limits: dict[str, float], *, full_pool: bool = False
) -> Result:
    """`full_pool` waits before each create, off the clock, until the pool is as it should be."""
    samples, failures = [], 0
    wanted = load().pool.size
    with serving(pool) as server:
        sdk = Sdk(server.where)
        await _probe(sdk)
        cpu = busy_cpu_s()
        for _ in range(count):
            if full_pool:
                await _until_pooled(sdk, wanted)
            start = time.perf_counter()
            try:
                sandbox = await sdk.create()
                code, _ = await sdk.run(sandbox, argv)
                elapsed = time.perf_counter() - start
                if code == 0:
                    samples.append(elapsed * 1000)
                else:
                    failures += 1
                await sdk.delete(sandbox)
            except (HttpError, OSError):
                failures += 1
        cpu_ms = (busy_cpu_s() - cpu) * 1000 / count
        await sdk.close()
    kept = "pool off" if pool == 0 else "each with a full pool" if full_pool else "default pool, refilling meanwhile"
    what = f"create → `{' '.join(argv)}`, one after another, {kept}"
    return _beside_raw(name, what, Series.of(samples, "ms", failures), argv, limits, cpu_ms)


def _beside_raw(name: str, what: str, ours: Series, argv: Sequence[str], limits: dict[str, float], cpu_ms: float) -> Result:
    """The same command in plain `runsc`, a third as often."""
    with raw_runsc() as raw:
        peer = Series.of([_raw_start(raw, argv) for _ in range(max(5, ours.n // 3))])
    targets = [at_most(f"{percentile} ms", getattr(ours, percentile), limit) for percentile, limit in limits.items()]
    facts = {"machine_cpu_ms_each": round(cpu_ms, 1)}
    return Result(name, what, ours, peer, "runsc run of the same", [*targets, _no_failures(ours.failures)], facts)


async def _until_pooled(sdk: Sdk, wanted: int) -> None:
    """Wait until that many machines are ready, and no more are being made: a pool follows demand. The server tells nobody."""
    ready, since = -1, 0.0
    while ready < wanted or time.perf_counter() - since < SETTLED_S:
        found = await sdk.pooled()
        if found != ready:
            ready, since = found, time.perf_counter()
        await asyncio.sleep(POLL_S)


async def _probe(sdk: Sdk) -> None:
    """That commands really run in a sandbox. Raises `AssertionError`."""
    sandbox = await sdk.create()
    code, kernel = await sdk.run(sandbox, ["uname", "-r"])
    assert code == 0, f"`uname -r` ended with {code}"
    assert "gvisor" in kernel, f"`uname -r` said {kernel!r}: that is no sandbox"
    await sdk.delete(sandbox)


def _no_failures(failures: int) -> Target:
    return Target("no failures", failures, failures == 0)


def _raw_start(raw: Raw, argv: Sequence[str]) -> float:
    name = raw.prepare(
        [f"/usr/bin/{argv[0]}" if "/" not in argv[0] else argv[0], *argv[1:]] if argv != NODE else ["/usr/bin/env", *argv]
    )
    start = time.perf_counter()
    raw.mount(name)
    raw.run(name)
    elapsed = time.perf_counter() - start
    raw.remove(name)
    return elapsed * 1000


async def tti_burst(quick: bool) -> list[Result]:
    """Fifty creates at once, until each has answered a command."""
    count = 10 if quick else BURST
    with serving() as server:
        sdk = Sdk(server.where)
        await _probe(sdk)
        start = time.perf_counter()

        async def one() -> float | None:
            try:
                sandbox = await sdk.create()
                code, _ = await sdk.run(sandbox, TRUE)
            except (HttpError, OSError):
                return None
            return (time.perf_counter() - start) * 1000 if code == 0 else None

        found = await asyncio.gather(*(one() for _ in range(count)))
        await sdk.close()
    samples = [sample for sample in found if sample is not None]
    failures = count - len(samples)
    with raw_runsc() as raw:
        names = [raw.prepare(list(TRUE)) for _ in range(count)]

        def burst(name: str) -> float:
            raw.mount(name)
            raw.run(name)
            return (time.perf_counter() - began) * 1000

        began = time.perf_counter()
        peers = await asyncio.gather(*(asyncio.to_thread(burst, name) for name in names))
    ours = Series.of(samples, "ms", failures)
    targets = [at_most("wall s", ours.max / 1000, 5), _no_failures(failures)]
    what = f"{count} creates at once, each until its first command answered"
    return [Result("tti.burst", what, ours, Series.of(peers), f"{count} × runsc run at once", targets)]
