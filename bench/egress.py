"""The gateway: `egress.rps`, `egress.conn`, `egress.added`, `egress.patterns`, `policy.live`, how soon it is back, and what it
holds in memory.

A load generator (wrk) in a sandbox's network sends small HTTPS requests through a rule that injects a header, to an origin
(nginx) in another network. The peers are nginx and mitmproxy doing the same work on the same path: they end TLS, verify, set the
header and keep connections to the origin. Rates are per second of the proxy's own CPU time, so that they say what one core does,
whoever else is busy on the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import wrk
from bench.measure import Result, Series, at_least, at_most
from bench.wrk import Load
from hutch.host import kernel
from tests.egress.world import CANARY, Guest, Origins, World, world

ORIGIN = "198.51.100.30"
PROXY = "198.51.100.31"
MITMPROXY = "198.51.100.32"
NAME = "api.test"
RULES = {"allow": {NAME: [{"transform": [{"headers": {"authorization": f"Bearer {CANARY}"}}]}]}}
SECONDS, QUICK_SECONDS = 8, 2
FLOWS_EACH, GUESTS = 1000, 10
PATTERNS = (1, 100, 1000)
HALF_LOAD_CONNECTIONS = 32
SPARE_FILES = 100
_ORIGIN = """
daemon off; worker_processes 1; pid {scratch}/origin.pid; error_log /dev/null;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 1000000;
  server {{
    listen {address}:443 ssl backlog=8192; server_name {name};
    ssl_certificate {certificate}; ssl_certificate_key {certificate}; ssl_session_tickets off;
    location / {{ default_type text/plain; return 200 "ok\\n"; }}
  }}
}}
"""
_PROXY = """
daemon off; worker_processes 1; pid {scratch}/proxy.pid; error_log /dev/null;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 1000000;
  upstream origin {{ server {origin}:443; keepalive 64; }}
  server {{
    listen {address}:443 ssl backlog=8192; server_name {name};
    ssl_certificate {certificate}; ssl_certificate_key {certificate}; ssl_session_tickets off; ssl_session_cache off;
    location / {{
      proxy_pass https://origin; proxy_http_version 1.1; proxy_set_header connection ""; proxy_set_header host {name};
      proxy_set_header authorization "Bearer {canary}"; proxy_buffering off;
      proxy_ssl_server_name on; proxy_ssl_name {name}; proxy_ssl_verify on; proxy_ssl_trusted_certificate {ca};
    }}
  }}
}}
"""


@dataclass
class Setup:
    """The gateway, a guest behind it, an origin, and the peers."""

    world: World
    guest: Guest
    origins: Origins
    peer: subprocess.Popen[bytes]
    mitmproxy: subprocess.Popen[bytes]

    def gateway_pid(self) -> int:
        return int((self.world.directory / "gateway" / "process").read_text().split()[0])

    def peer_pid(self) -> int:
        """nginx's worker does the work."""
        return int(Path(f"/proc/{self.peer.pid}/task/{self.peer.pid}/children").read_text().split()[0])


