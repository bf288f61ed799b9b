"""A real `hutch serve` for a benchmark."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hutch.client import Server, find_server

START_S = 120.0
STOP_S = 120.0


@dataclass(frozen=True, slots=True)
class Running:
    pid: int
    data_dir: Path
    where: Server


@contextmanager
def serving(pool_size: int | None = None) -> Iterator[Running]:
    """A server with an empty data directory; `pool_size` None is the default. Raises `RuntimeError` if it does not come up."""
    scratch = Path(tempfile.mkdtemp(prefix="hutch-bench-"))
    ready, log = scratch / "ready.json", scratch / "serve.log"
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith("HUTCH_") or "__" in key or key == "HUTCH_CACHE_DIR"
    }
    environment["HUTCH_SERVER__LOG_LEVEL"] = "warning"
    # How fast it is, not how much it lets one project have.
    for name in ("REQUESTS_PER_MINUTE", "CREATES_PER_MINUTE", "DELETES_PER_SECOND", "UNAUTHORIZED_PER_MINUTE"):
        environment[f"HUTCH_LIMITS__{name}"] = "0"
    if pool_size is not None:
        environment["HUTCH_POOL__SIZE"] = str(pool_size)
    command = [sys.executable, "-m", "hutch", "serve", "--data-dir", str(scratch / "data"), "--listen", "127.0.0.1:0"]
    with open(log, "wb") as output:
        process = subprocess.Popen([*command, "--ready-file", str(ready)], env=environment, stdout=output, stderr=output)
    try:
        end = time.monotonic() + START_S
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"hutch serve did not become ready:\n{log.read_text(errors='replace')[-4000:]}")
            time.sleep(0.05)
        yield Running(process.pid, scratch / "data", find_server(scratch / "data", {}))
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        shutil.rmtree(scratch, ignore_errors=True)
