"""How long it takes to keep files and memory, and to go on from them: `snap.create`, `snap.start`, `fork.n`."""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from bench.measure import Result, Series, Target, at_most
from bench.raw import raw_runsc
from bench.sdk import Sandbox, Sdk
from bench.server import serving

TRUE = ("/bin/true",)
POLL_S = 0.02
SIZES = {"10 MB": ("", 10, 1), "1 GB": (".1gb", 1024, 1), "1 GB in 50,000 files": (".files", 1024, 50_000)}
"""What is added to the id, mebibytes and files."""
FORKS_S = {100: 10.0}
"""Most seconds for so many."""
FILL = """
import os, sys
size, count = int(sys.argv[1]) << 20, int(sys.argv[2])
block = os.urandom(min(1 << 20, size // count))
for number in range(count):
    if number % 500 == 0:
        os.makedirs(f"filled/{number // 500}")
    with open(f"filled/{number // 500}/{number}", "wb") as file:
        for _ in range(max(1, size // count >> 20)):
            file.write(block)
"""
WRITER = """
import os, sys, time
kept = bytearray(os.urandom(1 << 20)) * int(sys.argv[1])
longest, last, end = 0.0, time.monotonic(), time.monotonic() + float(sys.argv[2])
with open("written", "wb", buffering=0) as file:
    while last < end:
        file.seek(0)
        file.write(b"x" * 512)
        now = time.monotonic()
        longest, last = max(longest, now - last), now
print(longest * 1000)
"""


@asynccontextmanager
async def _server(pool: int | None = 0) -> AsyncIterator[Sdk]:
    with serving(pool) as server:
        sdk = Sdk(server.where)
        yield sdk
        await sdk.close()


async def _filled(sdk: Sdk, size_mib: int, files: int) -> Sandbox:
    sandbox = await sdk.create()
    code, _ = await sdk.run(sandbox, ["python3", "-c", FILL, str(size_mib), str(files)])
    assert code == 0, f"filling ended with {code}"
    return sandbox


# -- snap.create -------------------------------------------------------------------------------------


async def snap_create(quick: bool) -> list[Result]:
    """Request → the session is over and its files begin another one; and of one that runs on, with what its guest noticed."""
    rounds = 2 if quick else 5
    results = []
    async with _server() as sdk:
        by_size: dict[str, Series] = {}
        for label, (suffix, size, files) in list(SIZES.items())[: 1 if quick else None]:
            samples, durable = [], []
            for _ in range(rounds):
                sandbox = await _filled(sdk, size, files)
                start = time.perf_counter()
                snapshot = await sdk.snapshot(sandbox)
                samples.append((time.perf_counter() - start) * 1000)
                durable.append(await _durable(sdk, snapshot["id"]) - snapshot["createdAt"])
            by_size[label] = Series.of(samples)
            peer = None if quick else Series.of([_copied(size, files)])
            targets = [at_most("p50 ms", by_size[label].p50, 60)]
            if label != "10 MB":
                targets.append(at_most("× of 10 MB", by_size[label].p50 / by_size["10 MB"].p50, 2))
            facts = {"durable_ms": Series.of(durable).p50}
            what = f"a snapshot that ends its session, {label} written"
            results.append(Result(f"snap.create{suffix}", what, by_size[label], peer, "cp -a", targets, facts))
        results.append(await _live(sdk, rounds, memory=False))
        results.append(await _live(sdk, rounds, memory=True))
    return results


async def _durable(sdk: Sdk, snapshot_id: str) -> int:
    """When a snapshot began to survive a power cut, in milliseconds since the epoch."""
    while (at := (await sdk.shown_snapshot(snapshot_id)).get("durableAt")) is None:  # noqa: ASYNC110 - nobody is told
        await asyncio.sleep(POLL_S)
    return int(at)


def _copied(size_mib: int, files: int) -> float:
    """How long `cp -a` of as many files takes here, in milliseconds."""
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(["python3", "-c", FILL, str(size_mib), str(files)], cwd=scratch, check=True)
        start = time.perf_counter()
        subprocess.run(["cp", "-a", str(Path(scratch) / "filled"), str(Path(scratch) / "copy")], check=True)
        return (time.perf_counter() - start) * 1000


