"""Workers: how long a tool takes, how many of its calls go at once, how long a deploy, and a hundred syncs that are due together.

The worker is deployed by the requests that `ntn` makes, without its own time.
"""

from __future__ import annotations

import asyncio
import io
import json
import math
import statistics
import tarfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import httpx

from bench.measure import Result, Series, at_most
from bench.server import serving

SYNCS = 100
AT_ONCE = 16
PAUSE_S = 1.5
"""Between calls of one tool: the next sandbox is ready by then."""
LEAD_S = 120
"""From before the deploy until syncs are due, at least. Schedules are mostly known for longer than that."""
PACKAGE = {
    "name": "measured",
    "private": True,
    "type": "module",
    "scripts": {"build": "mkdir -p dist && cp src/index.js dist/index.js"},
    "dependencies": {"@notionhq/workers": "0.9.2"},
}
PROGRAM = """
import { Worker, j } from "@notionhq/workers";
const worker = new Worker();
worker.tool("echo", {
  title: "Echo", description: "Says it again.", schema: j.object({ text: j.string() }), execute: ({ text }) => text,
});
const table = worker.database("rows", {
  type: "managed", initialTitle: "Rows", primaryKeyProperty: "Id",
  schema: { properties: { Id: { type: "title" }, Began: { type: "text" } } },
});
for (let number = 0; number < SYNCS; number++) {
  worker.sync(`sync-${number}`, {
    database: table, mode: "incremental", schedule: "manual",
    execute: async () => {
      const key = `${Math.floor(Date.now() / 60_000)}-${number}`;
      const properties = { Id: [[key]], Began: [[`${Date.now()}`]] };
      return { changes: [{ type: "upsert", key, properties }], hasMore: false };
    },
  });
}
// All of them at one minute of each hour, which the SDK has no way to say.
const manifest = JSON.parse(JSON.stringify(worker.manifest));
for (const { _tag, config } of manifest.capabilities) {
  if (_tag === "sync") config.schedule = { type: "cron", expression: "MINUTE * * * *" };
}
export default { manifest, run: (key, context) => worker.run(key, context) };
"""


class Door:
    """What `ntn` asks for."""

    def __init__(self, url: str, token: str) -> None:
        self._http = httpx.AsyncClient(base_url=f"{url}/api", headers={"authorization": f"Bearer {token}"}, timeout=300)

    async def close(self) -> None:
        await self._http.aclose()

    async def call(self, endpoint: str, **body: Any) -> Any:
        response = await self._http.post(f"/v3/workers{endpoint}", json=body)
        response.raise_for_status()
        return response.json() if response.headers["content-type"].startswith("application/json") else response.text

    async def own(self, method: str, path: str, body: Any = None) -> Any:
        return (await self._http.request(method, f"/hutch/v1/workers/{path}", json=body)).raise_for_status().json()

    async def create(self, syncs: int, minute: int = 0) -> str:
        """A worker with so many syncs, due at that minute of each hour."""
        made = await self.call("CreateWorker", name="measured", uploadType="source")
        await self._finish(made, made["worker"]["workerId"], syncs, minute)
        return str(made["worker"]["workerId"])

    async def deploy(self, worker: str, syncs: int) -> None:
        await self._finish(await self.call("UpdateWorker", workerId=worker, uploadType="source"), worker, syncs)

    async def _finish(self, upload: Any, worker: str, syncs: int, minute: int = 0) -> None:
        async with httpx.AsyncClient(timeout=60) as nobody:
            (await nobody.post(upload["url"], files={"file": _archive(syncs, minute)})).raise_for_status()
        built = await self.call("BuildWorker", workerId=worker, stream=True)
        if '{"ok":true}' not in built:
            raise RuntimeError(f"the worker was not built: {built[-2000:]}")
        await self.call("FetchAndSaveCapabilities", workerId=worker)

    async def ask(self, worker: str) -> float:
        """Call the tool; milliseconds."""
        began = time.perf_counter()
        found = await self.call("RunCapability", workerId=worker, capabilityKey="echo", args={"text": "x"}, stream=False)
        if found != {"result": "x"}:
            raise RuntimeError(f"the tool returned {found}")
        return (time.perf_counter() - began) * 1000


