"""What wrk, the load generator, prints; and the CPU time of the process that it loads."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from scripts.setup import packages
from scripts.setup.report import Step

TICKS = os.sysconf("SC_CLK_TCK")
_MIB = {"B": 1 / (1 << 20), "KB": 1 / 1024, "MB": 1.0, "GB": 1024.0}


@dataclass(frozen=True, slots=True)
class Load:
    """`cpu_s` is what the process used meanwhile."""

    requests: int
    errors: int
    per_second: float
    mib_per_second: float
    p50_ms: float
    p99_ms: float
    cpu_s: float

    @property
    def per_cpu_second(self) -> float:
        return self.requests / max(self.cpu_s, 1 / TICKS)


def tools(*wanted: tuple[str, str]) -> None:
    """Install what is missing of wrk and of these programs, each with its package."""
    missing = [package for program, package in (("wrk", "wrk"), *wanted) if shutil.which(program) is None]
    if missing:
        packages.install(missing, Step("bench"))


def cpu_s(pid: int) -> float:
    """CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def read(text: str, used_cpu_s: float) -> Load:
    """What wrk has printed with `--latency`."""
    (requests,) = re.findall(r"(\d+) requests in", text)
    (rate,) = re.findall(r"Requests/sec:\s+([\d.]+)", text)
    ((size, unit),) = re.findall(r"Transfer/sec:\s+([\d.]+)(\w+)", text)
    errors = sum(int(number) for number in re.findall(r"(?:connect|read|write|timeout|responses:) (\d+)", text))
    latency = {percent: _ms(value) for percent, value in re.findall(r"(50|99)%\s+([\d.]+\w+)", text)}
    return Load(int(requests), errors, float(rate), float(size) * _MIB[unit], latency["50"], latency["99"], used_cpu_s)


def _ms(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"us": 0.001, "ms": 1, "s": 1000}[unit]