async def _live(sdk: Sdk, rounds: int, *, memory: bool) -> Result:
    """A snapshot of a sandbox in which a process holds 256 MiB and writes all the time."""
    samples, pauses = [], []
    for _ in range(rounds):
        sandbox = await sdk.create()
        writing = asyncio.ensure_future(sdk.run(sandbox, ["python3", "-c", WRITER, "256", "5"]))
        await asyncio.sleep(2.5)
        start = time.perf_counter()
        await sdk.snapshot(sandbox, keep_running=True, memory=memory)
        samples.append((time.perf_counter() - start) * 1000)
        code, printed = await writing
        assert code == 0, printed
        pauses.append(float(printed))
        await sdk.delete(sandbox)
    pause = Series.of(pauses)
    targets = [at_most("longest pause of a writer, p50 ms", pause.p50, 400)] if memory else []
    what = "a snapshot of a sandbox that runs on" + (", with 256 MiB of memory" if memory else "")
    facts = {"pause_p50_ms": round(pause.p50, 1), "pause_max_ms": round(pause.max, 1)}
    return Result(f"snap.create.{'memory' if memory else 'live'}", what, Series.of(samples), None, "", targets, facts)


# -- snap.start --------------------------------------------------------------------------------------


async def snap_start(quick: bool) -> list[Result]:
    """Create → `/bin/true` has ended, with the files of a snapshot and with those of the image, in turns, pool off."""
    rounds = 3 if quick else 20
    results = []
    async with _server() as sdk:
        for label, (suffix, size, files) in list(SIZES.items())[: 1 if quick else None]:
            snapshot = await sdk.snapshot(await _filled(sdk, size, files))
            await _durable(sdk, snapshot["id"])
            ours, base = [], []
            for _ in range(rounds):
                ours.append(await _started(sdk, snapshot["id"]))
                base.append(await _started(sdk, None))
            mine, peer = Series.of(ours), Series.of(base)
            targets = [at_most("× of the image's", mine.p50 / peer.p50, 1.2)]
            results.append(
                Result(
                    f"snap.start{suffix}",
                    f"create from a snapshot of {label} → first command",
                    mine,
                    peer,
                    "from the image",
                    targets,
                )
            )
        sandbox = await sdk.create()
        memory = await sdk.snapshot(sandbox, memory=True)
        restored = Series.of([await _started(sdk, memory["id"]) for _ in range(rounds)])
        results.append(Result("snap.start.memory", "create from an idle sandbox's memory → first command", restored))
    async with _server(None) as sdk:
        snapshot = await sdk.snapshot(await _filled(sdk, 10, 1))
        hot = Series.of([await _started(sdk, snapshot["id"], rest_s=0.5) for _ in range(rounds + 3)][3:])
        results.append(Result("snap.start.hot", "the same again and again, twice a second, default pool", hot))
    return results


async def _started(sdk: Sdk, snapshot_id: str | None, rest_s: float = 0.0) -> float:
    start = time.perf_counter()
    sandbox = await sdk.create(snapshot=snapshot_id)
    code, _ = await sdk.run(sandbox, TRUE)
    elapsed = (time.perf_counter() - start) * 1000
    assert code == 0
    await sdk.delete(sandbox)
    await asyncio.sleep(rest_s)
    return elapsed


# -- fork.n ------------------------------------------------------------------------------------------


async def fork_n(quick: bool) -> list[Result]:
    """One parent → 1, 10, 100 forks, until each has answered a command."""
    async with _server() as sdk:
        parent = await _filled(sdk, 10, 1)
        await sdk.snapshot(parent)
        counts = (1, 10, 100)[: 2 if quick else None]
        results = [await _forked(sdk, parent, count, memory=False) for count in counts]
        running = await sdk.create()
        with_memory = (1,) if quick else (1, 10)
        return results + [await _forked(sdk, running, count, memory=True) for count in with_memory]


async def _forked(sdk: Sdk, parent: Sandbox, count: int, *, memory: bool) -> Result:
    start = time.perf_counter()
    forks = await sdk.fork(parent, count, memory=memory)
    answers = await asyncio.gather(*(sdk.run(fork, TRUE) for fork in forks))
    wall_ms = (time.perf_counter() - start) * 1000
    failures = sum(code != 0 for code, _ in answers)
    await asyncio.gather(*(sdk.delete(fork) for fork in forks))
    targets = [Target("no failures", failures, failures == 0)]
    if count in FORKS_S and not memory:
        targets.append(at_most("wall s", wall_ms / 1000, FORKS_S[count]))
    peer = Series.of([await _cold(count)]) if not memory else None
    what = f"{count} forks of one sandbox{' with its memory' if memory else ''}, until each answered"
    name = f"fork.{'memory.' if memory else ''}{count}"
    return Result(name, what, Series.of([wall_ms], "ms", failures), peer, f"{count} × runsc run at once", targets)


async def _cold(count: int, argv: Sequence[str] = TRUE) -> float:
    with raw_runsc() as raw:
        names = [raw.prepare([f"/usr/bin/{Path(argv[0]).name}"]) for _ in range(count)]

        def one(name: str) -> None:
            raw.mount(name)
            raw.run(name)

        start = time.perf_counter()
        await asyncio.gather(*(asyncio.to_thread(one, name) for name in names))
        return (time.perf_counter() - start) * 1000
