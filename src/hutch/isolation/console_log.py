"""What a machine's console and its monitor say, as a file with a bound."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
from pathlib import Path
from typing import IO

MAX_CONSOLE_BYTES = 256 * 1024
"""What a guest says after that is read and dropped: its console must not fill the host's disk."""
DROPPED_PAUSE_S = 0.05
"""Between reads of what is dropped, by a thread that nobody waits for: the pipe is full meanwhile."""
_NO_START = re.compile(r"hutch-agent: this machine can't start: ([ -~]{1,300})")
_PANIC = re.compile(r"Kernel panic - not syncing: ([ -~]{1,200})")


def reason(file: Path) -> str:
    """Why a machine ended, if its kernel or its agent said so: a clause, or nothing."""
    with contextlib.suppress(OSError):
        console = file.read_text(errors="replace")
        if panic := _PANIC.search(console):
            return f"its kernel panicked ({panic[1].strip()})"
        if failure := _NO_START.search(console):
            return failure[1].strip()
    return ""


def keep(child: subprocess.Popen[bytes], source: IO[bytes], file: Path) -> None:
    """Read what a machine and its monitor say until they end, keep as much as there is room for, and bury the child."""
    with source:
        room = MAX_CONSOLE_BYTES
        sink: IO[bytes] | None = None
        with contextlib.suppress(OSError):
            sink = file.open("wb", buffering=0)
        while block := os.read(source.fileno(), 16 * 1024):
            if room <= 0:
                # A guest that goes on without end waits for itself: each byte would wake the host.
                time.sleep(DROPPED_PAUSE_S)
            if sink is not None and room > 0:
                # A full disk of the host, or a directory that is being removed, ends the log and not the machine.
                with contextlib.suppress(OSError):
                    sink.write(block[:room])
                room -= len(block)
        if sink is not None:
            sink.close()
    child.wait()
