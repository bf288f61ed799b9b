"""Other versions of the vendor's SDKs, unmodified, each in a process of its own with the environment that `hutch env` makes."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.conftest import installed_from_npm, node_tool
from tests.conftest import CHECKOUT, RunningServer, tail

pytestmark = [pytest.mark.clients, pytest.mark.sandbox, pytest.mark.root]

VERSIONS = Path(__file__).parent / "versions"
JAVASCRIPT = {"2.0.0": "sandbox-2-0", "2.9.2": "sandbox-2-9", "3.0.0": "sandbox-3-0", "3.4.0": "sandbox-3-4"}
PYTHON = "0.4.0"
TIMEOUT_S = 120


def python_of(version: str) -> Path:
    """The interpreter of a virtual environment with that version of `vercel-sandbox`, made once per lock file."""
    lock_file = VERSIONS / f"vercel-sandbox-{version}.txt"
    key = hashlib.sha256(lock_file.read_bytes() + sys.version.encode()).hexdigest()[:16]
    directory = Path(os.environ.get("HUTCH_CACHE_DIR") or Path.home() / ".cache" / "hutch") / "clients"
    directory.mkdir(parents=True, exist_ok=True)
    made = directory / f"vercel-sandbox-{version}-{key}"
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (made / "whole").exists():
            shutil.rmtree(made, ignore_errors=True)
            uv = str(CHECKOUT / ".venv" / "bin" / "uv")
            python = str(made / "bin" / "python")
            for command in (
                [uv, "venv", "--quiet", "--python", sys.executable, str(made)],
                [uv, "pip", "install", "--quiet", "--python", python, "--require-hashes", "-r", str(lock_file)],
            ):
                subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT_S)
            (made / "whole").touch()
    return made / "bin" / "python"


def run(command: list[str], directory: Path, environment: dict[str, str], server: RunningServer) -> None:
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert (done.returncode, done.stdout) == (0, "whole\n"), f"{done.stdout}\n{done.stderr}\n{tail(server.log)}"


@pytest.mark.section("2.1")
@pytest.mark.parametrize(
    "version", [pytest.param(version, marks=pytest.mark.shows(f"version:@vercel/sandbox {version}")) for version in JAVASCRIPT]
)
def test_a_javascript_sdk(version: str, server: RunningServer, client_environment: dict[str, str], leak_check: None) -> None:
    installed_from_npm(VERSIONS)
    run([node_tool("node"), "smoke.mjs", JAVASCRIPT[version]], VERSIONS, client_environment, server)


@pytest.mark.section("2.3", "14.3")
@pytest.mark.shows(f"version:vercel-sandbox {PYTHON}")
def test_an_older_python_sdk(server: RunningServer, client_environment: dict[str, str], leak_check: None) -> None:
    run([str(python_of(PYTHON)), str(VERSIONS / "smoke.py")], VERSIONS, client_environment, server)
