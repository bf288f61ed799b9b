"""Which backend this machine runs: the configured one, or the strongest that a real probe boots.

`auto` never falls below the operator's minimum, and a named backend is never replaced by another one. It takes QEMU only with
KVM: emulated guests are ten to thirty times slower than the same programs in gVisor, and what they attack first, the emulator,
was not made to keep anybody out. Whoever wants that says so. While a backend lacks something that others have (`LACKING`), `auto`
takes it only where the minimum leaves nothing else: what a host could do yesterday it should do today.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hutch.host.binaries import guest_path
from hutch.host.cgroups import Cgroups
from hutch.isolation.gvisor import Gvisor
from hutch.isolation.protocol import Isolation
from hutch.isolation.qemu import Guest, Qemu
from hutch.isolation.qemu_command import Accelerator
from hutch.isolation.qemu_probe import kvm_verdict, verdict
from hutch.isolation.qemu_template import Templates
from hutch.settings import Backend, MinimumIsolation, QemuAccelerator, Settings

STRENGTH = {MinimumIsolation.GVISOR: 0, MinimumIsolation.QEMU: 1, MinimumIsolation.FIRECRACKER: 2}
STRONGEST_FIRST = (Backend.FIRECRACKER, Backend.QEMU, Backend.GVISOR)
LACKING = frozenset({Backend.QEMU})
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
    """Start something real under a backend. Blocks; takes about half a second, for an emulated machine some seconds."""
    if backend is Backend.FIRECRACKER:
        return Probe(backend, None, NOT_IN_THIS_RELEASE)
    if backend is Backend.QEMU:
        return _probe_qemu(settings, directory)
    try:
        isolation = Gvisor(settings.isolation.runsc_path(), directory, Cgroups.detect())
        isolation.probe()
    except OSError as error:
        return Probe(backend, None, str(error))
    return Probe(backend, isolation, "a program ran in a sandbox")


def _probe_qemu(settings: Settings, directory: Path) -> Probe:
    """KVM where it boots a machine, else emulation where that may be used."""
    wanted = settings.isolation.qemu_accelerator
    try:
        qemu = Qemu(
            Guest(guest_path()), directory, Cgroups.detect(), Accelerator.TCG, settings.isolation.qemu, templates=Templates()
        )
        qemu.guest.require()
        kvm = kvm_verdict(qemu) if wanted is not QemuAccelerator.TCG else None
        if kvm is not None and kvm.usable:
            return Probe(Backend.QEMU, qemu.using(Accelerator.KVM), f"with KVM: {kvm.reason}")
        if kvm is not None and wanted is QemuAccelerator.KVM:
            return Probe(Backend.QEMU, None, kvm.reason)
        if settings.isolation.backend is not Backend.QEMU:
            return Probe(
                Backend.QEMU, None, f"{kvm.reason if kvm else 'KVM is switched off'}; nobody named `qemu` to have it emulated"
            )
        emulated = verdict(qemu)
    except OSError as error:
        return Probe(Backend.QEMU, None, str(error))
    reason = f"emulated: {emulated.reason}{f'; {kvm.reason}' if kvm else ''}"
    return Probe(Backend.QEMU, qemu if emulated.usable else None, reason)


def choose(settings: Settings, directory: Path) -> Isolation:
    """The backend to use. Raises `NoIsolation`."""
    wanted = settings.isolation.backend
    minimum = settings.isolation.minimum
    # The order is kept among those that lack nothing, and among the others.
    candidates = sorted(STRONGEST_FIRST, key=LACKING.__contains__) if wanted is Backend.AUTO else [wanted]
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
