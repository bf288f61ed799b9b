"""`hutch serve` with the stub host: everything is real but the sandboxes. Run by `test_supervisor.py`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from hutch.errors import HutchError
from hutch.serving import layout
from hutch.serving.logs import configure_logging
from hutch.serving.supervisor import Supervisor, listen, locked
from hutch.settings import load


async def serve() -> int:
    settings = load()
    configure_logging(settings.server.log_level)
    layout.prepare(settings)
    with locked(settings):
        command = (sys.executable, "-m", "tests.serve.stub_host")
        return await Supervisor(settings, listen(settings), Path(sys.argv[1]), command).run()


try:
    sys.exit(asyncio.run(serve()))
except HutchError as error:
    print(error, file=sys.stderr)
    sys.exit(9)