@contextmanager
def _nginx(origins: Origins, text: str, scratch: Path, name: str) -> Iterator[subprocess.Popen[bytes]]:
    configuration = scratch / f"{name}.conf"
    configuration.write_text(text)
    command = ["ip", "netns", "exec", origins.namespace, "nginx", "-c", str(configuration), "-p", str(scratch)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 10
        while not (scratch / f"{name}.pid").exists():
            assert process.poll() is None, f"nginx ({name}) did not start"
            assert time.monotonic() < end, f"nginx ({name}) did not start"
            time.sleep(0.02)
        yield process
    finally:
        process.terminate()
        process.wait()


@contextmanager
def _mitmproxy(origins: Origins, scratch: Path) -> Iterator[subprocess.Popen[bytes]]:
    certificate = origins.directory / "certificates" / f"{NAME}.pem"
    hosts = scratch / "mitmproxy-hosts"
    hosts.write_text(f"{ORIGIN} {NAME}\n")
    words = ["mitmdump", "--quiet", "--mode", f"reverse:https://{NAME}", "--listen-host", MITMPROXY, "--listen-port", "443"]
    options = {
        "certs": f"{NAME}={certificate}",
        "confdir": scratch / "mitmproxy",
        "ssl_verify_upstream_trusted_ca": origins.ca,
        "modify_headers": f"/~q/authorization/Bearer {CANARY}",
    }
    words += [word for key, value in options.items() for word in ("--set", f"{key}={value}")]
    alone = ["unshare", "-m", "--propagation", "slave", "sh", "-c", f'mount --bind {hosts} /etc/hosts && exec "$@"', "sh"]
    command = ["ip", "netns", "exec", origins.namespace, *alone, *words]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 30
        while f"{MITMPROXY}:443" not in kernel.run(["ip", "netns", "exec", origins.namespace, "ss", "-Hltn"]):
            assert process.poll() is None, "mitmproxy did not start"
            assert time.monotonic() < end, "mitmproxy did not start"
            time.sleep(0.05)
        yield process
    finally:
        process.terminate()
        process.wait()


def _outside(scratch: Path) -> Origins:
    # nginx's workers are somebody else.
    scratch.chmod(0o755)
    (scratch / "outside").mkdir()
    origins = Origins(scratch / "outside")
    origins.start()
    return origins


@asynccontextmanager
async def _setup() -> AsyncIterator[Setup]:
    wrk.tools(("nginx", "nginx-light"), ("mitmdump", "mitmproxy"))
    with tempfile.TemporaryDirectory(prefix="hutch-bench-") as directory, contextlib.ExitStack() as stack:
        scratch = Path(directory)
        origins = await asyncio.to_thread(_outside, scratch)
        stack.callback(origins.stop)
        for address in (ORIGIN, PROXY, MITMPROXY):
            kernel.run(["ip", "-n", origins.namespace, "addr", "add", f"{address}/32", "dev", "eth0"])
        certificate = origins.directory / "certificates" / f"{NAME}.pem"
        known = {
            "scratch": scratch,
            "name": NAME,
            "certificate": certificate,
            "canary": CANARY,
            "ca": origins.ca,
            "origin": ORIGIN,
        }
        stack.enter_context(_nginx(origins, _ORIGIN.format(address=ORIGIN, **known), scratch, "origin"))
        peer = stack.enter_context(_nginx(origins, _PROXY.format(address=PROXY, **known), scratch, "proxy"))
        mitmproxy = stack.enter_context(_mitmproxy(origins, scratch))
        inside = scratch / "world"
        inside.mkdir()
        # One sandbox stands for many: the bounds of one would be what is measured.
        async with world(inside, origins, max_flows=100_000, flows_per_second=100_000) as made:
            origins.answer(NAME, ORIGIN)
            yield Setup(made, await made.guest(RULES), origins, peer, mitmproxy)


def _rss_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024


async def _wrk(setup: Setup, address: str, pid: int, seconds: int, connections: int, *headers: str, pause_ms: int = 0) -> Load:
    """Load on the name at an address, from inside the guest's network or, for the peers, from the host's.

    With `pause_ms` each connection waits about so long before each request.
    """
    guest = setup.guest
    kernel.run(["tee", str(guest.directory / "hosts")], stdin=f"{address} {NAME}\n")
    words = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds}s",
        "--latency",
        *(f"-H{header}" for header in headers),
        *(["-s", str(_pausing(guest.directory, pause_ms))] if pause_ms else []),
        f"https://{NAME}/",
    ]
    mounts = f'mount --bind {guest.directory / "hosts"} /etc/hosts && exec "$@"'
    enter = ["ip", "netns", "exec", guest.network.namespace] if pid == setup.gateway_pid() else []
    before = wrk.cpu_s(pid)
    done = await asyncio.create_subprocess_exec(
        *enter,
        "unshare",
        "-m",
        "--propagation",
        "slave",
        "sh",
        "-c",
        mounts,
        "sh",
        *words,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    text = (await done.communicate())[0].decode()
    return wrk.read(text, wrk.cpu_s(pid) - before)


def _pausing(directory: Path, pause_ms: int) -> Path:
    script = directory / "pause.lua"
    script.write_text(f"function delay() return math.random(0, {2 * pause_ms}) end\n")
    return script


async def _rounds(quick: bool, connections: int, *headers: str) -> tuple[list[Load], list[Load], list[Load]]:
    """Ours and the peers', one after the other several times: all see the same noise."""
    seconds, rounds = (QUICK_SECONDS, 1) if quick else (SECONDS, 3)
    async with _setup() as setup:
        loads: tuple[list[Load], list[Load], list[Load]] = ([], [], [])
        who = ((ORIGIN, setup.gateway_pid()), (PROXY, setup.peer_pid()), (MITMPROXY, setup.mitmproxy.pid))
        for _ in range(rounds):
            for (address, pid), found in zip(who, loads, strict=True):
                found.append(await _wrk(setup, address, pid, seconds, connections, *headers))
        return loads


def _series(loads: list[Load]) -> Series:
    return Series.of([load.per_cpu_second for load in loads], "1/s of CPU", sum(load.errors for load in loads))


def _rate(name: str, what: str, loads: tuple[list[Load], list[Load], list[Load]], least: float) -> Result:
    mine, nginx, mitmproxy = map(_series, loads)
    facts: dict[str, Any] = {
        "wall_rate": [round(load.per_second) for load in loads[0]],
        "nginx_wall_rate": [round(load.per_second) for load in loads[1]],
        "mitmproxy_per_cpu_second": round(mitmproxy.p50),
        "ratio_to_mitmproxy": round(mine.p50 / mitmproxy.p50, 1),
    }
    return Result(
        name,
        what,
        mine,
        nginx,
        "nginx: TLS ended, verified, header set, upstream kept",
        [at_least("p50", mine.p50, least)],
        facts,
    )


async def egress_rps(quick: bool) -> list[Result]:
    """Small requests on connections that are kept, through a rule that injects."""
    loads = await _rounds(quick, 64)
    return [_rate("egress.rps", "small HTTPS requests with an injected header, keep-alive", loads, 20_000)]


async def egress_conn(quick: bool) -> list[Result]:
    """A new TLS connection for each request."""
    loads = await _rounds(quick, 32, "Connection: close")
    return [_rate("egress.conn", "a new TLS connection per request, with an injected header", loads, 2_000)]


async def egress_added(quick: bool) -> list[Result]:
    """What the gateway adds to a request at half of the load that it can carry here, beside the origin alone."""
    seconds, rounds = (QUICK_SECONDS, 1) if quick else (SECONDS // 2, 3)
    ours: list[Load] = []
    direct: list[Load] = []
    async with _setup() as setup:
        most = await _wrk(setup, ORIGIN, setup.gateway_pid(), seconds, HALF_LOAD_CONNECTIONS)
        pause_ms = max(1, round(1000 * HALF_LOAD_CONNECTIONS / (most.per_second / 2)))
        for _ in range(rounds):
            for found, pid in ((ours, setup.gateway_pid()), (direct, setup.peer_pid())):
                found.append(await _wrk(setup, ORIGIN, pid, seconds, HALF_LOAD_CONNECTIONS, pause_ms=pause_ms))
    mine, peer = Series.of([load.p50_ms for load in ours]), Series.of([load.p50_ms for load in direct])
    worst = Series.of([load.p99_ms for load in ours]).p50 - Series.of([load.p99_ms for load in direct]).p50
    targets = [at_most("added p50", mine.p50 - peer.p50, 0.3), at_most("added p99", worst, 2)]
    facts: dict[str, Any] = {"most": round(most.per_second), "wall_rate": [round(load.per_second) for load in ours]}
    what = "latency of a small request at half load"
    return [Result("egress.added", what, mine, peer, "the origin without a gateway", targets, facts)]


async def egress_patterns(quick: bool) -> list[Result]:
    """Requests under policies with more and more patterns."""
    seconds, rounds = (QUICK_SECONDS, 1) if quick else (SECONDS // 2, 3)
    found: dict[int, list[Load]] = {count: [] for count in PATTERNS}
    async with _setup() as setup:
        for _ in range(rounds):
            for count, loads in found.items():
                more: dict[str, list[Any]] = {f"n{number}.patterns.test": [] for number in range(count - 1)}
                await setup.guest.policy({"allow": {**more, **RULES["allow"]}})
                loads.append(await _wrk(setup, ORIGIN, setup.gateway_pid(), seconds, 64))
    one, most = _series(found[1]), _series(found[PATTERNS[-1]])
    facts: dict[str, Any] = {f"with_{count}": round(_series(loads).p50) for count, loads in found.items()}
    return [
        Result(
            "egress.patterns",
            f"small HTTPS requests under a policy of {PATTERNS[-1]} patterns",
            most,
            one,
            "the gateway with one pattern",
            [at_least("rate beside one pattern", most.p50 / one.p50, 0.5)],
            facts,
        )
    ]


def _files() -> int:
    """What a gateway may have open here beside its own few. Some machines let not even root have more."""
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (1 << 20, 1 << 20))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1] - SPARE_FILES


_HOLD = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))
streams = []
for number in range(int(sys.argv[2])):
    stream = socket.create_connection((sys.argv[1], 8080))
    stream.sendall(b"x")
    streams.append(stream)
