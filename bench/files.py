"""Files in and out through the agent, against `tar` inside the same guest: `files.put`, `files.get`."""

from __future__ import annotations

import io
import os
import tarfile
import time
from collections.abc import AsyncIterator

from bench.machine import MIB
from bench.measure import Result, Series, at_least
from bench.sdk import Sandbox, Sdk
from bench.server import serving

BIG_BYTES = 256 * MIB
SMALL_FILES = 5000
SMALL_BYTES = 3000
ROUNDS = 3
CHUNK_BYTES = MIB
AREA = "/vercel"
"""The default user's home, where commands start."""


def _archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


async def _chunks(data: bytes) -> AsyncIterator[bytes]:
    view = memoryview(data)
    for start in range(0, len(data), CHUNK_BYTES):
        yield bytes(view[start : start + CHUNK_BYTES])


async def put_and_get(quick: bool) -> list[Result]:
    """One file of 256 MiB, and 5,000 small ones in one archive."""
    big = BIG_BYTES // (8 if quick else 1)
    small = SMALL_FILES // (10 if quick else 1)
    one = _archive({"big": os.urandom(big)})
    many = _archive({f"small/{number // 100}/{number}": os.urandom(SMALL_BYTES) for number in range(small)})
    results = []
    with serving() as server:
        sdk = Sdk(server.where)
        sandbox = await sdk.create()
        for name, archive, size in (("big", one, big), ("small", many, small * SMALL_BYTES)):
            ours = [await _put(sdk, sandbox, archive, f"{AREA}/{name}{number}", size) for number in range(ROUNDS)]
            await sdk.put(sandbox, _chunks(_archive({"x.tar": archive})), AREA)
            unpack = "mkdir t{n} && tar -xf x.tar -C t{n}"
            peers = [await _inside(sdk, sandbox, unpack.format(n=f"{name}{number}"), size) for number in range(ROUNDS)]
            results.append(_result("files.put", name, ours, peers, size))
        path = f"{AREA}/big0/big"
        ours = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            assert await sdk.get(sandbox, path) == big
            ours.append(big / MIB / (time.perf_counter() - start))
        peers = [await _inside(sdk, sandbox, f"tar -cf - {path} 2>/dev/null | cat >/dev/null", big) for _ in range(ROUNDS)]
        results.append(_result("files.get", "big", ours, peers, big))
        await sdk.delete(sandbox)
        await sdk.close()
    return results


def _result(identifier: str, name: str, ours: list[float], peers: list[float], size: int) -> Result:
    mine, peer = Series.of(ours, "MiB/s"), Series.of(peers, "MiB/s")
    targets = [at_least("of the peer's rate", mine.p50 / peer.p50, 0.8)]
    if name == "big":
        targets.insert(0, at_least("MB/s", mine.p50 * MIB / 1e6, 200))
    what = (
        f"one file of {size // MIB} MiB"
        if name == "big"
        else f"{size // SMALL_BYTES} files of {SMALL_BYTES} bytes in one archive"
    )
    return Result(f"{identifier}.{name}", what, mine, peer, "tar in the same guest", targets)


async def _put(sdk: Sdk, sandbox: Sandbox, archive: bytes, cwd: str, size: int) -> float:
    start = time.perf_counter()
    await sdk.put(sandbox, _chunks(archive), cwd)
    return size / MIB / (time.perf_counter() - start)


async def _inside(sdk: Sdk, sandbox: Sandbox, script: str, size: int) -> float:
    start = time.perf_counter()
    code, _ = await sdk.run(sandbox, ["sh", "-c", script])
    assert code == 0, f"{script!r} ended with {code}"
    return size / MIB / (time.perf_counter() - start)
