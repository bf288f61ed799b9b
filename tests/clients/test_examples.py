"""What newcomers run first: the demo, and the programs in the README, exactly as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import leaks
from tests.clients.conftest import node_tool, tool_path
from tests.conftest import CHECKOUT

pytestmark = [pytest.mark.clients, pytest.mark.sandbox, pytest.mark.root, pytest.mark.timeout(300)]


def program(language: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", (CHECKOUT / "README.md").read_text(), re.DOTALL)
    assert len(found) == 1
    return str(found[0])


def test_the_readmes_javascript_runs(javascript_sdk: Path, client_environment: dict[str, str], leak_check: None) -> None:
    done = subprocess.run(
        [node_tool("node"), "--input-type=module"],
        input=program("js"),
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
        [sys.executable, "-c", program("python")], env=client_environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "0 42\n\n")


def test_the_demo_checks_its_result_and_leaves_nothing(tmp_path: Path) -> None:
    before = leaks.snapshot(tmp_path)
    # npm finds its registry in its own variables or in HOME; nothing of a server may be there.
    own = {name: value for name, value in os.environ.items() if not name.startswith(("HUTCH_", "VERCEL_", "NODE_OPTIONS"))}
    environment = own | {"PATH": f"{tool_path()}:/usr/sbin:/usr/bin:/sbin:/bin", "TMPDIR": str(tmp_path)}
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
    assert list(tmp_path.iterdir()) == []
    assert leaks.new(before, leaks.snapshot(tmp_path)) == []
