"""`hutch host`: the privileged process that owns this machine's sandboxes. It has no network listener, only its socket.

SIGTERM ends every sandbox, then the process. Any other death leaves the sandboxes running for the next start.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import grp
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import uvloop

from hutch.errors import HutchError
from hutch.host import drive_storage, storage
from hutch.host.audit import AuditStore
from hutch.host.authority import TrustStore
from hutch.host.binaries import agent_path, gateway_path
from hutch.host.conversion import Conversions, Converter
from hutch.host.copies import Copies, store_spec
from hutch.host.drive_forms import DriveForms
from hutch.host.drive_storage import DriveStore
from hutch.host.drives import Drives
from hutch.host.egress import Egress
from hutch.host.gateway import Gateway
from hutch.host.images import Images
from hutch.host.ingress import Ingress, Sockets
from hutch.host.journal import Journal
from hutch.host.machine import Machines
from hutch.host.memory import MemoryImages
from hutch.host.names import Names
from hutch.host.network import Networks
from hutch.host.packing import Packers
from hutch.host.service import HELLO, Service
from hutch.host.snapshots import Snapshots
from hutch.host.supervisor import Supervisor
from hutch.host.traffic import TrafficMeter
from hutch.host.usage import Usage
from hutch.images import ImageStore
from hutch.isolation import choose
from hutch.isolation.backends import Backends
from hutch.metering.prices import load as load_table
from hutch.settings import Settings, load
from hutch.storage.sealing import load_or_create_key
from hutch.wire import serve_unix

log = logging.getLogger("hutch.host")

THREADS = 16


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGTERM; the exit code."""
    parser = argparse.ArgumentParser(prog="hutch host", description="Owns this machine's sandboxes; `hutch serve` starts it.")
    parser.add_argument("--config", type=Path, help="configuration file")
    parser.add_argument("--data-dir", type=Path, help="directory of all state")
    parser.add_argument("--isolation", help="isolation backend")
    parser.add_argument("--ingress-fd", type=int, help="file descriptor of the ingress's listening socket")
    parser.add_argument("--webhooks-port", type=int, default=0, help="port of the server's webhooks, on the loopback interface")
    options = parser.parse_args(argv)
    try:
        settings = load(options.config, flags={"server.data_dir": options.data_dir, "isolation.backend": options.isolation})
        logging.basicConfig(
            level=settings.server.log_level.value.upper(),
            format="%(asctime)s %(levelname)s %(name)s: %(message)s",
            stream=sys.stderr,
        )
        if os.geteuid() != 0:
            raise PermissionError("`hutch host` needs root: it makes namespaces, mounts and cgroups.")
        sockets = None
        if options.ingress_fd is not None:
            sockets = Sockets(socket.socket(fileno=options.ingress_fd), options.webhooks_port)
            sockets.listener.set_inheritable(False)
        uvloop.run(serve(settings, sockets))
    except (HutchError, OSError) as error:
        print(f"hutch host: {error.message if isinstance(error, HutchError) else error}", file=sys.stderr)
        return 1
    return 0


