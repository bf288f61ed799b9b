"""A host process without sandboxes: the fake host of the API's tests on the real socket. `serve_stub.py` starts it."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from pathlib import Path

from hutch.settings import load
from tests.api.fake_host import FakeHost


async def serve(socket_path: Path) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    host = FakeHost(socket_path)
    await host.start()
    await stop.wait()
    await host.stop()


parser = argparse.ArgumentParser()
parser.add_argument("--data-dir", type=Path, required=True)
parser.add_argument("--ingress-fd", type=int)
parser.add_argument("--webhooks-port", type=int)
if os.environ.get("STUB_HOST_FAILS"):
    raise SystemExit(3)
asyncio.run(serve(load(flags={"server.data_dir": parser.parse_args().data_dir}).host_socket))
raise SystemExit(int(os.environ.get("STUB_HOST_ENDS_WITH", "0")))
