"""The ingress process (`hutch-net ingress`), from the host's side.

    start ─▶ it is handed the listener ─▶ configured ─▶ told routes and targets ─▶ opened
      ▲                                                                              │ dies
      └──────────────────────────────────────────────────────────────────────────────┘

The API says which names there are (routes), this host which sandboxes run and where (targets). A request for a sandbox that
stopped and is to be resumed comes the other way: ingress, host, API.

The ingress is no child that ends with the host. One that starts again finds it, if it serves the same listening socket: that is
the server's (`hutch.serving`), which outlives the host and is made anew with every server. What the ingress must know after its
death is kept here, in memory; after the host's death it goes on with what it was told.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import subprocess
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from hutch.errors import HutchError, InternalError, UnavailableError
from hutch.host import kernel
from hutch.host.gateway import ALLOCATOR, BACKLOG, CALL_TIMEOUT_S, HELLO, RESTART_PAUSES_S, START_TIMEOUT_S
from hutch.host.kernel import Process
from hutch.host.network import Network, Networks
from hutch.host.protocol import IngressRoutes, IngressState
from hutch.settings import Settings, split_listen
from hutch.wire import Connection, connect_unix
from hutch.wire.connection import ConnectionClosed, Message
from hutch.wire.sockets import bind_unix

log = logging.getLogger(__name__)

LOOK_AT_FILES_S = 2.0


class _Wake(msgspec.Struct, frozen=True):
    sandbox: str


@dataclass(slots=True)
class _Target:
    session_id: str
    address: str


@dataclass(slots=True)
class _Known:
    """What the ingress must know."""

    routes: dict[str, IngressRoutes] = field(default_factory=dict)
    complete: bool = False
    targets: dict[str, _Target] = field(default_factory=dict)
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Sockets:
    """What the ingress has of the server: its listener, and where on the loopback interface the server has its webhooks, 0 for
    nowhere."""

    listener: socket.socket
    webhooks_port: int = 0


class Ingress:
    """Keeps one ingress running and told. `sockets` None: the host runs without a server, and has none."""

    def __init__(self, settings: Settings, directory: Path, networks: Networks, binary: Path, sockets: Sockets | None) -> None:
        self._settings = settings
        self._directory = directory
        self._control = directory / "control.sock"
        self._networks = networks
        self._binary = binary
        self._listener = sockets.listener if sockets is not None else None
        self._webhooks_port = sockets.webhooks_port if sockets is not None else 0
        self._known = _Known()
        self._connection: Connection | None = None
        self._process: Process | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._wakes: asyncio.Task[None] | None = None
        self._followers: list[asyncio.Queue[str]] = []
        self._turn = asyncio.Lock()
        self._files_seen: tuple[int, ...] = ()
        self.restarts = 0

    @property
    def cpu_us(self) -> int:
        """What the ingress that runs now has used since it started, in microseconds."""
        return self._process.cpu_us() if self._process is not None else 0

    # -- the process -------------------------------------------------------------------------------

    async def start(self) -> None:
        """Find the ingress of a predecessor, or start one. It takes no connections before `open`. Raises `OSError`."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        (self._directory / "root").mkdir(exist_ok=True, mode=0o755)
        if self._listener is None:
            return
        if self._webhooks_port:
            await asyncio.to_thread(self._networks.open_webhooks, self._webhooks_port)
        if not await self._found():
            await asyncio.to_thread(end_leftover, self._directory)
            await self._spawn()
        try:
            await self._configure()
        except HutchError as error:
            # An operator reads this: what is wrong with the certificate.
            raise OSError(error.message) from error

    async def _found(self) -> bool:
        assert self._listener is not None
        process, listening = _recorded(self._directory)
        if process is None or listening != os.fstat(self._listener.fileno()).st_ino or not process.alive():
            return False
        try:
            self._connection = await connect_unix(self._control, HELLO, timeout_s=CALL_TIMEOUT_S)
        except (OSError, TimeoutError, ConnectionClosed) as error:
            log.warning("the ingress of the predecessor does not answer (%s); another one takes its place", error)
            return False
        self._process = process
        log.info("found the ingress, pid %d", process.pid)
        return True

    async def _spawn(self) -> None:
        await asyncio.to_thread(self._start_process)
        try:
            self._connection = await connect_unix(self._control, HELLO, timeout_s=START_TIMEOUT_S)
        except (TimeoutError, ConnectionClosed) as error:
            raise OSError(f"The ingress {self._binary} did not start.") from error

    def _start_process(self) -> None:
        assert self._listener is not None
        with contextlib.ExitStack() as stack:
            control = stack.enter_context(bind_unix(self._control))
            control.listen(16)
            ours, theirs = socket.socketpair()
            stack.enter_context(ours)
            stack.enter_context(theirs)
            socket.send_fds(ours, [b"s"], [self._listener.fileno(), control.fileno()])
            output = stack.enter_context((self._directory / "log").open("wb"))
            child = subprocess.Popen(
                [str(self._binary), "ingress", str(self._directory / "root"), str(self._networks.ingress_user)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=output,
                cwd="/",
                env=kernel.command_environment() | ALLOCATOR,
                start_new_session=True,
            )
            try:
                process = kernel.process(child.pid)
            except ProcessLookupError as error:
                raise OSError(f"The ingress ended at once with {child.wait()}.") from error
            inode = os.fstat(self._listener.fileno()).st_ino
            (self._directory / "process").write_text(f"{process.pid} {process.start_ticks} {inode}")
        self._child, self._process = child, process
        log.info("started the ingress, pid %d", process.pid)

    async def _configure(self) -> None:
        ingress = self._settings.ingress
        self._files_seen = await asyncio.to_thread(self._files)
        certificate, key = await asyncio.to_thread(self._certificate)
        await self._call(
            "configure",
            {
                "domain": ingress.domain,
                "https": ingress.https,
                "header_timeout_ms": ingress.header_timeout_s * 1000,
                "idle_timeout_ms": ingress.idle_timeout_s * 1000,
                "connect_timeout_ms": ingress.connect_timeout_s * 1000,
                "wake_timeout_ms": ingress.wake_timeout_s * 1000,
                "listen_timeout_ms": ingress.listen_timeout_s * 1000,
                "max_connections": ingress.max_connections,
                "max_connections_per_client": ingress.max_connections_per_client,
                "max_requests_per_sandbox": ingress.max_requests_per_sandbox,
                "max_waiting": ingress.max_waiting,
                "max_header_bytes": ingress.max_header_bytes,
                "max_body_bytes": ingress.max_body_bytes,
                "webhooks_port": self._webhooks_port,
                "certificate": certificate,
                "key": key,
            },
        )

    def _certificate(self) -> tuple[str, str]:
        ingress = self._settings.ingress
        if ingress.tls_certificate is None or ingress.tls_key is None:
            return "", ""
        return ingress.tls_certificate.read_text(), ingress.tls_key.read_text()

    def _files(self) -> tuple[int, ...]:
        paths = (self._settings.ingress.tls_certificate, self._settings.ingress.tls_key)
        with contextlib.suppress(OSError):
            return tuple(part for path in paths if path is not None for part in (path.stat().st_mtime_ns, path.stat().st_ino))
        return ()

    async def _watch_files(self) -> None:
        """Have new connections use a certificate that was renewed. One that is none is left alone: the old one stays."""
        while True:
            await asyncio.sleep(LOOK_AT_FILES_S)
            if await asyncio.to_thread(self._files) != self._files_seen:
                try:
                    await self._configure()
                    log.info("the ingress has another certificate")
                except (HutchError, OSError, ValueError) as error:
                    log.error("the certificate of the ingress could not be read again: %s", error)

    async def open(self) -> None:
        """Every running sandbox is known: take connections, and keep the ingress running from now on."""
        if self._listener is None:
            return
        async with self._turn:
            await self._sync()
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._keep())]
        if self._settings.ingress.tls_certificate is not None:
            self._tasks.append(loop.create_task(self._watch_files()))

    async def _sync(self) -> None:
        known = self._known
        if known.key is not None:
            await self._call("key", {"key": known.key})
        await self._call("targets.put", {"targets": _targets(known.targets), "complete": True})
        # Before the API has said them, the ingress may know them from a predecessor.
        if known.complete:
            await self._put_routes(list(known.routes.values()), complete=True)
        await self._call("open", {})
        if self._wakes is not None:
            self._wakes.cancel()
        self._wakes = asyncio.get_running_loop().create_task(self._follow_wakes())

    async def _keep(self) -> None:
        """Start the ingress again whenever it dies."""
        failures = 0
        while True:
            connection = self._connection
            assert connection is not None
            reason = await asyncio.shield(connection.closed)
            log.error("the ingress is gone (%s); starting it again", reason)
            self.restarts += 1
            try:
                async with self._turn:
                    if self._process is not None:
                        await asyncio.to_thread(self._kill, self._process)
                    await self._spawn()
                    await self._configure()
                    await self._sync()
                failures = 0
            except (OSError, HutchError, ValueError) as error:
                log.error("the ingress could not be started: %s", error)
                if self._connection is not None:
                    # It has half of what it must know: the next one is told all of it.
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
        """Stop talking; the ingress runs on for the sandboxes that do."""
        tasks = [task for task in (*self._tasks, self._wakes) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._connection is not None:
            self._connection.close("the host goes")
        if self._child is not None:
            self._child.returncode = 0
            self._child = None
        if self._listener is not None:
            # The ingress has its own.
            self._listener.close()

    async def close(self) -> None:
        """End the ingress."""
        child, self._child = self._child, None
        await self.leave()
        self._child = child
        if self._process is not None:
            await asyncio.to_thread(self._kill, self._process)
        for path in (self._directory / "process", self._control):
            path.unlink(missing_ok=True)

    # -- what it is told ---------------------------------------------------------------------------

    async def put_routes(self, sandboxes: list[IngressRoutes], *, complete: bool) -> None:
        """Replace the names of these sandboxes; of all, if these are all that there are. Raises `HutchError`; what was said is
        told again to an ingress that was away."""
        async with self._turn:
            if complete:
                self._known.routes = {}
            for sandbox in sandboxes:
                if sandbox.routes:
                    self._known.routes[sandbox.sandbox_id] = sandbox
                else:
                    self._known.routes.pop(sandbox.sandbox_id, None)
            self._known.complete |= complete
            await self._put_routes(sandboxes, complete=complete)

    async def _put_routes(self, sandboxes: list[IngressRoutes], *, complete: bool) -> None:
        told = [
            {
                "sandbox": sandbox.sandbox_id,
                "routes": [[subdomain, port] for subdomain, port in sandbox.routes],
                "private": sandbox.private,
                "wake": sandbox.wake,
                "epoch": sandbox.epoch,
            }
            for sandbox in sandboxes
        ]
        # One message: those who ask meanwhile are answered from the old names or the new ones.
        await self._call("routes.put", {"sandboxes": told, "complete": complete})

    async def verify_with(self, key: str) -> None:
        """Set what tokens are verified with, in hexadecimal digits. Raises `HutchError`."""
        async with self._turn:
            self._known.key = key
            await self._call("key", {"key": key})

    async def began(
        self, sandbox_id: str, session_id: str, network: Network, still: Callable[[], bool], *, announce: bool = True
    ) -> None:
        """A session of a sandbox runs, if it does when this has its turn. Without `announce` the ingress learns of it with
        `open`."""
        async with self._turn:
            if not still():
                return
            target = _Target(session_id, network.guest_address)
            self._known.targets[sandbox_id] = target
            if announce:
                await self._tell("targets.put", {"targets": _targets({sandbox_id: target})})

    async def ended(self, session_id: str) -> None:
        """A session is over; its connections are cut. Its address is another's before long: an ingress that may not know that
        starts anew."""
        async with self._turn:
            for sandbox_id, target in list(self._known.targets.items()):
                if target.session_id == session_id:
                    del self._known.targets[sandbox_id]
                    await self._tell("targets.remove", {"sandbox": sandbox_id, "session": session_id})

    async def _tell(self, method: str, body: dict[str, Any]) -> None:
        """Tell an ingress, or have the next one know."""
        connection = self._connection
        try:
            await self._call(method, body)
        except HutchError as error:
            if connection is not None and not connection.closed.done():
                connection.close(f"it did not take {method}: {error.message}")

    async def state(self) -> IngressState:
        """Raises `HutchError`."""
        found: IngressState = await self._call("state", {}, IngressState)
        return found

    # -- waking ------------------------------------------------------------------------------------

    async def wakes(self) -> AsyncGenerator[str, None]:
        """Ids of sandboxes that requests ask for and that are to be resumed, for ever."""
        queue: asyncio.Queue[str] = asyncio.Queue()
        self._followers.append(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._followers.remove(queue)

    async def not_waked(self, sandbox_id: str) -> None:
        """A sandbox could not be resumed."""
        with contextlib.suppress(HutchError):
            await self._call("wake.failed", {"sandbox": sandbox_id})

    async def _follow_wakes(self) -> None:
        connection = self._connection
        assert connection is not None
        with contextlib.suppress(HutchError, OSError):
            stream = connection.open("wakes", {})
            stream.send_end()
            await stream.reply()
            while (item := await stream.next()) is not None:
                if not isinstance(item, Message):
                    continue
                sandbox_id = item.decode(_Wake).sandbox
                if self._followers:
                    # The newest: of an API process that went away the stream may not have ended yet.
                    self._followers[-1].put_nowait(sandbox_id)
                else:
                    await self.not_waked(sandbox_id)

    async def _call(self, method: str, body: dict[str, Any], kind: Any = dict[str, Any]) -> Any:
        connection = self._connection
        if connection is None or connection.closed.done():
            raise _away("does not run")
        stream = connection.open(method, {})
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await stream.send_data(json.dumps(body).encode(), 0)
                stream.send_end()
                return await stream.reply(kind)
        except TimeoutError as error:
            connection.close("the ingress does not answer")
            raise _away("does not answer") from error
        except ConnectionClosed as error:
            raise _away("is gone") from error
        except HutchError as error:
            raise InternalError("ingress_refused", f"The ingress refused {method}: {error.message}") from error
        finally:
            stream.cancel()


def _away(how: str) -> UnavailableError:
    return UnavailableError("ingress_unavailable", f"The ingress {how}. Try again.", retry_after_s=1)


def _targets(targets: dict[str, _Target]) -> list[dict[str, str]]:
    return [
        {"sandbox": sandbox_id, "session": target.session_id, "address": target.address} for sandbox_id, target in targets.items()
    ]


def _recorded(directory: Path) -> tuple[Process | None, int]:
    """The ingress that was started last, and the inode of what it listens on."""
    try:
        pid, ticks, inode = (int(part) for part in (directory / "process").read_text().split())
    except (OSError, ValueError):
        return None, 0
    return Process(pid, ticks), inode


def end_leftover(directory: Path) -> None:
    """End an ingress that nobody talks to, and all that were started in this directory. Blocks."""
    root = os.fsencode(directory / "root")
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        with contextlib.suppress(OSError):
            argv = (entry / "cmdline").read_bytes().split(b"\0")
            if len(argv) > 2 and argv[1] == b"ingress" and argv[2] == root:
                process = kernel.process(int(entry.name))
                log.warning("ending an ingress that nobody talks to, pid %d", process.pid)
                process.kill()
                process.wait_gone(START_TIMEOUT_S)


def listen(settings: Settings) -> socket.socket:
    """The listening socket. A leftover that has the address is ended. Raises `OSError`. Blocks."""
    host, port = split_listen(settings.ingress_listen())
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    end_leftover(settings.host_dir / "ingress")
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener
