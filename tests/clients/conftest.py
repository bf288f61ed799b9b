"""The vendor's own clients, installed as a user would."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT, RunningServer

JAVASCRIPT = Path(__file__).parent / "js"


def tool_path() -> str:
    return os.pathsep.join([str(CHECKOUT / ".hutch" / "node" / "bin"), os.environ["PATH"]])


def node_tool(name: str) -> str:
    """`node` or `npm`: the one that setup installed, before any other."""
    found = shutil.which(name, path=tool_path())
    assert found is not None, f"{name} is not installed; `make setup` installs it."
    return found


@pytest.fixture(scope="session")
def javascript_sdk() -> Path:
    """The directory with the tests and the SDK of the lock file, installed once per lock file."""
    wanted = hashlib.sha256((JAVASCRIPT / "package-lock.json").read_bytes()).hexdigest()
    stamp = JAVASCRIPT / "node_modules" / ".hutch-lock"
    if not stamp.exists() or stamp.read_text() != wanted:
        command = [node_tool("npm"), "ci", "--no-audit", "--no-fund"]
        subprocess.run(
            command, cwd=JAVASCRIPT, env=os.environ | {"PATH": tool_path()}, check=True, capture_output=True, timeout=300
        )
        stamp.write_text(wanted)
    return JAVASCRIPT


@pytest.fixture(scope="session")
def client_environment(server: RunningServer) -> dict[str, str]:
    """The environment that `eval "$(hutch env)"` makes."""
    command = [sys.executable, "-m", "hutch", "env", "--format", "json"]
    printed = subprocess.check_output(command, cwd=CHECKOUT, env=server.environment, text=True, timeout=60)
    variables: dict[str, str] = json.loads(printed)
    return server.environment | variables
