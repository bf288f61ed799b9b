"""What a host needs, checked by doing it: `hutch doctor`.

A check that only looks (a file exists, a module is loaded) proves little, so wherever it is cheap the check makes the thing:
a namespace with a link and rules, a writable layer with a bound, a sandbox that runs a program.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from hutch.errors import HutchError
from hutch.host import hardening, kernel, storage
from hutch.host.binaries import agent_path
from hutch.host.cgroups import Cgroups
from hutch.host.names import Names
from hutch.host.network import Networks
from hutch.images import ImageStore
from hutch.isolation import choose, kvm
from hutch.settings import Backend, QemuAccelerator, Settings

SETUP_HINT = "Run `make setup`."
KVM_HINT = "Use a machine with hardware virtualization, or isolation.qemu_accelerator = auto."
HINTS = {
    Backend.GVISOR: SETUP_HINT,
    Backend.QEMU: SETUP_HINT,
    Backend.FIRECRACKER: "Set isolation.firecracker.binary and .jailer to programs of one release.",
}


@dataclass(frozen=True, slots=True)
class Check:
    """One duty of a host, or (not `required`) a setting that is advised. `ok` None: not needed here, or not known; `hint` says
    what to do when it fails."""

    name: str
    ok: bool | None
    detail: str
    hint: str = ""
    required: bool = True


def run(settings: Settings) -> list[Check]:
    """Every check, in the order in which a failure explains the next. Blocks for up to about ten seconds, and with a configured
    Firecracker for as long as its machine may take to start."""
    if os.geteuid() != 0:
        return [Check("root", False, f"this process runs as user {os.geteuid()}", "Run `hutch doctor` as root or with sudo.")]
    with tempfile.TemporaryDirectory(prefix="hutch-doctor-") as name:
        directory = Path(name)
        return [
            Check("root", True, "this process runs as root"),
            _attempt("machine", _machine, "Use Linux on x86-64 or arm64."),
            _attempt("cgroups", _cgroups, "Mount cgroup v2, or v1 with cpu, cpuacct, memory and pids."),
            _attempt("image", lambda: _image(settings), SETUP_HINT),
            _attempt(
                "root file system", lambda: _overlay(settings, directory), "Load the kernel modules overlay, erofs and loop."
            ),
            _attempt(
                "writable layers", lambda: _layers(directory), "Install btrfs-progs or e2fsprogs, and free some disk space."
            ),
            _attempt("network", lambda: _network(directory), "Install nftables and iproute2; load nf_tables and veth."),
            _attempt("agent", lambda: str(agent_path(settings)), SETUP_HINT),
            *_backends(settings, directory),
            *(Check(found.name, found.ok, found.detail, found.hint, required=False) for found in hardening.advice()),
        ]


def _attempt(name: str, check: Callable[[], str], hint: str) -> Check:
    try:
        return Check(name, True, check())
    except HutchError as error:
        return Check(name, False, error.message, hint)
    except OSError as error:
        return Check(name, False, str(error), hint)


def _machine() -> str:
    system = platform.uname()
    if system.system != "Linux" or system.machine not in ("x86_64", "aarch64"):
        raise OSError(f"{system.system} on {system.machine} is not supported")
    return f"Linux {system.release} on {system.machine}, {os.cpu_count()} processors"


def _cgroups() -> str:
    found = Cgroups.detect()
    return f"version {found.version} at {', '.join(sorted({str(root) for root in found.roots.values()}))}"


def _image(settings: Settings) -> str:
    image = ImageStore(settings.image_dir()).resolve(settings.sandbox.default_image)
    return f"{image.name}, {image.size_bytes // 1_000_000} MB"


def _overlay(settings: Settings, directory: Path) -> str:
    image = ImageStore(settings.image_dir()).resolve(settings.sandbox.default_image)
    with contextlib.ExitStack() as stack:
        lower = stack.enter_context(_mounted(directory / "lower"))
        kernel.run(["mount", "-t", "erofs", "-o", "loop,ro", str(image.layers[0].path), str(lower)])
        for name in ("u", "w"):
            (directory / name).mkdir()
        merged = stack.enter_context(_mounted(directory / "merged"))
        # On a tmpfs or ext4 as found here; sandboxes use a writable layer of their own.
        options = f"lowerdir={lower},upperdir={directory / 'u'},workdir={directory / 'w'},volatile"
        kernel.mount("overlay", merged, "overlay", 0, options)
        (merged / "hutch-doctor").write_text("written")
    return "an overlay over the image was mounted and written"


@contextlib.contextmanager
def _mounted(point: Path) -> Iterator[Path]:
    point.mkdir()
    try:
        yield point
    finally:
        kernel.unmount(point)


def _layers(directory: Path) -> str:
    layers = storage.choose(directory / "layers")
    layers.open()
    try:
        layer = layers.create("doctor", storage.MIN_LAYER_BYTES)
        try:
            with (layer / "u" / "filler").open("wb", buffering=0) as file:
                for _ in range(2 * storage.MIN_LAYER_BYTES // 65536):
                    file.write(os.urandom(65536))
                os.fsync(file.fileno())
        except OSError as error:
            return f"{layers.kind}; a layer of {storage.MIN_LAYER_BYTES} bytes refused more ({error.strerror})"
        raise OSError(f"a {layers.kind} layer of {storage.MIN_LAYER_BYTES} bytes took twice as much")
    finally:
        layers.remove("doctor")
        layers.close()


def _network(directory: Path) -> str:
    with ThreadPoolExecutor(1) as executor:
        networks = Networks(Names.of(directory), executor)
        networks.open(None, set())
        try:
            network = networks.make()
            return f"namespace, link and rules for {network.guest_address} were made"
        finally:
            networks.close()


def _backends(settings: Settings, directory: Path) -> list[Check]:
    verdict = kvm.probe()
    wanted = settings.isolation.backend
    # Of KVM alone: whether a whole kernel starts is found out by the backends that use it.
    needed = wanted is Backend.QEMU and settings.isolation.qemu_accelerator is QemuAccelerator.KVM
    ok = True if verdict.usable else (False if needed else None)
    checks = [Check("kvm", ok, verdict.reason if verdict.usable else f"not usable: {verdict.reason}", KVM_HINT if needed else "")]
    stronger = False
    for backend in choose.STRONGEST_FIRST:
        probe = _probed(backend, settings, directory)
        needed = wanted is backend or (wanted is Backend.AUTO and backend is Backend.GVISOR and not stronger)
        stronger = stronger or probe.isolation is not None
        ok = True if probe.isolation is not None else (False if needed else None)
        checks.append(Check(f"isolation {backend.value}", ok, probe.reason, HINTS.get(backend, "")))
    hint = "Set isolation.backend and isolation.minimum to what works."
    return [*checks, _attempt("isolation", lambda: _chosen(settings, directory), hint)]


def _probed(backend: Backend, settings: Settings, directory: Path) -> choose.Probe:
    if backend is not Backend.FIRECRACKER:
        return choose.probe(backend, settings, directory)
    with _place_of_jails(settings, directory) as place:
        return choose.probe(backend, settings, place)


@contextlib.contextmanager
def _place_of_jails(settings: Settings, directory: Path) -> Iterator[Path]:
    """Where machines would be: temporary directories are often mounted without devices, which Firecracker's jail needs."""
    if settings.isolation.firecracker.binary is None or not settings.server.data_dir.is_dir():
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=settings.server.data_dir) as name:
        yield Path(name)


def _chosen(settings: Settings, directory: Path) -> str:
    with _place_of_jails(settings, directory) as place:
        chosen = choose.choose(settings, place)
        shutil.rmtree(place / "runsc", ignore_errors=True)
    return f"{chosen.name} is used (configured: {settings.isolation.backend.value}, minimum: {settings.isolation.minimum.value})"
