"""What the API itself costs: `api.overhead`."""

from __future__ import annotations

import asyncio
import time

from bench.http import HttpError
from bench.measure import Result, Series
from bench.sdk import Sdk
from bench.server import serving

CONNECTIONS = 16


async def api_overhead(quick: bool) -> list[Result]:
    """`GET sandbox` as fast as the process answers, over sixteen connections."""
    seconds = 1.0 if quick else 10.0
    samples: list[float] = []
    failures = 0
    with serving() as server:
        sdk = Sdk(server.where)
        sandbox = await sdk.create()
        end = time.perf_counter() + seconds

        async def ask() -> None:
            nonlocal failures
            while (start := time.perf_counter()) < end:
                try:
                    await sdk.show(sandbox)
                except (HttpError, OSError):
                    failures += 1
                else:
                    samples.append((time.perf_counter() - start) * 1000)

        await asyncio.gather(*(ask() for _ in range(CONNECTIONS)))
        await sdk.delete(sandbox)
        await sdk.close()
    facts = {"requests_per_s": round(len(samples) / seconds)}
    return [
        Result("api.overhead", f"GET sandbox over {CONNECTIONS} connections", Series.of(samples, "ms", failures), facts=facts)
    ]
