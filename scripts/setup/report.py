"""What the user sees: one line per step, and a failure that says what to do."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


class SetupError(Exception):
    """Setup can't go on. The message is for the user: what is missing, with which value, and what to do."""


@dataclass
class Step:
    """One step that runs. It sets `done` when it made something, and `detail` to what it made or found."""

    name: str
    detail: str = ""
    done: bool = False

    def say(self, text: str) -> None:
        """A line of progress within the step."""
        print(f"      {self.name}: {text}", flush=True)

    def made(self, detail: str) -> None:
        self.done, self.detail = True, detail

    def found(self, detail: str) -> None:
        self.detail = detail


@contextmanager
def step(name: str, number: int, total: int) -> Iterator[Step]:
    """Times a step and prints its line when it has ended well."""
    started = time.monotonic()
    running = Step(name)
    yield running
    seconds = time.monotonic() - started
    outcome = "done" if running.done else "ok"
    print(f"[{number}/{total}] {name:<9} {outcome:<5} {seconds:6.1f} s  {running.detail}", flush=True)


def warn(text: str) -> None:
    print(f"      note: {text}", file=sys.stderr, flush=True)
