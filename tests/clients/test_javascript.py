"""The real, unmodified `@vercel/sandbox` against a real server: one file of `js/` per behaviour."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.clients import shown
from tests.clients.conftest import JAVASCRIPT, node_tool
from tests.conftest import RunningServer, tail

TIMEOUT_S = 900 if os.environ.get("HUTCH_CAMPAIGN") == "full" else 240

pytestmark = [pytest.mark.clients, pytest.mark.sandbox, pytest.mark.root, pytest.mark.timeout(TIMEOUT_S + 60)]


@pytest.mark.parametrize("script", sorted(path.name for path in JAVASCRIPT.glob("*.test.mjs")))
def test_javascript_sdk(
    script: str,
    server: RunningServer,
    javascript_sdk: Path,
    client_environment: dict[str, str],
    small_image: str,
    leak_check: None,
    tmp_path: Path,
) -> None:
    noted = tmp_path / "shown.jsonl"
    done = subprocess.run(
        [node_tool("node"), "--test", "--test-reporter=spec", script],
        cwd=javascript_sdk,
        env=client_environment
        | {
            "HUTCH_TEST_IMAGE": small_image,
            "HUTCH_SHOWN": str(noted),
            "HUTCH_CAMPAIGN": os.environ.get("HUTCH_CAMPAIGN", ""),
        },
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n--- server ---\n{tail(server.log)}"
    for line in noted.read_text().splitlines():
        test = json.loads(line)
        shown.passed(f"js/{script}: {test['title']}", set(test["shown"]))
    assert "pass 0" not in done.stdout, "a file without tests passes for nothing"
