"""Which backend this machine runs: the configured one, or the strongest that a real probe boots.

`auto` never falls below the operator's minimum, and a named backend is never replaced by another one. It takes Firecracker where
that is configured, else QEMU with KVM, else gVisor. It never emulates: emulated guests are ten to thirty times slower than the
same programs in gVisor, and what they attack first, the emulator, was not made to keep anybody out. Whoever wants that says so.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hutch.host.binaries import guest_path
from hutch.host.cgroups import Cgroups
from hutch.isolation.backends import Backends
from hutch.isolation.firecracker import Firecracker
from hutch.isolation.gvisor import Gvisor
from hutch.isolation.protocol import Isolation
from hutch.isolation.qemu import Guest, Qemu
from hutch.isolation.qemu_command import Accelerator
from hutch.isolation.qemu_probe import kvm_verdict, verdict
from hutch.isolation.qemu_template import Templates
from hutch.settings import Backend, MinimumIsolation, QemuAccelerator, Settings

log = logging.getLogger(__name__)

STRENGTH = {MinimumIsolation.GVISOR: 0, MinimumIsolation.QEMU: 1, MinimumIsolation.FIRECRACKER: 2}
STRONGEST_FIRST = (Backend.FIRECRACKER, Backend.QEMU, Backend.GVISOR)


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
        return _probe_firecracker(settings, directory)
    if backend is Backend.QEMU:
        return _probe_qemu(settings, directory)
    try:
        isolation = Gvisor(settings.isolation.runsc_path(), directory, Cgroups.detect())
        isolation.probe()
    except OSError as error:
        return Probe(backend, None, str(error))
    return Probe(backend, isolation, "a program ran in a sandbox")


def _probe_firecracker(settings: Settings, directory: Path) -> Probe:
    try:
        found = Firecracker.configured(settings, directory, Cgroups.detect())
        found.probe()
    except OSError as error:
        return Probe(Backend.FIRECRACKER, None, str(error))
    return Probe(Backend.FIRECRACKER, found, "a machine booted and its agent answered")


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
        if settings.isolation.backend is not Backend.QEMU and MinimumIsolation.QEMU not in settings.isolation.also:
            return Probe(
                Backend.QEMU, None, f"{kvm.reason if kvm else 'KVM is switched off'}; nobody named `qemu` to have it emulated"
            )
        emulated = verdict(qemu)
    except OSError as error:
        return Probe(Backend.QEMU, None, str(error))
    reason = f"emulated: {emulated.reason}{f'; {kvm.reason}' if kvm else ''}"
    return Probe(Backend.QEMU, qemu if emulated.usable else None, reason)


def backends(settings: Settings, directory: Path) -> Backends:
    """The backend to use, and those that a sandbox may name beside it. Raises `NoIsolation` where there is not even the first."""
    default = choose(settings, directory)
    others, refused = [], {}
    for name in dict.fromkeys(settings.isolation.also):
        if name.value == default.name:
            continue
        if STRENGTH[name] < STRENGTH[settings.isolation.minimum]:
            refused[name.value] = f"it is weaker than isolation.minimum ({settings.isolation.minimum.value})"
            continue
        found = probe(Backend(name.value), settings, directory)
        if found.isolation is None:
            log.warning("no sandbox can be created under %s: %s", name.value, found.reason)
            refused[name.value] = found.reason
        else:
            others.append(found.isolation)
    return Backends(default, tuple(others), refused)


def converting(settings: Settings, directory: Path, backends: Backends) -> Callable[[], Qemu]:
    """The virtual machines that convert files: those of a backend of the host, else others, emulated where KVM does not work.
    Nothing is looked for before it is asked for. What is returned blocks, and raises `OSError` with what is missing."""

    @functools.cache
    def found() -> Qemu:
        if "qemu" in backends:
            backend = backends["qemu"]
            assert isinstance(backend, Qemu)
            return backend
        qemu = Qemu(Guest(guest_path()), directory, backends.cgroups, Accelerator.TCG, settings.isolation.qemu)
        qemu.require()
        if settings.isolation.qemu_accelerator is QemuAccelerator.TCG:
            return qemu
        kvm = kvm_verdict(qemu)
        if not kvm.usable and settings.isolation.qemu_accelerator is QemuAccelerator.KVM:
            raise OSError(kvm.reason)
        return qemu.using(Accelerator.KVM) if kvm.usable else qemu

    return found


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
        # Those that sandboxes may name may be emulated.
        if found.isolation is not None and not (wanted is Backend.AUTO and _emulates(found.isolation)):
            return found.isolation
        reasons.append(f"{backend.value}: {found.reason}")
    raise NoIsolation("No isolation backend can be used. " + "; ".join(reasons) + ".")


def _emulates(isolation: Isolation) -> bool:
    return isinstance(isolation, Qemu) and isolation.accelerator is Accelerator.TCG
