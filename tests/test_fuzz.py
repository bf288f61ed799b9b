"""Each fuzz target over its corpus, then over seeded mutations of it; in full for ten minutes, or `FUZZ_SECONDS`."""

from __future__ import annotations

import os
import subprocess
import tomllib

import pytest

from tests.builds import CHECKOUT, FUZZERS

FUZZ = CHECKOUT / "fuzz"
TARGETS = sorted(path.stem for path in (FUZZ / "fuzz_targets").glob("*.rs"))
FULL = os.environ.get("HUTCH_CAMPAIGN") == "full"
SECONDS = int(os.environ.get("FUZZ_SECONDS", "600"))


@pytest.fixture(scope="session")
def fuzzers() -> None:
    """The targets, compiled."""
    FUZZERS.output()


@pytest.mark.usefixtures("fuzzers")
@pytest.mark.timeout(SECONDS + 120 if FULL else 300)
@pytest.mark.parametrize("target", TARGETS)
def test_no_input_breaks_what_the_target_asserts(target: str) -> None:
    how = {"FUZZ_SECONDS": str(SECONDS)} if FULL else {"FUZZ_RUNS": "2000", "FUZZ_SEED": "1"}
    ran = subprocess.run(
        [CHECKOUT / "scripts" / "fuzz", target],
        env={**os.environ, **how},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-8000:]
    tried = [line for line in ran.stdout.splitlines() if line.startswith("stat::number_of_executed_units:")]
    assert int(tried[0].split()[-1]) >= 2000


def test_every_target_is_built_and_has_a_small_corpus_of_its_own() -> None:
    manifest = tomllib.loads((FUZZ / "Cargo.toml").read_text(encoding="utf-8"))
    assert sorted(binary["name"] for binary in manifest["bin"]) == TARGETS
    assert sorted(path.name for path in (FUZZ / "corpus").iterdir()) == TARGETS
    inputs = {target: list((FUZZ / "corpus" / target).iterdir()) for target in TARGETS}
    assert all(inputs.values())
    assert sum(path.stat().st_size for paths in inputs.values() for path in paths) < 300 * 1024
