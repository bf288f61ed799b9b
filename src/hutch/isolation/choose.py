"""Which backend this machine runs: the configured one, or the strongest that a real probe boots.

`auto` never falls below the operator's minimum, and a named backend is never replaced by another one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hutch.host.cgroups import Cgroups
from hutch.isolation.gvisor import Gvisor
from hutch.isolation.protocol import Isolation
from hutch.settings import Backend, MinimumIsolation, Settings

STRENGTH = {MinimumIsolation.GVISOR: 0, MinimumIsolation.QEMU: 1, MinimumIsolation.FIRECRACKER: 2}
STRONGEST_FIRST = (Backend.FIRECRACKER, Backend.QEMU, Backend.GVISOR)
NOT_IN_THIS_RELEASE = "this release has no such backend yet"


class NoIsolation(OSError):
    """No backend may run here; the text says why, one reason per backend."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What a probe of one backend found. `isolation` is None when it can't be used, `reason` says why."""

    backend: Backend
    isolation: Isolation | None
    reason: str


def probe(backend: Backend, settings: Settings, directory: Path) -> Probe:
    """Start something real under a backend. Blocks; takes about half a second."""
    if backend is not Backend.GVISOR:
        return Probe(backend, None, NOT_IN_THIS_RELEASE)
    try:
        isolation = Gvisor(settings.isolation.runsc_path(), directory, Cgroups.detect())
        isolation.probe()
    except OSError as error:
        return Probe(backend, None, str(error))
    return Probe(backend, isolation, "a program ran in a sandbox")


def choose(settings: Settings, directory: Path) -> Isolation:
    """The backend to use. Raises `NoIsolation`."""
    wanted = settings.isolation.backend
    minimum = settings.isolation.minimum
    candidates = STRONGEST_FIRST if wanted is Backend.AUTO else (wanted,)
    reasons = []
    for backend in candidates:
        if STRENGTH[MinimumIsolation(backend.value)] < STRENGTH[minimum]:
            reasons.append(f"{backend.value}: weaker than isolation.minimum ({minimum.value})")
            continue
        found = probe(backend, settings, directory)
        if found.isolation is not None:
            return found.isolation
        reasons.append(f"{backend.value}: {found.reason}")
    raise NoIsolation("No isolation backend can be used. " + "; ".join(reasons) + ".")
