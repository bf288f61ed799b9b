"""An API process over the fake host of a test: `python -m tests.api.one_process DATA_DIR`, with its settings in the environment.

When it serves it writes a line `{"url", "process"}`. It ends on SIGTERM as `hutch.api.main` does.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from pathlib import Path

from hutch.api.main import ApiServer, server_config
from hutch.api.startup import load as load_installation
from hutch.api.startup import started
from hutch.settings import load
from tests.api.conftest import FakeImages


async def main() -> None:
    settings = load(Path(os.devnull), flags={"server.data_dir": Path(sys.argv[1])})
    listener = socket.create_server(("127.0.0.1", 0))
    async with started(settings, load_installation(settings), FakeImages()) as services:  # type: ignore[arg-type]
        said = {"url": f"http://127.0.0.1:{listener.getsockname()[1]}", "process": services.process_id}
        print(json.dumps(said), flush=True)
        await ApiServer(server_config(services), services).serve(sockets=[listener])


if __name__ == "__main__":
    asyncio.run(main())