for stream in streams:
    assert stream.recv(1) == b"x"
print("held", flush=True)
sys.stdin.read()
"""


async def policy_live(quick: bool) -> list[Result]:
    """An update of the policies of all sandboxes, with many flows open: acknowledged means enforced."""
    guests, flows = (2, 100) if quick else (GUESTS, min(FLOWS_EACH, _files() // (2 * GUESTS)))
    allowed: dict[str, Any] = {"subnets": {"allow": ["198.51.100.0/24"]}}
    times: list[float] = []
    facts: dict[str, Any] = {"guests": guests, "flows": guests * flows}
    async with _setup() as setup:
        made = setup.world
        setup.origins.script("198.51.100.66:8080", echo=True)
        idle = _rss_mib(setup.gateway_pid())
        everybody = [await made.guest(allowed) for _ in range(guests)]
        before = _rss_mib(setup.gateway_pid())
        holders = [await _hold(guest, flows) for guest in everybody]
        held = _rss_mib(setup.gateway_pid())
        for number in range(3 if quick else 10):
            policy = {"subnets": {"allow": ["198.51.100.0/24", f"203.0.113.{number}/32"]}}
            began = time.perf_counter()
            applied = await asyncio.gather(*(guest.policy(policy) for guest in everybody))
            times.append((time.perf_counter() - began) * 1000)
            assert sum(each.kept_flows for each in applied) == guests * flows
        began = time.perf_counter()
        applied = await asyncio.gather(*(guest.policy("deny-all") for guest in everybody))
        cut_ms = (time.perf_counter() - began) * 1000
        assert sum(each.closed_flows for each in applied) == guests * flows
        for holder in holders:
            holder.stdin.close()  # type: ignore[union-attr]
            await holder.wait()
    kept, cut = Series.of(times), Series.of([cut_ms])
    per_flow = (held - before) * 1024 / (guests * flows)
    facts |= {"rss_idle_mib": round(idle, 1), "rss_with_guests_mib": round(before, 1), "rss_with_flows_mib": round(held, 1)}
    return [
        Result(
            "policy.live",
            "update of all policies, every flow judged and kept",
            kept,
            targets=[at_most("p50", kept.p50, 100)],
            facts=facts,
        ),
        Result("policy.live.cut", "update that ends every flow", cut, targets=[at_most("p50", cut.p50, 100)], facts=facts),
        Result(
            "egress.flow_memory",
            "resident memory of the gateway per idle flow",
            Series.of([per_flow], "KiB"),
            targets=[at_most("p50", per_flow, 40)],
            facts=facts,
        ),
    ]


async def _hold(guest: Guest, flows: int) -> asyncio.subprocess.Process:
    tools = Path(__file__).parents[1] / "tests" / "egress"
    text = f"import sys; sys.path.insert(0, {str(tools)!r}); from guest_tools import *\n{_HOLD}"
    process = await asyncio.create_subprocess_exec(
        *["ip", "netns", "exec", guest.network.namespace, "python3", "-c", text, "198.51.100.66", str(flows)],
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"held\n"
    return process


async def egress_memory(quick: bool) -> list[Result]:
    """The gateway's memory with idle sandboxes."""
    guests = 20 if quick else 100
    async with _setup() as setup:
        for _ in range(guests):
            await setup.world.guest(RULES)
        rss = _rss_mib(setup.gateway_pid())
    return [
        Result(
            "egress.memory",
            f"resident memory of the gateway with {guests} idle sandboxes",
            Series.of([rss], "MiB"),
            targets=[at_most("p50", rss, 20)],
        )
    ]


async def egress_restart(quick: bool) -> list[Result]:
    """From the gateway's death until a connection passes again, with the policies of many sandboxes."""
    guests, rounds = (10, 2) if quick else (100, 10)
    times = []
    async with _setup() as setup:
        setup.origins.script("198.51.100.66:8080", echo=True)
        for _ in range(guests):
            await setup.world.guest(RULES)
        guest = await setup.world.guest({"subnets": {"allow": ["198.51.100.0/24"]}})
        for _ in range(rounds):
            os.kill(setup.gateway_pid(), signal.SIGKILL)
            began = time.perf_counter()
            while (await guest.connect("198.51.100.66", 8080, b"x", wait_s=2)).data != b"x":
                assert time.perf_counter() - began < 30, "the gateway did not come back"
            times.append((time.perf_counter() - began) * 1000)
    back = Series.of(times)
    what = f"a killed gateway with {guests} sandboxes serves again"
    return [Result("egress.restart", what, back, targets=[at_most("p50", back.p50, 1000)])]
