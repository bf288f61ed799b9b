"""One machine without a server: booted, used and killed by separate calls."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.root, pytest.mark.sandbox]


def call(data_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hutch.host.debug", "--data-dir", str(data_dir), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_boot_exec_kill(no_leaks: Path) -> None:
    booted = json.loads(call(no_leaks, "boot").stdout)
    assert booted["isolation"] == "gvisor"
    machine = booted["id"]
    ran = call(no_leaks, "exec", machine, "--", "sh", "-c", "echo out; echo err >&2; exit 5")
    assert (ran.returncode, ran.stdout, ran.stderr) == (5, "out\n", "err\n")
    assert call(no_leaks, "exec", "--root", machine, "--", "id", "-u").stdout == "0\n"
    assert json.loads(call(no_leaks, "ls").stdout)["id"] == machine
    killed = call(no_leaks, "kill", machine)
    assert killed.returncode == 0, killed.stderr
    assert json.loads(killed.stdout)["active_cpu_us"] > 0


def test_mistakes_are_explained(no_leaks: Path) -> None:
    assert "no session 'nothing'" in call(no_leaks, "kill", "nothing").stderr
    assert "no image 'nothing'" in call(no_leaks, "boot", "--image", "nothing").stderr
    assert call(no_leaks, "boot").returncode == 0
    listed = json.loads(call(no_leaks, "ls").stdout)
    assert "name a program" in call(no_leaks, "exec", listed["id"]).stderr
    assert call(no_leaks, "kill", listed["id"]).returncode == 0
