"""The vendor's own clients, installed as a user would."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.clients import shown
from tests.conftest import CHECKOUT, RunningServer
from tests.watching import Watching

JAVASCRIPT = Path(__file__).parent / "js"


def tool_path() -> str:
    return os.pathsep.join([str(CHECKOUT / ".hutch" / "node" / "bin"), os.environ["PATH"]])


def node_tool(name: str) -> str:
    """`node` or `npm`: the one that setup installed, before any other."""
    found = shutil.which(name, path=tool_path())
    assert found is not None, f"{name} is not installed; `make setup` installs it."
    return found


def installed_from_npm(directory: Path) -> Path:
    """The directory, with the packages of its lock file installed, once per lock file, also with tests in several processes."""
    wanted = hashlib.sha256((directory / "package-lock.json").read_bytes()).hexdigest()
    stamp = directory / "node_modules" / ".hutch-lock"
    with (directory / "package.json").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != wanted:
            command = [node_tool("npm"), "ci", "--no-audit", "--no-fund"]
            subprocess.run(
                command, cwd=directory, env=os.environ | {"PATH": tool_path()}, check=True, capture_output=True, timeout=300
            )
            stamp.write_text(wanted)
    return directory


@pytest.fixture(scope="session")
def javascript_sdk() -> Path:
    """The directory with the tests and the SDK of the lock file."""
    return installed_from_npm(JAVASCRIPT)


@pytest.fixture(scope="session")
def watched(server: RunningServer) -> Iterator[RunningServer]:
    """The server by another port, behind which every answer is compared with what is documented (`tests.watching`)."""
    with Watching(server.where.url) as watching:
        yield replace(server, where=replace(server.where, url=watching.url))
    assert not watching.violations, "answers that are not as documented:\n" + "\n".join(watching.violations)


@pytest.fixture(scope="session")
def client_environment(watched: RunningServer) -> dict[str, str]:
    """The environment that `eval "$(hutch env)"` makes."""
    command = [sys.executable, "-m", "hutch", "env", "--format", "json"]
    printed = subprocess.check_output(command, cwd=CHECKOUT, env=watched.environment, text=True, timeout=60)
    variables: dict[str, str] = json.loads(printed)
    return watched.environment | variables


# -- what tests show -------------------------------------------------------------------------------


def pytest_configure() -> None:
    shown.watch()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    shown.used.clear()
    yield
    rows = {row for mark in item.iter_markers("shows") for row in mark.args}
    shown.passed(item.nodeid.removeprefix("tests/clients/"), shown.used | rows)
