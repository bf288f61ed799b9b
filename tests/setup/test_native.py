"""The native programs: what they are built from, and that they are what they should be."""

from __future__ import annotations

import subprocess
import sys
import tomllib

import pytest

from scripts.setup import native, shell

CRATES = shell.CHECKOUT / "crates"


def needed(crate: str) -> set[str]:
    """The directories of the crates of this workspace that a crate depends on, itself included."""
    manifest = tomllib.loads((CRATES / crate / "Cargo.toml").read_text(encoding="utf-8"))
    own = {name.removeprefix("hutch-") for name in manifest.get("dependencies", {}) if name.startswith("hutch-")}
    return {crate}.union(*(needed(other) for other in own))


@pytest.mark.parametrize("program", native.PROGRAMS, ids=lambda program: program.name)
def test_a_program_is_built_again_when_anything_that_it_depends_on_changes(program: native.Program) -> None:
    directory = {path.parent.name for path in CRATES.glob("*/Cargo.toml") if f'name = "{program.package}"' in path.read_text()}
    assert len(directory) == 1
    assert set(program.crates) == needed(directory.pop())
    watched = native.sources(program)
    assert all(path.is_file() for path in watched)
    assert {path.relative_to(CRATES).parts[0] for path in watched if CRATES in path.parents} == set(program.crates)


def test_no_two_programs_share_a_place() -> None:
    for attribute in ("name", "package", "link", "built"):
        assert len({getattr(program, attribute) for program in native.PROGRAMS}) == len(native.PROGRAMS)


def test_the_engine_is_a_module_for_any_python_and_links_to_none() -> None:
    module = (shell.CHECKOUT / native.ENGINE.link).read_bytes()
    assert b"libpython" not in module
    script = "from hutch.egress import hutch_native; print(hutch_native.compile_policy(b'\"deny-all\"', None, 'tenant', b'{}'))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert '"mode":"deny-all"' in done.stdout
