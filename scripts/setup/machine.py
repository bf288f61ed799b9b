"""Whether this machine can run sandboxes at all: system, architecture, privilege, and what its kernel has."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from scripts.setup import shell
from scripts.setup.report import SetupError, Step

SUPPORTED = "Debian 12 or 13, or Ubuntu 22.04 or newer, on x86-64, as root or with sudo"
_OLDEST = {"debian": 12.0, "ubuntu": 22.04}
# File systems that sandboxes are made of, each with its use.
_FILE_SYSTEMS = {
    "overlay": "joins a sandbox's own writes with the shared image",
    "erofs": "is the format of images",
    "btrfs": "keeps the writable layers, with quotas and live snapshots",
}


@dataclass(frozen=True)
class System:
    """What `/etc/os-release` says. `like` has the names of its ancestors, itself included."""

    name: str
    like: frozenset[str]
    version: float | None
    codename: str


def parse_os_release(text: str) -> System:
    """A `System` from the text of `/etc/os-release`; missing keys are empty."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line and not line.startswith("#"))
    values = {key.strip(): value.strip().strip("\"'") for key, _, value in pairs}
    name = values.get("ID", "")
    try:
        version = float(values.get("VERSION_ID", ""))
    except ValueError:
        version = None
    return System(name, frozenset([name, *values.get("ID_LIKE", "").split()]), version, values.get("VERSION_CODENAME", ""))


def this_system() -> System:
    try:
        return parse_os_release(Path("/etc/os-release").read_text(encoding="utf-8"))
    except OSError:
        return System("", frozenset(), None, "")


def unsupported(system: System, architecture: str, apt: bool, root: bool) -> list[str]:
    """Why setup can't even start here, one sentence per reason."""
    reasons = []
    if sys.platform != "linux":
        reasons.append(f"The operating system is {sys.platform}, not Linux.")
    elif not apt or not system.like & {"debian", "ubuntu"}:
        reasons.append(f"The system is {system.name or 'unknown'}, without Debian's apt-get.")
    elif system.name in _OLDEST and system.version is not None and system.version < _OLDEST[system.name]:
        reasons.append(f"The system is {system.name} {system.version:g}, older than {_OLDEST[system.name]:g}.")
    if architecture != "x86_64":
        reasons.append(f"The processor is {architecture}, not x86-64.")
    if not root:
        reasons.append("This is not root, and there is no sudo.")
    return reasons


def require_supported() -> None:
    """Raises `SetupError` with every reason why setup can't start."""
    root = os.geteuid() == 0 or shutil.which("sudo") is not None
    reasons = unsupported(this_system(), platform.machine(), shutil.which("apt-get") is not None, root)
    if reasons:
        raise SetupError(f"This machine is not supported. {' '.join(reasons)} Supported: {SUPPORTED}.")


def _as_root(*command: str) -> tuple[bool, str]:
    words = shell.privileged(command)
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path}
        )
    except OSError as error:
        return False, f"{words[0]}: {error.strerror}"
    return done.returncode == 0, (done.stderr or done.stdout).strip()


def _has_file_system(name: str) -> bool:
    return any(line.split()[-1:] == [name] for line in Path("/proc/filesystems").read_text(encoding="ascii").splitlines())


def kernel_problems() -> list[str]:
    """What the running kernel lacks, one sentence each: found out by using it, not by reading its configuration."""
    problems = []
    for name, use in _FILE_SYSTEMS.items():
        if not _has_file_system(name):
            _, said = _as_root("modprobe", name)
            if not _has_file_system(name):
                problems.append(
                    f"The kernel has no {name} file system, which {use} (modprobe {name}: {said or 'no such module'})."
                )
    if not Path("/dev/loop-control").exists():
        _, said = _as_root("modprobe", "loop")
        if not Path("/dev/loop-control").exists():
            problems.append(f"There is no /dev/loop-control, so images can't be mounted (modprobe loop: {said or 'no effect'}).")
    # In a network namespace of its own: nothing of the machine's is touched, and nothing is left behind.
    works, said = _as_root("unshare", "--net", "ip", "link", "add", "hutch0", "type", "veth", "peer", "name", "hutch1")
    if not works:
        problems.append(f"The kernel makes no veth pair in a network namespace, the sandboxes' only link ({said}).")
    works, said = _as_root(
        "unshare", "--net", "nft", "add table inet hutch; add chain inet hutch probe { type nat hook prerouting priority -100; }"
    )
    if not works:
        problems.append(f"nftables with NAT does not work, and no sandbox may run without packet rules ({said}).")
    return problems


def ensure(step: Step) -> None:
    """Raises `SetupError` with everything the kernel lacks."""
    problems = kernel_problems()
    if problems:
        raise SetupError("This kernel can't run sandboxes. " + " ".join(problems))
    step.found(f"{platform.release()}: overlay, erofs, btrfs, loop, veth, nftables")
