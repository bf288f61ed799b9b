"""The API process: `python -m hutch.api.main --fd N [--webhooks-fd W] [--report-fd M]`, started by `hutch serve`.

It inherits the listening sockets, its own and that to which the ingress passes on requests to webhooks, and its settings (as
environment), imports everything, shuts itself in and gives up root (`hutch.serving.confine`), and then serves. When a create
would succeed for the first time it writes one JSON object to the report pipe: the token, team and project for the ready file, and
the isolation backend.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from types import FrameType

import uvicorn
import uvloop

from hutch import settings as settings_module
from hutch.api import startup
from hutch.api.app import create_app
from hutch.api.http_protocol import bounded_protocol
from hutch.api.interactive import MAX_MESSAGE_BYTES
from hutch.api.services import Images, Services
from hutch.api.socket_protocol import bounded_socket
from hutch.api.startup import Loaded, identity, started
from hutch.api.system import ready
from hutch.api.transports import Limits
from hutch.errors import HutchError
from hutch.serving import confine, eager
from hutch.serving.logs import configure_logging
from hutch.settings import Settings

log = logging.getLogger(__name__)

BACKLOG = 2048
READY_POLL_S = 0.05


class ApiServer(uvicorn.Server):
    """uvicorn, which says so to the services when it begins to drain."""

    def __init__(self, config: uvicorn.Config, services: Services) -> None:
        super().__init__(config)
        self._services = services

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._services.draining = True
        super().handle_exit(sig, frame)
        # uvicorn would end by this signal after draining; leaving of one's own accord is exit code 0.
        self._captured_signals.clear()


def server_config(services: Services) -> uvicorn.Config:
    """uvicorn's configuration over started services."""
    server = services.settings.server
    limits = Limits.of(server)
    return uvicorn.Config(
        create_app(services),
        http=bounded_protocol(limits),
        ws=bounded_socket(limits),
        ws_max_size=MAX_MESSAGE_BYTES,
        loop="uvloop",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=server.keep_alive_s,
        timeout_graceful_shutdown=server.shutdown_grace_s,
    )


async def serve(
    settings: Settings, loaded: Loaded, listener: socket.socket, webhooks: socket.socket | None, report_fd: int | None
) -> None:
    """Serve until SIGTERM or SIGINT."""
    async with started(settings, loaded, Images(settings)) as services:
        sockets = [listener]
        if webhooks is not None:
            sockets.append(webhooks)
            services.webhooks_port = webhooks.getsockname()[1]
        server = ApiServer(server_config(services), services)
        reporter = asyncio.create_task(_report(services, report_fd)) if report_fd is not None else None
        try:
            await server.serve(sockets=sockets)
        finally:
            if reporter is not None:
                reporter.cancel()
                await asyncio.gather(reporter, return_exceptions=True)


async def _report(services: Services, report_fd: int) -> None:
    """Tell the supervisor once that a create would succeed."""
    while True:
        try:
            own = await identity(services)
            info = await ready(services)
            break
        except HutchError:
            await asyncio.sleep(READY_POLL_S)
    message = {"token": own.token, "team_id": own.team_id, "project_id": own.project_id, "isolation": info.isolation}
    with contextlib.suppress(BrokenPipeError):
        os.write(report_fd, json.dumps(message).encode() + b"\n")
    os.close(report_fd)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="hutch api-process", description="Internal: the API process of `hutch serve`.")
    parser.add_argument("--fd", type=int, required=True, help="file descriptor of the listening socket")
    parser.add_argument("--webhooks-fd", type=int, help="file descriptor of the listening socket for webhooks")
    parser.add_argument("--report-fd", type=int, help="file descriptor that is told once when the server is ready")
    arguments = parser.parse_args(argv)
    try:
        settings = settings_module.load()
        configure_logging(settings.server.log_level)
        loaded = startup.load(settings)
        eager.import_everything(settings)
        settings = confine.confine(settings)
        listener = socket.socket(fileno=arguments.fd)
        webhooks = socket.socket(fileno=arguments.webhooks_fd) if arguments.webhooks_fd is not None else None
        for inherited in (arguments.fd, arguments.webhooks_fd, arguments.report_fd):
            if inherited is not None:
                os.set_inheritable(inherited, False)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(settings, loaded, listener, webhooks, arguments.report_fd))
    except HutchError as error:
        print(f"hutch: {error.message}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    # A signal before the server has its own handlers ends the process at once.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    code = main()
    # All is closed and written. What an interpreter does besides as it ends can take for ever where clients were cut off in the
    # middle.
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)
