"""A real PostgreSQL for tests: Debian's binaries, a temporary cluster, a Unix socket, gone at the end."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

OWNERS = ("postgres", "nobody")
"""PostgreSQL refuses to run as root."""


def binaries() -> Path:
    """The directory of the newest PostgreSQL here; fails the test that needs it where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if not found:
        pytest.fail("PostgreSQL is not installed, and storage is tested on it. Run `make setup`, or: apt-get install postgresql")
    return found[-1].parent


def _demotion() -> dict[str, object]:
    if os.geteuid() != 0:
        return {}
    for name in OWNERS:
        try:
            owner = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
    raise LookupError(f"none of the users {OWNERS} exists")


@contextmanager
def cluster() -> Iterator[str]:
    """The URL of an empty database `hutch`; the server ends with the context."""
    directory = Path(tempfile.mkdtemp(prefix="hutch-postgres-"))
    demotion = _demotion()
    if demotion:
        os.chown(directory, int(str(demotion["user"])), int(str(demotion["group"])))
    data, programs = directory / "data", binaries()

    def run(*command: str) -> None:
        subprocess.run(
            command, check=True, capture_output=True, cwd=directory, env={"LC_ALL": "C.UTF-8", "PATH": os.defpath}, **demotion
        )  # type: ignore[call-overload]

    try:
        run(
            str(programs / "initdb"),
            "-D",
            str(data),
            "-U",
            "hutch",
            "--auth=trust",
            "--no-sync",
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
        )
        options = f"-k {directory} -c listen_addresses='' -c fsync=off -c full_page_writes=off -c max_connections=50"
        run(str(programs / "pg_ctl"), "-D", str(data), "-w", "-o", options, "-l", str(directory / "log"), "start")
        try:
            run(str(programs / "createdb"), "-h", str(directory), "-U", "hutch", "hutch")
            yield f"postgresql://hutch@/hutch?host={directory}"
        finally:
            run(str(programs / "pg_ctl"), "-D", str(data), "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(directory, ignore_errors=True)
