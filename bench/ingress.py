"""The ingress: `ingress.rps`, `ingress.added`, `ingress.large`.

A load generator (wrk) on the host asks a program (Node) in a sandbox: through the ingress, and, as the peer, at the guest's
address from the host's side of its network. The kernel lets only the ingress's user connect there; so that is whom the peer's
generator runs as. What the program and its kernel can do bounds both.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench import wrk
from bench.machine import MIB
from bench.measure import Result, Series, at_least, at_most
from bench.server import serving
from hutch.client import AsyncClient

PORT = 8000
SECONDS, QUICK_SECONDS = 8, 2
ROUNDS = 3
CONNECTIONS = 32
LARGE_BYTES = 64 * MIB
LISTEN_S = 30.0
_PROGRAM = f"""
const large = Buffer.alloc({LARGE_BYTES}, "x");
require("http").createServer((request, response) => {{
  const body = request.url === "/large" ? large : "ok\\n";
  response.writeHead(200, {{"content-length": body.length}});
  response.end(body);
}}).listen({PORT}, "0.0.0.0");
"""


@dataclass(frozen=True, slots=True)
class Setup:
    """Where the program is, by both ways, and the ingress."""

    base: str
    host: str
    direct: str
    ingress_pid: int

    def user(self) -> int:
        status = Path(f"/proc/{self.ingress_pid}/status").read_text()
        return int(status.partition("Uid:")[2].split()[0])


@asynccontextmanager
async def _setup() -> AsyncIterator[Setup]:
    wrk.tools()
    with serving() as server:
        async with AsyncClient(server.where) as client:
            made = await client.sandboxes.create(ports=[PORT], persistent=False)
            start = f"cat > /tmp/program.js <<'END'\n{_PROGRAM}\nEND\nnohup node /tmp/program.js > /tmp/log 2>&1 &"
            code, address, _ = await client.commands.run(made.session.id, ["sh", "-c", f"{start} hostname -I"])
            assert code == 0, "the program could not be started"
            base = server.where.ingress_url
            host = f"{made.routes[0].subdomain}.localhost:{urlsplit(base).port}"
            pid = int((server.data_dir / "host" / "ingress" / "process").read_text().split()[0])
            setup = Setup(base, host, f"http://{address.split()[0]}:{PORT}", pid)
            async with asyncio.timeout(LISTEN_S):
                while (await _wrk(setup, "/", 1, 1, through=True)).errors:
                    pass
            yield setup
            await client.sandboxes.delete(made.sandbox.name)


async def _wrk(setup: Setup, path: str, seconds: int, connections: int, *, through: bool) -> wrk.Load:
    """Load on the program, through the ingress or beside it."""
    words = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "60s", "--latency"]
    if through:
        words += [f"-HHost: {setup.host}", f"{setup.base}{path}"]
    else:
        user = str(setup.user())
        words = ["setpriv", "--reuid", user, "--regid", user, "--clear-groups", *words, f"{setup.direct}{path}"]
    before = wrk.cpu_s(setup.ingress_pid)
    process = await asyncio.create_subprocess_exec(
        *words, cwd="/", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    text = (await process.communicate())[0].decode()
    assert process.returncode == 0, text
    return wrk.read(text, wrk.cpu_s(setup.ingress_pid) - before)


async def _rounds(setup: Setup, quick: bool, path: str, connections: int) -> tuple[list[wrk.Load], list[wrk.Load]]:
    """Through the ingress and beside it, in turns: both see the same noise."""
    loads: tuple[list[wrk.Load], list[wrk.Load]] = ([], [])
    for _ in range(1 if quick else ROUNDS):
        for through, found in zip((True, False), loads, strict=True):
            found.append(await _wrk(setup, path, QUICK_SECONDS if quick else SECONDS, connections, through=through))
    return loads


def _errors(loads: list[wrk.Load]) -> int:
    return sum(load.errors for load in loads)


async def ingress(quick: bool) -> list[Result]:
    """Small requests at once and one after another, and a large answer."""
    peer_is = "the same program from the host's side of its network"
    async with _setup() as setup:
        many = await _rounds(setup, quick, "/", CONNECTIONS)
        single = await _rounds(setup, quick, "/", 1)
        large = await _rounds(setup, quick, "/large", 1)
    rate, direct = (Series.of([load.per_second for load in loads], "1/s", _errors(loads)) for loads in many)
    per_cpu = Series.of([load.per_cpu_second for load in many[0]], "1/s of CPU")
    facts: dict[str, Any] = {"per_second_of_the_ingress_cpu": round(per_cpu.p50)}
    facts |= {"p50_ms": [load.p50_ms for load in many[0]], "direct_p50_ms": [load.p50_ms for load in many[1]]}
    latency, direct_latency = (Series.of([load.p50_ms for load in loads], "ms", _errors(loads)) for loads in single)
    flow, direct_flow = (Series.of([load.mib_per_second for load in loads], "MiB/s", _errors(loads)) for loads in large)
    return [
        Result(
            "ingress.rps",
            f"small requests to a program in a sandbox, {CONNECTIONS} connections kept",
            rate,
            direct,
            peer_is,
            [at_least("of the peer's rate", rate.p50 / direct.p50, 0.5), at_least("per second of its CPU", per_cpu.p50, 10_000)],
            facts,
        ),
        Result(
            "ingress.added",
            "p50 of a small request, one after another",
            latency,
            direct_latency,
            peer_is,
            [at_most("added p50 ms", latency.p50 - direct_latency.p50, 0.3)],
        ),
        Result(
            "ingress.large",
            f"an answer of {LARGE_BYTES // MIB} MiB",
            flow,
            direct_flow,
            peer_is,
            [at_least("of the peer's rate", flow.p50 / direct_flow.p50, 0.5)],
        ),
    ]
