"""Runs the programs that do the work; their output goes to a log, and its end to the user when one fails."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from scripts.setup.report import SetupError

CHECKOUT = Path(__file__).resolve().parents[2]
HUTCH_DIR = CHECKOUT / ".hutch"
LOG_DIR = HUTCH_DIR / "log"
# A program run by `logged` that starts a line with this talks to the user.
PROGRESS = "== "
_TAIL_LINES = 30
_SHOWN_CHARACTERS = 160


def output_of(command: Sequence[str | Path], *, cwd: Path = CHECKOUT) -> str | None:
    """What `command` prints, without the surrounding white space; None where it is not installed or fails."""
    try:
        done = subprocess.run(
            [str(part) for part in command], cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def logged(
    command: Sequence[str | Path],
    log: str,
    *,
    cwd: Path = CHECKOUT,
    env: Mapping[str, str] | None = None,
    say: Callable[[str], None] | None = None,
) -> None:
    """Run `command`, everything it prints appended to `.hutch/log/<log>.log`. Raises `SetupError` with the end of that."""
    LOG_DIR.mkdir(parents=True, exist_ok=True)
    path = LOG_DIR / f"{log}.log"
    words = [str(part) for part in command]
    tail: list[str] = []
    with path.open("a", encoding="utf-8", errors="replace") as sink:
        sink.write(f"$ {' '.join(words)}\n")
        sink.flush()
        try:
            process = subprocess.Popen(
                words,
                cwd=cwd,
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
        except OSError as error:
            raise SetupError(f"{words[0]} can't be started: {error.strerror}.") from error
        assert process.stdout is not None
        with process:
            for line in process.stdout:
                sink.write(line)
                tail = [*tail[1 - _TAIL_LINES :], line]
                if say is not None and line.startswith(PROGRESS):
                    say(line.removeprefix(PROGRESS).rstrip())
    if process.returncode != 0:
        shown = " ".join(words)
        shown = shown if len(shown) <= _SHOWN_CHARACTERS else f"{shown[:_SHOWN_CHARACTERS]} …"
        raise SetupError(f"`{shown}` failed ({process.returncode}); the whole log is {path}. It ended with:\n{''.join(tail)}")


def privileged(command: Sequence[str | Path]) -> list[str]:
    """`command` so that it runs as root. Raises `SetupError` where that is not possible."""
    words = [str(part) for part in command]
    if os.geteuid() == 0:
        return words
    if shutil.which("sudo") is None:
        raise SetupError("Setup needs root, and there is no sudo here. Run `make setup` as root, or install sudo.")
    return ["sudo", *words]
