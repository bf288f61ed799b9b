"""Samples, their percentiles, and what was aimed at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Series:
    """Percentiles of `n` samples in `unit`; `failures` were not measured and not tried again."""

    unit: str
    n: int
    failures: int
    p50: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, samples: Sequence[float], unit: str = "ms", failures: int = 0) -> Series:
        if not samples:
            return cls(unit, 0, failures, *(float("nan"),) * 4)
        ordered = sorted(samples)
        return cls(unit, len(ordered), failures, *(_rank(ordered, percent) for percent in (50, 95, 99, 100)))


def _rank(ordered: Sequence[float], percent: int) -> float:
    """The nearest-rank percentile: a value that was measured, never one between two."""
    return ordered[max(0, (len(ordered) * percent + 99) // 100 - 1)]


@dataclass(frozen=True, slots=True)
class Target:
    """One sentence of the specification, what was measured for it, and whether it is met."""

    what: str
    measured: float
    met: bool


def at_most(what: str, measured: float, limit: float) -> Target:
    return Target(f"{what} ≤ {limit:g}", round(measured, 3), measured <= limit)


def at_least(what: str, measured: float, limit: float) -> Target:
    return Target(f"{what} ≥ {limit:g}", round(measured, 3), measured >= limit)


@dataclass(slots=True)
class Result:
    """What one benchmark found. `ratio` is ours over the peer's p50: below 1 is better for times, above 1 for rates."""

    id: str
    what: str
    ours: Series
    peer: Series | None = None
    peer_is: str = ""
    targets: list[Target] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        return self.ours.p50 / self.peer.p50 if self.peer is not None and self.peer.p50 else None

    def as_json(self) -> dict[str, Any]:
        ratio = self.ratio
        return asdict(self) | {"ratio": round(ratio, 3) if ratio is not None else None}
