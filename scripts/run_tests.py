"""`make test`'s call of pytest, in the current directory: all tests in several processes, then those few that failed, alone.

A test that fails beside others and passes alone was disturbed by a busy machine, or has a race: it is named at the end, to be
mended. What fails alone too has failed, and so has a run with more failures than `MOST_AGAIN`, which are not looked at again.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

FAILED = Path(".pytest_cache", "v", "cache", "lastfailed")
TESTS_FAILED = 1
"""pytest's exit code for that, and for nothing else."""
MOST_AGAIN = 5


def failed() -> list[str]:
    """The ids of tests, or files, that failed last; none where nobody knows."""
    try:
        return sorted(json.loads(FAILED.read_text()))
    except (OSError, ValueError):
        return []


def pytest(*arguments: str) -> int:
    return subprocess.run([sys.executable, "-m", "pytest", *arguments], check=False).returncode


def main(arguments: list[str]) -> int:
    # What an earlier run left says nothing about this one.
    FAILED.unlink(missing_ok=True)
    status = pytest(*arguments)
    names = failed()
    if status != TESTS_FAILED or not 0 < len(names) <= MOST_AGAIN:
        return status
    print(f"\nrun_tests: {len(names)} failed beside others; once more, alone:", *names, sep="\n  ", flush=True)
    status = pytest("-n", "0", "--last-failed", "--last-failed-no-failures=none")
    if status == 0:
        print(
            "run_tests: passed alone, after having failed beside others, which is to be mended:", *names, sep="\n  ", flush=True
        )
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
