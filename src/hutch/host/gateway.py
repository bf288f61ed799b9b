"""The gateway process (`hutch-net`), from the host's side.

    start ─▶ three sockets are made and handed over ─▶ configured ─▶ every sandbox told ─▶ opened
      ▲                                                                                      │ dies
      └──────────────────────────────────────────────────────────────────────────────────────┘

The gateway is no child that ends with the host: sandboxes run on without a host, and so does their network. A host that starts
again finds it by its socket and tells it what it does not know. What the gateway must know after *its* death is kept here, in
memory: policies and credentials as they were last set, counters as they were last read.

While no gateway runs nothing passes: the kernel hands packets to a socket that nobody reads, or refuses them.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
import os
import socket
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from hutch.egress.policy import Boundaries, closed_ranges
from hutch.errors import HutchError, InternalError, UnavailableError
from hutch.host import kernel
from hutch.host.authority import Authority, TrustStore
from hutch.host.kernel import Process
from hutch.host.network import Network, Networks
from hutch.host.protocol import Tally
from hutch.settings import Settings
from hutch.wire import Connection, Hello, Role, connect_unix
from hutch.wire.connection import ConnectionClosed, Message
from hutch.wire.sockets import bind_unix

log = logging.getLogger(__name__)

HELLO = Hello(version=1, role=Role.HOST, window=4 * 1024 * 1024, max_streams=1)
SANDBOX_POOL = "100.64.0.0/10"
START_TIMEOUT_S = 10.0
CALL_TIMEOUT_S = 30.0
BACKLOG = 4096
ALLOCATOR = {"MIMALLOC_ALLOW_THP": "0"}
"""The gateway's allocator: huge pages would double what an idle gateway holds."""
RESTART_PAUSES_S = (0.0, 0.05, 0.2, 0.5, 1.0)
IP_TRANSPARENT = 19
IP_RECVORIGDSTADDR = 20
DATAGRAM_BUFFER_BYTES = 4 * 1024 * 1024
RESOLV_CONF = Path("/etc/resolv.conf")


class Applied(msgspec.Struct, frozen=True):
    """What an update did to open flows."""

    generation: int
    closed_flows: int
    kept_flows: int


class AuditEvent(msgspec.Struct, frozen=True):
    """A record: `number` counts those of all sandboxes, `seq` those of its own; `record` is one JSON object."""

    number: int
    sandbox_id: str
    seq: int
    record: str


class _Listed(msgspec.Struct, frozen=True):
    address: str
    lifecycle: str
    generation: int


class _List(msgspec.Struct, frozen=True):
    sandboxes: list[_Listed]


class Counted(msgspec.Struct, frozen=True):
    """Totals of one sandbox: payload bytes, tallies by name and by rule and of what had none, bytes that count towards limits of
    rules, and CPU time of the gateway."""

    up_bytes: int = 0
    down_bytes: int = 0
    tallies: dict[str, Tally] = {}
    rules: dict[str, tuple[int, int]] = {}
    unruled: Tally = Tally()
    cpu_us: int = 0

    @property
    def message(self) -> dict[str, Any]:
        """For a gateway: one that an older host started refuses what it does not know, and has told nothing of it."""
        told = msgspec.to_builtins(self)
        unknown = {name for name in ("unruled", "cpu_us") if getattr(self, name) == getattr(Counted(), name)}
        return {name: value for name, value in told.items() if name not in unknown}


class Counters(msgspec.Struct, frozen=True):
    """What passed for one sandbox, and what is open. A gateway that an older host started does not tell all of it."""

    flows: int
    up_bytes: int
    down_bytes: int
    tallies: dict[str, Tally]
    rules: dict[str, tuple[int, int]] = {}
    unruled: Tally = Tally()
    cpu_us: int = 0

    @property
    def counted(self) -> Counted:
        return Counted(self.up_bytes, self.down_bytes, self.tallies, self.rules, self.unruled, self.cpu_us)


