"""Makes the stand-ins of `fake_firecracker` into programs that the driver can be given."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.isolation import fake_firecracker as fake
from tests.wire.agent import agent_binary

STUB = r"""
#include <stdio.h>
int main(void) { printf("Firecracker v%s\n\n", VERSION); return 0; }
"""


def compiled(directory: Path, name: str = "firecracker", version: str = fake.VERSION, *options: str) -> Path:
    """An ELF program that tells a version and does nothing else; static unless `options` say otherwise."""
    directory.mkdir(parents=True, exist_ok=True)
    source, program = directory / f"{name}.c", directory / name
    source.write_text(STUB)
    how = options or ("-static",)
    subprocess.run(["cc", *how, f'-DVERSION="{version}"', "-o", program, source], check=True)
    return program


def script(file: Path, role: str, **behaviour: Any) -> Path:
    """The stand-in in that role, behaving like this."""
    scratch = file.parent / "guests"
    scratch.mkdir(parents=True, exist_ok=True)
    variables = {
        fake.AGENT_VARIABLE: str(agent_binary().resolve()),
        fake.BEHAVIOUR_VARIABLE: json.dumps(behaviour),
        fake.SCRATCH_VARIABLE: str(scratch),
    }
    settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
    command = f"{shlex.quote(sys.executable)} {shlex.quote(str(Path(fake.__file__)))} {role}"
    file.write_text(f'#!/bin/sh\n{settings} exec {command} "$@"\n')
    file.chmod(0o755)
    return file
