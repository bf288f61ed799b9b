"""The vendor's own clients, installed as a user would."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT, RunningServer

JAVASCRIPT = Path(__file__).parent / "js"


@pytest.fixture(scope="session")
def javascript_sdk() -> Path:
    """The directory with the tests and the SDK of the lock file, installed once per lock file."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.fail("npm is not installed; `make setup` installs it.")
    wanted = hashlib.sha256((JAVASCRIPT / "package-lock.json").read_bytes()).hexdigest()
    stamp = JAVASCRIPT / "node_modules" / ".hutch-lock"
    if not stamp.exists() or stamp.read_text() != wanted:
        subprocess.run([npm, "ci", "--no-audit", "--no-fund"], cwd=JAVASCRIPT, check=True, capture_output=True, timeout=300)
        stamp.write_text(wanted)
    return JAVASCRIPT


@pytest.fixture(scope="session")
def client_environment(server: RunningServer) -> dict[str, str]:
    """The environment that `eval "$(hutch env)"` makes."""
    command = [sys.executable, "-m", "hutch", "env", "--format", "json"]
    printed = subprocess.check_output(command, cwd=CHECKOUT, env=server.environment, text=True, timeout=60)
    variables: dict[str, str] = json.loads(printed)
    return server.environment | variables