async def serve(settings: Settings, sockets: Sockets | None = None) -> None:
    """Run a host until SIGTERM or SIGINT. Raises `HutchError` or `OSError` when it can't start."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    # `hutch serve` blocks it for us until now: what a predecessor left running is ended as well.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    async with running(settings, sockets=sockets) as service:
        path = settings.host_socket
        server = await serve_unix(path, HELLO, service.handle, mode=0o660)
        with contextlib.suppress(KeyError):
            os.chown(path, 0, grp.getgrnam(settings.server.user).gr_gid)
        log.info("serving %s", path)
        await stop.wait()
        log.info("stopping: ending all sandboxes")
        server.close()
        path.unlink(missing_ok=True)


@contextlib.asynccontextmanager
async def running(settings: Settings, *, end_all: bool = True, sockets: Sockets | None = None) -> AsyncIterator[Service]:
    """A host without its socket: everything taken over and swept on entry, everything ended on exit.

    Without `end_all` its sandboxes run on, as after a crash.
    """
    os.umask(0o077)
    directory = settings.host_dir
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    settings.run_dir.mkdir(parents=True, exist_ok=True, mode=0o750)
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(f"Another `hutch host` runs with the data directory {settings.server.data_dir}.") from error
        async with _opened(settings, directory, sockets, end_all=end_all) as service:
            yield service
    finally:
        os.close(lock)


@contextlib.asynccontextmanager
async def _opened(settings: Settings, directory: Path, sockets: Sockets | None, *, end_all: bool) -> AsyncIterator[Service]:
    names = Names.of(settings.server.data_dir)
    journal = Journal(directory / "journal.db")
    journal.open()
    kept = Supervisor.machines_to_keep(journal)
    stored_block = journal.meta("address_block")
    executor = ThreadPoolExecutor(THREADS, thread_name_prefix="host")
    backends = await asyncio.to_thread(choose.backends, settings, directory)
    layers = await asyncio.to_thread(storage.choose, directory / "layers")
    await asyncio.to_thread(layers.open)
    drive_store = drive_storage.beside(layers)
    await asyncio.to_thread(drive_store.open)
    networks = Networks(names, executor)
    block = await asyncio.to_thread(
        networks.open, int(stored_block) if stored_block is not None else None, {entry.network for entry in kept.values()}
    )
    audit = AuditStore(directory / "audit")
    trust = TrustStore(settings.egress.extra_trust_roots)
    gateway = Gateway(settings, directory / "gateway", networks, gateway_path(settings), trust, audit.store, audit.position)
    egress = Egress(gateway, journal, directory / "secrets.key")
    egress.load()
    converter = Converter(
        choose.converting(settings, directory / "conversions", backends),
        Packers(),
        directory / "conversions",
        names.cgroup_parent,
    )
    drives = Drives(journal, drive_store, DriveForms(converter, drive_store))
    machines = Machines(
        directory / "machines",
        names,
        backends,
        layers,
        drives,
        networks,
        agent_path(settings),
        executor,
        gateway,
        trust,
        load_or_create_key(directory / "authority.key"),
    )
    (directory / "machines").mkdir(exist_ok=True, mode=0o700)
    images = Images(settings, journal, directory / "pulled", ImageStore(settings.image_dir()), backends.forget_image)
    await asyncio.to_thread(images.open)
    copies = Copies(
        store_spec(settings), layers, Packers(), grace_s=settings.blobs.grace_s, disk_bytes=settings.sandbox.disk_bytes
    )
    conversions = Conversions(converter, layers, disk_bytes=settings.sandbox.disk_bytes)
    snapshots = Snapshots(journal, layers, MemoryImages(directory / "memory"), copies, conversions)
    meter = TrafficMeter(gateway, journal)
    usage = Usage(journal, load_table(settings.billing.prices), settings.billing.window_s * 1000)
    usage.load()
    ingress = Ingress(settings, directory / "ingress", networks, gateway_path(settings), sockets)
    supervisor = Supervisor(
        settings,
        journal,
        machines,
        networks,
        images,
        gateway,
        egress,
        audit,
        meter,
        usage,
        snapshots,
        drives,
        ingress,
    )
    host_id = journal.meta("host_id") or f"host_{uuid4().hex[:20]}"
    service = Service(supervisor, settings, host_id, backends.default.name)
    try:
        await supervisor.start(block)
        await journal.put_meta("host_id", host_id)
        yield service
    finally:
        # What could not be ended keeps nothing else from it.
        async with contextlib.AsyncExitStack() as last_first:
            last_first.callback(networks.release)
            last_first.push_async_callback(asyncio.to_thread, backends.leave)
            if end_all:
                last_first.push_async_callback(asyncio.to_thread, _close, networks, backends, layers, drive_store, names)
            last_first.push_async_callback(asyncio.to_thread, journal.close)
            last_first.push_async_callback(asyncio.to_thread, executor.shutdown)
            last_first.push_async_callback(gateway.close if end_all else gateway.leave)
            last_first.push_async_callback(ingress.close if end_all else ingress.leave)
            last_first.push_async_callback(supervisor.drain if end_all else supervisor.leave)


def _close(networks: Networks, backends: Backends, layers: storage.WritableLayers, drives: DriveStore, names: Names) -> None:
    with contextlib.ExitStack() as last_first:
        # The parent of all instances; another one may still need it.
        last_first.callback(backends.cgroups.remove_unused, str(Path(names.cgroup_parent).parent))
        last_first.callback(backends.cgroups.remove_unused, names.cgroup_parent)
        last_first.callback(layers.close)
        last_first.callback(drives.close)
        for close in backends.closing():
            last_first.callback(close)
        last_first.callback(networks.close)


if __name__ == "__main__":
    sys.exit(main())
