"""What the sandbox takes from a program that only computes: `cpu.overhead`."""

from __future__ import annotations

import subprocess
from pathlib import Path

from bench.measure import Result, Series, at_least
from bench.raw import raw_runsc
from bench.sdk import Sdk
from bench.server import serving

_PROGRAM = """
import hashlib, time
start = time.perf_counter()
total, digest = 0, b""
for number in range({rounds}):
    total += number * number % 7
    if number % 1000 == 0:
        digest = hashlib.sha256(digest + bytes(4096)).digest()
print(time.perf_counter() - start)
"""
ROUNDS = 20_000_000


def _bare(root: Path, argv: list[str]) -> float:
    """Milliseconds of the program in a chroot. Blocks: nothing else is to run meanwhile."""
    done = subprocess.run(["chroot", str(root), *argv], check=True, capture_output=True, text=True)
    return float(done.stdout) * 1000


async def cpu_overhead(quick: bool) -> list[Result]:
    """The same Python from the same image: in a sandbox, and on the bare host in a chroot. The program times itself."""
    program = _PROGRAM.format(rounds=ROUNDS // (10 if quick else 1))
    argv = ["/usr/bin/python3", "-c", program]
    inside, outside = [], []
    with serving() as server, raw_runsc() as raw:
        sdk = Sdk(server.where)
        sandbox = await sdk.create()
        name = raw.prepare(argv)
        raw.mount(name)
        # Turn by turn, so that a noisy minute of the machine hits both.
        for _ in range(3 if quick else 7):
            code, text = await sdk.run(sandbox, argv)
            assert code == 0
            inside.append(float(text) * 1000)
            outside.append(_bare(raw.root(name), argv))
        await sdk.delete(sandbox)
        await sdk.close()
    ours, peer = Series.of(inside), Series.of(outside)
    targets = [at_least("of native speed", peer.p50 / ours.p50, 0.95)]
    return [Result("cpu.overhead", "a CPU-bound Python program", ours, peer, "the same on the bare host", targets)]
