"""Commands in a warm sandbox: `exec.rt`, `exec.stream`."""

from __future__ import annotations

import asyncio
import subprocess
import time

from bench.http import HttpError
from bench.machine import MIB, descendants, resident_bytes
from bench.measure import Result, Series, at_least, at_most
from bench.raw import raw_runsc
from bench.sdk import Sdk
from bench.server import serving

STREAM_BYTES = 1024 * MIB
_WRITER = "import os\nline = b'x' * 1023 + b'\\n'\nblock = line * 64\nfor _ in range({blocks}): os.write(1, block)"


async def exec_rt(quick: bool) -> list[Result]:
    """A waited `/bin/true` through the API, against `runsc exec` of the same."""
    count, failures = (100 if quick else 1000), 0
    samples = []
    with serving() as server:
        sdk = Sdk(server.where)
        sandbox = await sdk.create()
        await sdk.run(sandbox, ["/bin/true"])
        for _ in range(count):
            start = time.perf_counter()
            try:
                code, _ = await sdk.run(sandbox, ["/bin/true"])
            except (HttpError, OSError):
                code = -1
            if code == 0:
                samples.append((time.perf_counter() - start) * 1000)
            else:
                failures += 1
        await sdk.delete(sandbox)
        await sdk.close()
    peers = []
    with raw_runsc() as raw, raw.sandbox() as name:
        raw.execute(name, ["/bin/true"])
        for _ in range(count // 5):
            start = time.perf_counter()
            raw.execute(name, ["/bin/true"])
            peers.append((time.perf_counter() - start) * 1000)
    ours, peer = Series.of(samples, "ms", failures), Series.of(peers)
    targets = [at_most("p50 ms", ours.p50, 8), at_most("p50 of the peer's", ours.p50 / peer.p50, 0.35)]
    return [Result("exec.rt", "waited /bin/true in one sandbox, one after another", ours, peer, "runsc exec", targets)]


async def exec_stream(quick: bool) -> list[Result]:
    """Standard output at full speed through the API to a client that throws it away."""
    size = STREAM_BYTES // (8 if quick else 1)
    script = ["python3", "-c", _WRITER.format(blocks=size // (64 * 1024))]
    rates, most = [], 0
    with serving() as server:
        sdk = Sdk(server.where)
        sandbox = await sdk.create()
        await sdk.run(sandbox, ["python3", "-c", "0"])
        for _ in range(3):
            before = resident_bytes(descendants(server.pid))
            watcher = asyncio.create_task(_most_resident(server.pid))
            start = time.perf_counter()
            received = 0
            async for chunk in sdk.output(sandbox, script):
                received += len(chunk)
            rates.append(size / MIB / (time.perf_counter() - start))
            watcher.cancel()
            most = max(most, (await asyncio.gather(watcher, return_exceptions=True))[0] - before)  # type: ignore[operator]
            assert received > size, "less arrived than was written"
        await sdk.delete(sandbox)
        await sdk.close()
    with raw_runsc() as raw, raw.sandbox() as name:
        peers = [_piped(raw.command("exec", name, *script), size) for _ in range(3)]
    ours = Series.of(rates, "MiB/s")
    targets = [at_least("MB/s", ours.p50 * MIB / 1e6, 300), at_most("growth of the server's memory, MiB", most / MIB, 64)]
    what = f"{size // MIB} MiB of standard output"
    return [Result("exec.stream", what, ours, Series.of(peers, "MiB/s"), "a pipe through runsc exec", targets)]


def _piped(command: list[str], size: int) -> float:
    """MiB per second out of a command's standard output. Blocks: nothing else is to run meanwhile."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        read = 0
        while chunk := process.stdout.read(256 * 1024):
            read += len(chunk)
    assert read == size, f"{read} of {size} bytes arrived"
    return size / MIB / (time.perf_counter() - start)


async def _most_resident(pid: int) -> int:
    most = 0
    try:
        while True:
            most = max(most, resident_bytes(descendants(pid)))
            await asyncio.sleep(0.1)
    except asyncio.CancelledError:
        return most
