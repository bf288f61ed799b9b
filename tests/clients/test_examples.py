"""What newcomers run first: the demo, and the programs in the README, exactly as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import leaks
from tests.clients.conftest import node_tool, tool_path
from tests.conftest import CHECKOUT

pytestmark = [pytest.mark.clients, pytest.mark.sandbox, pytest.mark.root, pytest.mark.timeout(300)]


def program(begins: str) -> str:
    """The one that begins so; that of our own client is run by `tests/client/test_guide.py`."""
    found = re.findall(rf"```{begins}(.*?)```", (CHECKOUT / "README.md").read_text(), re.DOTALL)
    assert len(found) == 1
    return begins.partition("\n")[2] + str(found[0])


@pytest.fixture
def scratch() -> Iterator[Path]:
    """An empty directory with a short path: the demo's server makes sockets below it, whose addresses have at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="demo-") as directory:
        yield Path(directory)


def test_the_readmes_javascript_runs(javascript_sdk: Path, client_environment: dict[str, str], leak_check: None) -> None:
    done = subprocess.run(
        [node_tool("node"), "--input-type=module"],
        input=program("js\n"),
        cwd=javascript_sdk,
        env=client_environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("0 hello from Linux version")


def test_the_readmes_python_runs(client_environment: dict[str, str], leak_check: None) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program("python\nfrom vercel")],
        env=client_environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "0 42\n\n")


def test_the_demo_checks_its_result_and_leaves_nothing(scratch: Path) -> None:
    before = leaks.snapshot(scratch)
    # npm finds its registry in its own variables or in HOME; nothing of a server may be there.
    own = {name: value for name, value in os.environ.items() if not name.startswith(("HUTCH_", "VERCEL_", "NODE_OPTIONS"))}
    environment = own | {"PATH": f"{tool_path()}:/usr/sbin:/usr/bin:/sbin:/bin", "TMPDIR": str(scratch)}
    done = subprocess.run(
        [str(CHECKOUT / "examples" / "demo" / "run")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "as computed here" in done.stdout
    assert "fork-3: …" in done.stdout
    assert "three clients, the same lines" in done.stdout
    assert "with a budget of 1 s of CPU: budget_exceeded" in done.stdout
    assert "s of CPU, valid: " in done.stdout
    assert list(scratch.iterdir()) == []
    assert leaks.new(before, leaks.snapshot(scratch)) == []
