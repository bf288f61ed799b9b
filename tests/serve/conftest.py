"""Servers with the stub host: everything is real but the sandboxes."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
DEADLINE_S = 120.0


@dataclass
class Served:
    process: subprocess.Popen[bytes]
    ready_file: Path
    data_dir: Path
    log: Path

    @property
    def ready(self) -> dict[str, Any]:
        return dict(json.loads(self.ready_file.read_text()))

    def http(self) -> httpx.Client:
        headers = {"authorization": f"Bearer {self.ready['token']}"}
        return httpx.Client(base_url=self.ready["url"], headers=headers, timeout=DEADLINE_S)

    def children(self) -> dict[str, int]:
        """pids by what they are, of this server only."""
        text = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        found = {}
        for pid in text.split():
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            found["host" if b"stub_host" in command else "api"] = int(pid)
        return found


def eventually(condition: Callable[[], Any], what: str) -> Any:
    """What `condition` answers once it is true."""
    end = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert time.monotonic() < end, what
        time.sleep(0.01)
    return found


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.fixture(scope="module")
def user() -> str:
    """An unprivileged user to serve as: the one of `make setup`, else `nobody`."""
    for name in ("hutch", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    pytest.fail("neither the user `hutch` nor `nobody` exists. Run `make setup`.")


Start = Callable[..., Served]


@pytest.fixture
def start(tmp_path: Path, user: str) -> Iterator[Start]:
    """Starts a server on the test's data directory; ends what still runs afterwards."""
    with starting(tmp_path, user) as begin:
        yield begin


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, user: str) -> Iterator[Served]:
    """One server for the tests that only look at it."""
    with starting(tmp_path_factory.mktemp("shared"), user) as begin:
        yield begin()


@contextmanager
def starting(tmp_path: Path, user: str) -> Iterator[Start]:
    if os.geteuid() != 0:
        pytest.fail("This test starts a real server, which needs root. Run `make test` as root or with sudo.")
    served: list[Served] = []

    def begin(*, wait: bool = True, **environment: str) -> Served:
        ready_file, log = tmp_path / f"ready-{len(served)}.json", tmp_path / "log"
        clean = {key: value for key, value in os.environ.items() if not key.startswith("HUTCH_")}
        settings = {
            "HUTCH_SERVER__DATA_DIR": str(tmp_path / "data"),
            "HUTCH_SERVER__LISTEN": "127.0.0.1:0",
            "HUTCH_SERVER__USER": user,
        }
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.serve.serve_stub", str(ready_file)],
                env=clean | {"PYTHONPATH": str(CHECKOUT), "HUTCH_CONFIG": os.devnull} | settings | environment,
                cwd=CHECKOUT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        server = Served(process, ready_file, tmp_path / "data", log)
        served.append(server)
        if wait:
            eventually(lambda: ready_file.exists() or process.poll() is not None, "the server is not ready")
            assert process.poll() is None, log.read_text()
        return server

    try:
        yield begin
    finally:
        for server in served:
            if server.process.poll() is None:
                server.process.terminate()
            server.process.wait(DEADLINE_S)
