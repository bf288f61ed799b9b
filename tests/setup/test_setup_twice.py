"""Setup as a whole: on a machine that is set up it makes nothing, quickly."""

from __future__ import annotations

import os
import re
import resource
import subprocess
from pathlib import Path

import pytest

from scripts.setup import cache, native, shell
from scripts.setup.__main__ import STEPS

RUN = shell.CHECKOUT / "scripts" / "setup" / "run"
LINKS = (".hutch/bin/runsc", ".hutch/images", ".hutch/guest", ".hutch/node", *(program.link for program in native.PROGRAMS))


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [RUN, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def used_s() -> float:
    """What children have used of the processor: how busy the machine is with other things decides no test."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_a_second_setup_makes_nothing_and_takes_under_three_seconds(tmp_path: Path) -> None:
    # Whatever would install or build says so and fails.
    for name in ("apt-get", "cargo", "mmdebstrap", "mkfs.erofs", "npm"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {name} was called\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    assert run().returncode == 0
    links = {name: (shell.CHECKOUT / name).readlink() for name in LINKS}
    before = used_s()
    second = run(PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    seconds = used_s() - before
    assert second.returncode == 0, second.stderr
    lines = re.findall(r"^\[\d+/\d+\] (\S+) +(\S+)", second.stdout, re.MULTILINE)
    assert lines == [(name, "ok") for name in STEPS]
    assert seconds < 3
    assert {name: (shell.CHECKOUT / name).readlink() for name in LINKS} == links


def test_an_unknown_step_is_refused_with_the_names_of_all() -> None:
    done = run("frobnicate")
    assert done.returncode == 2
    assert "frobnicate" in done.stderr
    assert "image-lock" in done.stderr


def test_what_is_linked_lies_outside_the_checkout() -> None:
    for name in LINKS:
        target = (shell.CHECKOUT / name).resolve()
        assert target.is_relative_to(cache.root().resolve())
        assert target.exists()


def test_the_agent_is_static_and_a_distributions_program_is_not() -> None:
    assert native.is_static((shell.CHECKOUT / native.AGENT.link).read_bytes())
    assert not native.is_static(Path("/bin/ls").read_bytes())


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", b"\x7fELF\x02\x01", b"\x7fELF\x01\x01" + bytes(100)])
def test_what_is_no_program_is_not_static(content: bytes) -> None:
    assert not native.is_static(content)
