"""Builds that only tests need. They begin when the tests do, at low priority, and whoever needs one waits for it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]


@dataclass(slots=True)
class Build:
    """A command; `fixture` is what tests that need it ask for."""

    fixture: str
    command: list[str]
    _process: subprocess.Popen[bytes] | None = None
    _output: Path = Path()

    def start(self) -> None:
        """Begin, if it has not."""
        if self._process is None:
            self._output = Path(tempfile.mkdtemp(prefix="hutch-build-"))
            with (self._output / "out").open("wb") as out, (self._output / "err").open("wb") as err:
                self._process = subprocess.Popen(
                    ["nice", "-n", "10", *self.command], cwd=CHECKOUT, stdin=subprocess.DEVNULL, stdout=out, stderr=err
                )

    def output(self) -> bytes:
        """What it printed, once it is done. Fails with what went wrong."""
        self.start()
        assert self._process is not None
        if self._process.wait() != 0:
            pytest.fail(f"{' '.join(self.command)}:\n{(self._output / 'err').read_text()}")
        return (self._output / "out").read_bytes()

    def end(self) -> None:
        """Not needed any more."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait()
        shutil.rmtree(self._output)


_FEATURES = "hutch-net/defences-off,hutch-python/defences-off"
DEFENCES_OFF = Build(
    "builds",
    [
        *("cargo", "build", "--locked", "--quiet", "-p", "hutch-net", "-p", "hutch-python"),
        *("--features", _FEATURES, "--message-format=json"),
    ],
)
FUZZERS = Build("fuzzers", [str(CHECKOUT / "scripts" / "fuzz"), "--build"])
ALL = (DEFENCES_OFF, FUZZERS)
