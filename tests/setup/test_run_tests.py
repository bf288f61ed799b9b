"""`scripts/run_tests.py`: what fails beside others is asked once more, alone, and what fails then has failed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[2] / "scripts" / "run_tests.py"
SOUND = "def test_sound():\n    pass\n"
DISTURBED = "import os\n\ndef test_disturbed():\n    assert 'PYTEST_XDIST_WORKER' not in os.environ\n"
BROKEN = "def test_broken():\n    assert not 1\n"
MANY = "import os, pytest\n\n@pytest.mark.parametrize('n', range(6))\n" + DISTURBED.partition("\n")[2].strip().replace(
    "()", "(n)"
)


@pytest.mark.parametrize(
    ("files", "status", "says", "says_not"),
    [
        ([SOUND, DISTURBED], 0, "to be mended", "2 failed"),
        ([DISTURBED, BROKEN], 1, "1 failed, 1 passed", "to be mended"),
        ([MANY], 1, "6 failed", "once more"),
    ],
    ids=["disturbed", "broken", "many"],
)
def test_what_failed_is_asked_once_more(tmp_path: Path, files: list[str], status: int, says: str, says_not: str) -> None:
    for number, text in enumerate(files):
        (tmp_path / f"test_{number}.py").write_text(text)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    environment |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": "-p xdist"}
    ran = subprocess.run(
        [sys.executable, PROGRAM, "-n", "2"],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert says in ran.stdout, ran.stdout
    assert says_not not in ran.stdout, ran.stdout
    assert ran.returncode == status, ran.stdout
