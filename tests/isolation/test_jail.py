"""The jail: nothing of the host but what is named, and nothing of it is left."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from hutch.host import kernel
from hutch.isolation import jail

pytestmark = pytest.mark.root


def said(root: Path, script: str, *files: Path, code: int = 0) -> list[str]:
    """What a shell in a jail prints."""
    output, end = os.pipe()
    with open(output) as told:
        try:
            child = jail.start(root, ["sh", "-c", script], cgroups=(), files=files, descriptors=(), output=end)
        finally:
            os.close(end)
        lines = told.read().splitlines()
    assert child.wait(10) == code, lines
    return lines


@pytest.fixture
def root(tmp_path: Path) -> Path:
    place = tmp_path / "root"
    place.mkdir()
    return place


def test_the_host_is_not_there(root: Path) -> None:
    own = Path(__file__)
    seen = said(root, f"ls -1 /; echo -; ls -d /proc/[0-9]* | wc -l; test -e {own} || echo no; test -e /dev/null || echo none")
    assert set(seen[: seen.index("-")]) <= {"bin", "lib", "lib32", "lib64", "libx32", "proc", "sbin", "usr"}
    # The shell, and what it starts to count.
    assert int(seen[seen.index("-") + 1]) <= 3
    assert seen[-2:] == ["no", "none"]


def test_nothing_in_it_can_be_written(root: Path) -> None:
    refused = said(root, "for place in / /usr /usr/bin /usr/lib; do touch $place/x 2>&1; done", code=1)
    assert ["Read-only file system" in line for line in refused] == [True] * 4


def test_what_is_named_is_there_and_stays_what_it_is(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "program"
    file.write_text("#!/bin/sh\necho ran\n")
    file.chmod(0o755)
    assert said(root, f"{file}; echo gone >/dev/null && echo device", file, Path("/dev/null")) == ["ran", "device"]


def test_it_is_seen_and_kept_by_nobody_else(root: Path) -> None:
    parent = os.fspath(root.parent)
    said(root, "true")
    # Other tests mount things of their own meanwhile.
    assert [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if parent in line] == []
    assert list(root.iterdir()) == []
    assert kernel.mounts_below(root) == []


def test_a_cgroup_that_is_not_there_ends_it(root: Path, tmp_path: Path) -> None:
    started: list[subprocess.Popen[bytes]] = []
    with pytest.raises(FileNotFoundError), open(os.devnull, "wb") as nothing:
        started.append(jail.start(root, ["true"], cgroups=[tmp_path / "none"], files=(), descriptors=(), output=nothing.fileno()))
    assert started == []


def test_what_can_not_be_started_is_told(root: Path) -> None:
    (line,) = said(root, "exec /nothing", code=127)
    assert "/nothing" in line