@dataclass(slots=True)
class _Known:
    """What the gateway must know of a sandbox."""

    add: dict[str, Any]
    policy: dict[str, Any] | None = None
    counted: Counted = field(default_factory=Counted)
    """As it was last read: what a gateway that starts again goes on from."""
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Updates go one after the other: the gateway takes requests at once, and the one that is compiled first would win."""


AuditSink = Callable[[Sequence[AuditEvent]], Awaitable[None]]


@dataclass(slots=True)
class _Files:
    directory: Path
    control: Path = field(init=False)
    process: Path = field(init=False)
    root: Path = field(init=False)
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.control = self.directory / "control.sock"
        self.process = self.directory / "process"
        self.root = self.directory / "root"
        self.log = self.directory / "log"


class Gateway:
    """Keeps one gateway running and told."""

    def __init__(
        self,
        settings: Settings,
        directory: Path,
        networks: Networks,
        binary: Path,
        trust: TrustStore,
        store_audit: AuditSink,
        audit_position: Callable[[str], tuple[int, str]],
    ) -> None:
        self._settings = settings
        self._files = _Files(directory)
        self._networks = networks
        self._binary = binary
        self._trust = trust
        self._store_audit = store_audit
        self._audit_position = audit_position
        self._known: dict[str, _Known] = {}
        self._connection: Connection | None = None
        self._process: Process | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._audit: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._identity: dict[str, Any] = {"issuer": "", "signing_key_pem": None, "signing_key_id": ""}
        self.restarts = 0

    @property
    def cpu_us(self) -> int:
        """What the gateway that runs now has used since it started, in microseconds."""
        return self._process.cpu_us() if self._process is not None else 0

    # -- the process -------------------------------------------------------------------------------

    async def start(self) -> None:
        """Find the gateway of a predecessor, or start one. It takes no connections before `open`. Raises `OSError`."""
        self._files.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._files.root.mkdir(exist_ok=True, mode=0o755)
        await asyncio.to_thread(self._close_addresses)
        found = await self._found()
        await asyncio.to_thread(self._sweep)
        if not found:
            await self._spawn()
        await self._configure()

    def _sweep(self) -> None:
        """End gateways of this instance that nobody talks to: a host that is killed while it starts one leaves it behind."""
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            with contextlib.suppress(OSError):
                argv = (entry / "cmdline").read_bytes().split(b"\0")
                if len(argv) > 1 and argv[1] == os.fsencode(self._files.root):
                    process = kernel.process(int(entry.name))
                    if process != self._process:
                        log.warning("ending a gateway that nobody talks to, pid %d", process.pid)
                        self._kill(process)

    async def _found(self) -> bool:
        """Whether a predecessor's gateway runs, and answers.

        It is handed the guests' packets again: the predecessor may have died before that, and where no sandbox ran on the rules
        are new.
        """
        try:
            pid, ticks, *ports = (int(part) for part in self._files.process.read_text().split())
        except (OSError, ValueError):
            return False
        process = Process(pid, ticks)
        if not process.alive():
            return False
        if len(ports) != 2 and self._networks.is_new:
            log.warning("a former release started the gateway, and did not say where it listens; another one takes its place")
            await asyncio.to_thread(self._kill, process)
            return False
        try:
            self._connection = await connect_unix(self._files.control, HELLO, timeout_s=CALL_TIMEOUT_S)
        except (OSError, TimeoutError, ConnectionClosed) as error:
            log.warning("the gateway of the predecessor does not answer (%s); another one takes its place", error)
            await asyncio.to_thread(self._kill, process)
            return False
        if len(ports) == 2:
            await asyncio.to_thread(self._networks.hand_to, *ports)
        self._process = process
        log.info("found the gateway, pid %d", pid)
        return True

    async def _spawn(self) -> None:
        await asyncio.to_thread(self._start_process)
        try:
            self._connection = await connect_unix(self._files.control, HELLO, timeout_s=START_TIMEOUT_S)
        except (TimeoutError, ConnectionClosed) as error:
            raise OSError(f"The gateway {self._binary} did not start.") from error

    def _start_process(self) -> None:
        with contextlib.ExitStack() as stack:
            stream = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            stream.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
            stream.bind(("127.0.0.1", 0))
            stream.listen(BACKLOG)
            datagrams = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            datagrams.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
            datagrams.setsockopt(socket.SOL_IP, IP_RECVORIGDSTADDR, 1)
            datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, DATAGRAM_BUFFER_BYTES)
            datagrams.bind(("127.0.0.1", 0))
            control = stack.enter_context(bind_unix(self._files.control))
            control.listen(16)
            ours, theirs = socket.socketpair()
            stack.enter_context(ours)
            stack.enter_context(theirs)
            # In the queue before the process reads; it need not wait for us, nor we for it.
            socket.send_fds(ours, [b"s"], [stream.fileno(), datagrams.fileno(), control.fileno()])
            # Not our own standard error: whoever reads that waits for the end of everybody who has it.
            output = stack.enter_context(self._files.log.open("wb"))
            child = subprocess.Popen(
                [str(self._binary), str(self._files.root), str(self._networks.gateway_user)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=output,
                cwd="/",
                env=kernel.command_environment() | ALLOCATOR,
                # Neither a terminal's Ctrl-C nor our death is its end.
                start_new_session=True,
            )
            try:
                process = kernel.process(child.pid)
            except ProcessLookupError as error:
                raise OSError(f"The gateway ended at once with {child.wait()}.") from error
            ports = stream.getsockname()[1], datagrams.getsockname()[1]
            self._files.process.write_text(f"{process.pid} {process.start_ticks} {ports[0]} {ports[1]}")
            # Known before what may fail: whoever tries again ends it first.
            self._child, self._process = child, process
            self._networks.hand_to(*ports)
        log.info("started the gateway, pid %d", process.pid)

    def _close_addresses(self) -> None:
        # From the engine that the gateway decides with, so that kernel and gateway mean the same.
        boundaries = Boundaries.of(self._settings)
        closed = closed_ranges(msgspec.structs.replace(boundaries, own=tuple(own_addresses())))
        ranges = [ipaddress.IPv4Network(text) for text in closed if ":" not in text]
        self._networks.close_addresses(map(str, ipaddress.collapse_addresses(ranges)), self.name_servers())

    def name_servers(self) -> list[str]:
        """The configured name servers, or the host's."""
        return list(self._settings.egress.dns_upstreams) or host_name_servers()

    async def _configure(self) -> None:
        egress = self._settings.egress
        await self._call(
            "configure",
            {
                "dns_upstreams": self.name_servers(),
                "roots_pem": self._trust.pem.decode("utf-8", "replace"),
                "own": own_addresses(),
                "sandbox_pools": [SANDBOX_POOL],
                "allow_private": list(egress.allow_private),
                "only_denials": egress.audit == "denials",
                "max_flows": egress.max_flows,
                "flows_per_second": egress.flows_per_second,
                "max_upload_bytes": egress.max_upload_bytes,
                **self._identity,
            },
        )

    async def identify(self, issuer: str, key_pem: str, key_id: str) -> None:
        """Set what signs identity tokens."""
        identity = {"issuer": issuer, "signing_key_pem": key_pem, "signing_key_id": key_id}
        if identity != self._identity:
            self._identity = identity
            await self._configure()

    async def open(self) -> None:
        """Everybody is known: take connections, and keep the gateway running from now on."""
        await self._sync()
        self._keeper = asyncio.get_running_loop().create_task(self._keep())

    async def _sync(self) -> None:
        """Tell the gateway what it does not know, and take away what nobody knows."""
        listed = await self._call("sandbox.list", {}, _List)
        there = {sandbox.address for sandbox in listed.sandboxes}
        for address in there - self._known.keys():
            await self._call("sandbox.remove", {"address": address})
        for address, known in list(self._known.items()):
            try:
                if address not in there:
                    await self._call("sandbox.add", known.add | {"counted": known.counted.message})
                if known.policy is not None:
                    await self._call("sandbox.policy", known.policy)
            except InternalError:
                if self._known.get(address) is known:
                    raise
            if address not in self._known:
                # It ended meanwhile, and may have been removed before it was added.
                await self._call("sandbox.remove", {"address": address})
        await self._call("open", {})
        self._audit = asyncio.get_running_loop().create_task(self._follow_audit())
        self._ready.set()

    async def _keep(self) -> None:
        """Start the gateway again whenever it dies."""
        failures = 0
        while True:
            connection = self._connection
            assert connection is not None
            reason = await asyncio.shield(connection.closed)
            self._ready.clear()
            log.error("the gateway is gone (%s); starting it again", reason)
            self.restarts += 1
            try:
                if self._process is not None:
                    await asyncio.to_thread(self._kill, self._process)
                await self._spawn()
                await self._configure()
                # Where each audit goes on is what was stored, not what was sent.
                for known in self._known.values():
                    if known.policy is not None:
                        known.policy |= self._position(known.policy["sandbox_id"])
                await self._sync()
                failures = 0
            except (OSError, HutchError, ValueError) as error:
                log.error("the gateway could not be started: %s", error)
                # One that was not told everything takes no connections: the next one will be.
                if self._connection is not None:
                    self._connection.close("it was not told everything")
                await asyncio.sleep(RESTART_PAUSES_S[min(failures, len(RESTART_PAUSES_S) - 1)])
                failures += 1

    def _kill(self, process: Process) -> None:
        process.kill()
        process.wait_gone(START_TIMEOUT_S)
        if self._child is not None and self._child.pid == process.pid:
            self._child.wait()
            self._child = None

    async def leave(self) -> None:
        """Stop talking; the gateway runs on for the sandboxes that do."""
        tasks = [task for task in (self._keeper, self._audit) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._connection is not None:
            self._connection.close("the host goes")
        if self._child is not None:
            # It is init's to wait for from now on, as if we had died.
            self._child.returncode = 0
            self._child = None

    async def close(self) -> None:
        """End the gateway."""
        process = self._process
        child, self._child = self._child, None
        await self.leave()
        if process is not None:
            self._child = child
            await asyncio.to_thread(self._kill, process)
        self._files.process.unlink(missing_ok=True)
        self._files.control.unlink(missing_ok=True)

    # -- sandboxes ---------------------------------------------------------------------------------

    async def add(self, network: Network, authority: Authority, *, announce: bool = True) -> None:
        """Make a machine known; it may do nothing yet. Without `announce` the gateway learns of it with `open`."""
        message = {
            "address": network.guest_address,
            "gateway": network.host_address,
            "ca_name": authority.name,
            "ca_key": authority.key.hex(),
            "ca_key_id": authority.key_id.hex(),
        }
        self._known[network.guest_address] = _Known(message)
        if announce:
            await self._wait_ready()
            await self._call("sandbox.add", message)

    async def set_policy(self, network: Network, policy: dict[str, Any], *, announce: bool = True) -> Applied:
        """Put a policy in place; it is enforced when this returns. Raises `UnavailableError` when it may not be."""
        known = self._known[network.guest_address]
        async with known.turn:
            if announce:
                await self._wait_ready()
            message = {"address": network.guest_address, **policy, **self._position(policy["sandbox_id"])}
            applied = Applied(policy["generation"], 0, 0)
            if announce:
                applied = await self._call("sandbox.policy", message, Applied)
            known.policy = message
            return applied

    def _position(self, sandbox_id: str) -> dict[str, Any]:
        seq, previous = self._audit_position(sandbox_id)
        return {"audit_seq": seq, "audit_previous": previous}

    async def remove(self, network: Network) -> None:
        """Forget a machine; its connections end."""
        if self._known.pop(network.guest_address, None) is None:
            return
        # A gateway that is away learns of it when it is told everything.
        with contextlib.suppress(HutchError):
            await self._call("sandbox.remove", {"address": network.guest_address})

    async def counters(self, network: Network) -> Counters:
        """What passed for a machine. Raises `HutchError`."""
        counters: Counters = await self._call("counters", {"address": network.guest_address}, Counters)
        self.resume_counters(network, counters.counted)
        return counters

    def resume_counters(self, network: Network, counted: Counted) -> None:
        """Have a gateway that does not know the machine go on from these."""
        known = self._known.get(network.guest_address)
        if known is not None:
            known.counted = counted

    async def _wait_ready(self) -> None:
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await self._ready.wait()
        except TimeoutError as error:
            raise UnavailableError(
                "gateway_unavailable", "The egress gateway does not run. Try again.", retry_after_s=1
            ) from error

    async def _call(self, method: str, body: dict[str, Any], kind: Any = dict[str, Any]) -> Any:
        connection = self._connection
        if connection is None or connection.closed.done():
            raise UnavailableError("gateway_unavailable", "The egress gateway does not run. Try again.", retry_after_s=1)
        stream = connection.open(method, {})
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await stream.send_data(json.dumps(body).encode(), 0)
                stream.send_end()
                return await stream.reply(kind)
        except TimeoutError as error:
            connection.close("the gateway does not answer")
            raise UnavailableError(
                "gateway_unavailable", "The egress gateway does not answer. Try again.", retry_after_s=1
            ) from error
        except HutchError as error:
            if isinstance(error, ConnectionClosed):
                raise
            raise InternalError("gateway_refused", f"The egress gateway refused {method}: {error.message}") from error
        finally:
            stream.cancel()

    async def _follow_audit(self) -> None:
        connection = self._connection
        assert connection is not None
        try:
            stream = connection.open("audit", {})
            stream.send_end()
            await stream.reply()
            while True:
                item = await stream.next()
                if item is None:
                    return
                items = [item, *[await stream.next() for _ in range(stream.waiting)]]
                batch = [item.decode(AuditEvent) for item in items if isinstance(item, Message)]
                if batch:
                    await self._store_audit(batch)
                    await self._call("audit.stored", {"number": batch[-1].number})
        except (HutchError, OSError) as error:
            if not connection.closed.done():
                log.error("the audit of the gateway could not be stored: %s", error)
                connection.close("the audit failed")


def own_addresses() -> list[str]:
    """This machine's addresses, which no sandbox may reach. Those of links to sandboxes are in their pool."""
    listed = json.loads(kernel.run(["ip", "-j", "addr", "show"]))
    found = {info["local"] for link in listed for info in link.get("addr_info", []) if not link.get("ifname", "").startswith("h")}
    return sorted(found)


def host_name_servers() -> list[str]:
    """The name servers of this host. Raises `OSError` where it has none."""
    found = []
    for line in RESOLV_CONF.read_text().splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            with contextlib.suppress(ValueError):
                address = ipaddress.ip_address(words[1].partition("%")[0])
                found.append(f"[{address}]:53" if address.version == 6 else f"{address}:53")
    if not found:
        raise OSError(f"{RESOLV_CONF} names no server. Set egress.dns_upstreams.")
    return found
