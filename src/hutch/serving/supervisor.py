"""The supervisor of `hutch serve`."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import logging
import os
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import Iterator, Sequence
from pathlib import Path

from hutch.errors import BadRequestError, ConflictError
from hutch.host import ingress
from hutch.serving import ready
from hutch.serving.children import Child, child_environment
from hutch.settings import API_SECRETS, HOST_SECRETS, Settings, split_listen

log = logging.getLogger(__name__)

HOST_COMMAND = (sys.executable, "-P", "-m", "hutch", "host")
API_COMMAND = (sys.executable, "-P", "-m", "hutch.api.main")
"""`-P`: never import from the directory that somebody happened to start us in."""
BACKLOG = 2048
HOST_STOP_S = 180.0
API_STOP_MARGIN_S = 5.0
READY_AGAIN_S = 1.0
GIVE_UP_AFTER = 3
"""A child that dies this often before the server was ever ready will not do better the next time."""


@contextlib.contextmanager
def locked(settings: Settings) -> Iterator[None]:
    """The lock of the data directory; the kernel releases it with this process. Raises `ConflictError`."""
    path = settings.run_dir / "serve.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConflictError(
                "server_running",
                f"A server already runs on {settings.server.data_dir}. Stop it, or choose another directory with --data-dir.",
            ) from error
        yield
    finally:
        os.close(descriptor)


def listen(settings: Settings) -> socket.socket:
    """The listening socket. Raises `BadRequestError`."""
    host, port = split_listen(settings.server.listen)
    listener: socket.socket | None = None
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        if listener is not None:
            listener.close()
        hint = " Another program uses it." if error.errno == errno.EADDRINUSE else ""
        raise BadRequestError(
            "listen_failed", f"The server can't listen on {settings.server.listen}: {error.strerror or error}.{hint}"
        ) from error
    return listener


def listen_for_ingress(settings: Settings) -> socket.socket:
    """The listening socket of the ingress: it outlives the host and the process that serves it. Raises `BadRequestError`."""
    try:
        return ingress.listen(settings)
    except OSError as error:
        hint = " Another program uses it; choose another with ingress.listen." if error.errno == errno.EADDRINUSE else ""
        raise BadRequestError(
            "listen_failed", f"The ingress can't listen on {settings.ingress_listen()}: {error.strerror or error}.{hint}"
        ) from error


def listen_for_webhooks() -> socket.socket:
    """Where the ingress passes on requests to webhooks: at the loopback interface, on any port. Raises `BadRequestError`."""
    try:
        return socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    except OSError as error:
        raise BadRequestError("listen_failed", f"The server can't listen on 127.0.0.1: {error.strerror or error}.") from error


def base_url(settings: Settings, listener: socket.socket) -> str:
    """The base URL for clients: the configured one, or that of the socket (a wildcard address is reached by loopback)."""
    if settings.server.public_url is not None:
        return settings.server.public_url
    return f"http://{_bound(listener)}".replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")


def _bound(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Supervisor:
    """Both children, from the first start to the end."""

    def __init__(
        self,
        settings: Settings,
        listener: socket.socket,
        ready_file: Path | None,
        host_command: Sequence[str] = HOST_COMMAND,
        ingress_listener: socket.socket | None = None,
    ) -> None:
        self._ingress_listener = ingress_listener or listen_for_ingress(settings)
        self._webhooks_listener = listen_for_webhooks()
        bound = _bound(self._ingress_listener)
        self._settings = settings.model_copy(update={"ingress": settings.ingress.model_copy(update={"listen": bound})})
        self._listener = listener
        self._url = base_url(settings, listener)
        self._files = [ready.server_file(settings), *([ready_file] if ready_file is not None else [])]
        changed = {
            "server.data_dir": str(settings.server.data_dir),
            "server.listen": _bound(listener),
            "ingress.listen": bound,
        }
        environment = child_environment(settings, os.environ, changed, without=API_SECRETS)
        command = [*host_command, "--data-dir", str(settings.server.data_dir)]
        self._host = Child("the host", command, environment, patient=True)
        confined = child_environment(settings, os.environ, changed, without=HOST_SECRETS)
        self._api = Child("the API process", API_COMMAND, confined)
        self._stop = asyncio.Event()
        self._ready = False
        self._said: ready.Ready | None = None

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT; the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        keepers = [
            asyncio.create_task(self._keep(self._host)),
            asyncio.create_task(self._keep(self._api)),
        ]
        waiting = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait((waiting, *keepers), return_when=asyncio.FIRST_COMPLETED)
            failed = not self._stop.is_set()
        finally:
            for path in self._files:
                ready.remove(path, os.getpid())
            clean = await self._end()
            for task in (waiting, *keepers):
                task.cancel()
            outcomes = await asyncio.gather(*keepers, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                log.error("%s", outcome)
        return 0 if clean and not failed else 1

    async def _end(self) -> bool:
        """From the outside in: the API answers what it has begun, then the host stops its sandboxes."""
        # Once for what is asked, once for what runs in its background.
        api = await self._api.stop(2 * self._settings.server.shutdown_grace_s + API_STOP_MARGIN_S)
        self._listener.close()
        # Sandboxes outlive a host, and only another one can end them. One that can't start has said so.
        host = await self._host.stop(HOST_STOP_S, self._start if self._ready else None)
        self._ingress_listener.close()
        self._webhooks_listener.close()
        return api and host

    async def _keep(self, child: Child) -> None:
        await child.keep(self._start)

    async def _start(self, child: Child) -> Process:
        if not self._ready and child.quick_deaths >= GIVE_UP_AFTER:
            raise RuntimeError(f"{child.name} ended {child.quick_deaths} times before the server was ready; giving up")
        if child is self._host:
            descriptor = self._ingress_listener.fileno()
            port = self._webhooks_listener.getsockname()[1]
            return await child.start(
                extra=["--ingress-fd", str(descriptor), "--webhooks-port", str(port)], descriptors=(descriptor,)
            )
        reading, writing = os.pipe()
        try:
            listener, webhooks = self._listener.fileno(), self._webhooks_listener.fileno()
            process = await child.start(
                extra=["--fd", str(listener), "--webhooks-fd", str(webhooks), "--report-fd", str(writing)],
                descriptors=(listener, webhooks, writing),
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        loop = asyncio.get_running_loop()
        buffer = bytearray()

        def readable() -> None:
            chunk = os.read(reading, 65536)
            buffer.extend(chunk)
            if not chunk:
                loop.remove_reader(reading)
                os.close(reading)
                if buffer:
                    self._now_ready(bytes(buffer))

        loop.add_reader(reading, readable)
        return process

    def _now_ready(self, report: bytes) -> None:
        """The API process says that a create would succeed."""
        if self._stop.is_set():
            return
        said = json.loads(report)
        content = ready.Ready(
            url=self._url,
            token=said["token"],
            team_id=said["team_id"],
            project_id=said["project_id"],
            dashboard_url=None,
            ingress_url=self._settings.ingress_url(),
            isolation=said["isolation"],
            pid=os.getpid(),
        )
        self._said = content
        self._write_ready(content)

    def _write_ready(self, content: ready.Ready, failed: str = "") -> None:
        """Where it can't be written, as on a full disk, it is tried again: the children will not say it a second time."""
        if self._stop.is_set() or content is not self._said:
            return
        try:
            for path in self._files:
                ready.write(path, content)
        except OSError as error:
            if (why := f"{path}: {error.strerror or error}") != failed:
                log.error("the ready file could not be written, and is tried again: %s", why)
            asyncio.get_running_loop().call_later(READY_AGAIN_S, self._write_ready, content, why)
            return
        if not self._ready:
            self._ready = True
            log.info("ready at %s (isolation: %s)", self._url, content.isolation)
