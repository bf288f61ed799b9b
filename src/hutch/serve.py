"""`hutch serve`, for the CLI: one function. How it works is in `hutch.serving`."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from hutch.egress.policy import operator_policy
from hutch.serving import layout
from hutch.serving.logs import configure_logging
from hutch.serving.supervisor import Supervisor, listen, locked
from hutch.settings import Settings


def run(settings: Settings, ready_file: Path | None = None) -> int:
    """Serve until SIGTERM or SIGINT; the exit code: 0 after a clean stop, 1 otherwise.

    `ready_file` is written once a create would succeed. Raises `BadRequestError` or `ConflictError` when it can't even start.
    """
    layout.require_root()
    configure_logging(settings.server.log_level)
    # The API process reads it again; here it is refused before anything is started.
    operator_policy(settings)
    layout.prepare(settings)
    with locked(settings):
        listener = listen(settings)
        ready_path = ready_file.absolute() if ready_file is not None else None
        return asyncio.run(_serve(settings, listener, ready_path))


async def _serve(settings: Settings, listener: socket.socket, ready_file: Path | None) -> int:
    return await Supervisor(settings, listener, ready_file).run()
