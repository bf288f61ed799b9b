"""Firecracker's two programs: are they there, of a release that is known, and such that the jailer can start them?"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from hutch.host import kernel
from hutch.isolation.firecracker_config import OLDEST, Version

ASK_TIMEOUT_S = 30.0
_VERSION = re.compile(r"^(?:Firecracker|Jailer) v?(\d{1,5})\.(\d{1,5})\.(\d{1,5})", re.MULTILINE)
_ELF_64_LITTLE = b"\x7fELF\x02\x01"
_PT_INTERP = 3
_MAX_PROGRAM_HEADERS = 128


class NotUsable(OSError):
    """A program can't be used; the text says why, and what would help."""


def find(name: str | Path) -> Path:
    """A program by its path, or by its name in the system's directories. Raises `NotUsable`."""
    if Path(name).is_file() and os.access(name, os.X_OK):
        return Path(name).resolve()
    found = shutil.which(name, path=kernel.command_environment()["PATH"])
    if found is None:
        raise NotUsable(f"{name} is no program that can be run: it does not exist there, or is not executable")
    return Path(found).resolve()


def version(program: Path) -> Version:
    """What a program says of itself. Raises `NotUsable`."""
    try:
        said = kernel.run([str(program), "--version"], timeout_s=ASK_TIMEOUT_S)
    except OSError as error:
        raise NotUsable(f"{program} does not tell its version: {error}") from error
    found = _VERSION.search(said)
    if found is None:
        raise NotUsable(f"{program} told its version as {said.strip()[:200]!r}, which is none of Firecracker")
    return Version(int(found[1]), int(found[2]), int(found[3]))


def checked(binary: Path, jailer: Path | None) -> Version:
    """Firecracker's version, after a look at everything that its start would stumble over. Raises `NotUsable`."""
    have = version(binary)
    if have < OLDEST:
        raise NotUsable(f"{binary} is Firecracker {have}; the oldest that can be used is {OLDEST}")
    if jailer is None:
        return have
    if "firecracker" not in binary.name:
        raise NotUsable(f"The jailer starts no program without `firecracker` in its name, as {binary} is")
    static = is_static(binary)
    if static is None:
        raise NotUsable(f"{binary} is no ELF program, so it can't start in a jail")
    if not static:
        raise NotUsable(
            f"{binary} is linked dynamically, so it can't start in a jail, and such builds have no filter of system calls. "
            "Use a build for musl"
        )
    theirs = version(jailer)
    if (theirs.major, theirs.minor) != (have.major, have.minor):
        raise NotUsable(f"{jailer} is of release {theirs} and {binary} of {have}; they have to be of the same")
    return have


def is_static(program: Path) -> bool | None:
    """Whether an ELF program needs no dynamic loader; None for a file that is no such program."""
    with program.open("rb") as file:
        header = file.read(64)
        if not header.startswith(_ELF_64_LITTLE) or len(header) < 64:
            return None
        table = int.from_bytes(header[32:40], "little")
        entry, count = int.from_bytes(header[54:56], "little"), int.from_bytes(header[56:58], "little")
        if entry < 4 or not 0 < count <= _MAX_PROGRAM_HEADERS:
            return None
        file.seek(table)
        headers = file.read(entry * count)
    return all(int.from_bytes(headers[entry * number :][:4], "little") != _PT_INTERP for number in range(count))


def require_root() -> None:
    """Raises `NotUsable` for anybody but root, whom the jailer needs."""
    if os.geteuid() != 0:
        raise NotUsable("Firecracker's jailer needs root")