def _archive(syncs: int, minute: int) -> bytes:
    buffer = io.BytesIO()
    program = PROGRAM.replace("SYNCS", str(syncs)).replace("MINUTE", str(minute))
    files = {"package.json": json.dumps(PACKAGE), "src/index.js": program}
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()


@asynccontextmanager
async def _door() -> AsyncIterator[Door]:
    with serving() as server:
        door = Door(server.where.url, server.where.token)
        try:
            yield door
        finally:
            await door.close()


async def worker_tool(quick: bool) -> list[Result]:
    """A call of a tool, one after another: with a sandbox that waits for it, and the first one after each deploy, without."""
    async with _door() as door:
        worker = await door.create(0)
        cold, deploys, warm = [], [], []
        for _ in range(2 if quick else 5):
            began = time.perf_counter()
            await door.deploy(worker, 0)
            deploys.append(time.perf_counter() - began)
            cold.append(await door.ask(worker))
            await asyncio.sleep(PAUSE_S)
        for _ in range(5 if quick else 40):
            warm.append(await door.ask(worker))
            await asyncio.sleep(PAUSE_S)
        ours, peer, deployed = Series.of(warm), Series.of(cold), Series.of(deploys, "s")
    return [
        Result(
            "worker.tool", "a tool, called again", ours, peer, "the first call after a deploy", [at_most("p50", ours.p50, 150)]
        ),
        Result("worker.deploy", "a deploy with the same dependencies", deployed, targets=[at_most("p50 s", deployed.p50, 5)]),
    ]


async def worker_rate(quick: bool) -> list[Result]:
    """Calls of one tool, many at once: how many a second."""
    async with _door() as door:
        worker = await door.create(0)
        await door.ask(worker)
        rates = []
        for _ in range(1 if quick else 5):
            began = time.perf_counter()
            await asyncio.gather(*(door.ask(worker) for _ in range(AT_ONCE)))
            rates.append(AT_ONCE / (time.perf_counter() - began))
    return [Result("worker.rate", f"calls of a tool a second, {AT_ONCE} at once", Series.of(rates, "/s"))]


async def worker_syncs(quick: bool) -> list[Result]:
    """A hundred syncs that are due at the same minute of an hour: when the code of each began, by the clock of its sandbox."""
    count = 10 if quick else SYNCS
    async with _door() as door:
        due_s = math.ceil((time.time() + LEAD_S) / 60) * 60
        minute = due_s // 60
        worker = await door.create(count, minute % 60)
        while True:
            await asyncio.sleep(max(0.5, due_s - time.time()))
            began = await _began(door, worker, minute)
            if len(began) >= count:
                break
            if time.time() > due_s + 50:
                raise RuntimeError(f"{len(began)} of {count} syncs began")
        waited = [max(0.0, at / 1000 - due_s) for at in began]
    ours = Series.of(waited, "s")
    facts = {"median_s": round(statistics.median(waited), 2)}
    targets = [at_most("s, all", ours.max, 10)]
    return [Result("worker.syncs", f"{count} syncs due at once: their code began after", ours, targets=targets, facts=facts)]


async def _began(door: Door, worker: str, minute: int) -> list[int]:
    """When the syncs of a minute began, as their rows say."""
    found: list[int] = []
    after: str | None = None
    while True:
        page = await door.own("GET", f"{worker}/databases/rows/rows?limit=1000" + (f"&after={quote(after)}" if after else ""))
        found += [int(row["properties"]["Began"]) for row in page["rows"] if row["key"].startswith(f"{minute}-")]
        after = page["next"]
        if after is None:
            return found
