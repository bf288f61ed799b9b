"""What comes from the distribution."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from scripts.setup import shell
from scripts.setup.report import SetupError, Step

# Program or file that shows a package is there → the package. Looked up in PATH and in root's directories.
PROGRAMS = {
    "mmdebstrap": "mmdebstrap",
    "mkfs.erofs": "erofs-utils",
    "mkfs.btrfs": "btrfs-progs",
    "mkfs.ext4": "e2fsprogs",
    # Virtual machines with a kernel of their own.
    "qemu-system-x86_64": "qemu-system-x86",
    "nft": "nftables",
    "ip": "iproute2",
    "modprobe": "kmod",
    "losetup": "mount",
    "cc": "gcc",
    "/usr/share/keyrings/debian-archive-keyring.gpg": "debian-archive-keyring",
    "/etc/ssl/certs/ca-certificates.crt": "ca-certificates",
    # The agent is linked statically.
    "/usr/lib/x86_64-linux-gnu/libc.a": "libc6-dev",
}
_SEARCH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])


def there(program: str) -> bool:
    """Whether a program (or, with a leading slash, a file) exists."""
    return Path(program).exists() if program.startswith("/") else shutil.which(program, path=_SEARCH) is not None


def ensure(step: Step) -> None:
    """Install what is missing of `PROGRAMS`."""
    missing = sorted({package for program, package in PROGRAMS.items() if not there(program)})
    if not missing:
        step.found("nothing missing")
        return
    install(missing, step)
    still = [program for program in PROGRAMS if not there(program)]
    if still:
        raise SetupError(f"Installed {', '.join(missing)}, and still there is no {', '.join(still)}.")
    step.made(f"installed {', '.join(missing)}")


def install(names: Iterable[str], step: Step) -> None:
    """Install packages by name. Raises `SetupError` with what to type where that fails."""
    wanted = list(names)
    step.say(f"installing {', '.join(wanted)}")
    base = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y"]
    try:
        shell.logged(shell.privileged([*base, "update"]), "packages")
        shell.logged(shell.privileged([*base, "install", "--no-install-recommends", *wanted]), "packages")
    except SetupError as error:
        raise SetupError(f"{error}\nInstall by hand what it could not: apt-get install {' '.join(wanted)}") from error


def candidate(name: str) -> tuple[int, ...] | None:
    """The version of package `name` that apt would install, as numbers: (1, 85, 0); None where it has none."""
    done = subprocess.run(
        ["apt-cache", "policy", name], capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"}
    )
    return parse_candidate(done.stdout)


def parse_candidate(policy: str) -> tuple[int, ...] | None:
    """The candidate in `apt-cache policy`'s answer: epoch and Debian revision dropped."""
    found = re.search(r"^ +Candidate: (?:\d+:)?([0-9]+(?:\.[0-9]+)*)", policy, re.MULTILINE)
    return tuple(int(number) for number in found[1].split(".")) if found else None
