"""The real, unmodified `@vercel/sandbox` against a real server: one file of `js/` per behaviour."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.clients.conftest import JAVASCRIPT, node_tool
from tests.conftest import RunningServer, tail

TIMEOUT_S = 240

pytestmark = [pytest.mark.clients, pytest.mark.sandbox, pytest.mark.root, pytest.mark.timeout(TIMEOUT_S + 60)]


@pytest.mark.parametrize("script", sorted(path.name for path in JAVASCRIPT.glob("*.test.mjs")))
def test_javascript_sdk(
    script: str,
    server: RunningServer,
    javascript_sdk: Path,
    client_environment: dict[str, str],
    small_image: str,
    leak_check: None,
) -> None:
    done = subprocess.run(
        [node_tool("node"), "--test", "--test-reporter=spec", script],
        cwd=javascript_sdk,
        env=client_environment | {"HUTCH_TEST_IMAGE": small_image},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n--- server ---\n{tail(server.log)}"
    assert "pass 0" not in done.stdout, "a file without tests passes for nothing"
