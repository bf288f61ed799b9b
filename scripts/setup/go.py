"""A Go that can build `runsc`: the machine's own where it is recent enough, else the one that the Go proxy has as a module.

Go publishes its releases as versions of the module `golang.org/toolchain`. From 1.21 on, a Go fetches the one that a go.mod asks
for by itself; an older one (Debian 12 has 1.19) can still download it like any module, which is what `obtain` does.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from pathlib import Path

from scripts.setup import cache, packages, shell
from scripts.setup.report import SetupError, Step

MODULE_DIR = shell.CHECKOUT / "tools" / "runsc"
_FETCHES_NEWER = (1, 21)


def parse_version(text: str) -> tuple[int, ...]:
    """The version in `go version`'s answer: (1, 26, 8); empty where it has none."""
    found = re.search(r"\bgo(\d+(?:\.\d+)*)", text)
    return tuple(int(number) for number in found[1].split(".")) if found else ()


def wanted() -> str:
    """The oldest Go that runsc's `go.mod` accepts: "1.26.3"."""
    found = re.search(r"^go (\d+(?:\.\d+)*)$", (MODULE_DIR / "go.mod").read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise SetupError(f"{MODULE_DIR / 'go.mod'} has no go line.")
    return found[1]


def enough(have: tuple[int, ...], toolchain: str) -> bool:
    """Whether a Go of that version builds runsc; `toolchain` is its `GOTOOLCHAIN`, which may forbid it to fetch a newer one."""
    needed = tuple(int(number) for number in wanted().split("."))
    return have >= needed or (have >= _FETCHES_NEWER and not toolchain.startswith(("local", "path", "go")))


def find() -> str | None:
    """The Go to build with, where there is one already."""
    have = parse_version(shell.output_of(["go", "env", "GOVERSION"], cwd=Path("/")) or "")
    if enough(have, shell.output_of(["go", "env", "GOTOOLCHAIN"], cwd=Path("/")) or ""):
        return "go"
    fetched = _place() / "bin" / "go"
    return str(fetched) if fetched.exists() else None


def obtain(step: Step) -> str:
    """The Go to build with, installed or fetched where there is none. Raises `SetupError` where it can't be."""
    found = find()
    if found is not None:
        return found
    if shutil.which("go") is None and packages.candidate("golang-go"):
        packages.install(["golang-go"], step)
    found = find()
    if found is not None:
        return found
    if shutil.which("go") is None:
        raise SetupError(
            f"runsc is built from source, which needs Go {wanted()} or newer; there is none here, and no golang-go in this "
            "distribution. Install Go as its site describes (go.dev/doc/install), put it in PATH and run `make setup` again."
        )
    step.say(f"fetching Go {wanted()}, because the machine's is older")
    with cache.building(_place()) as made:
        _fetch(made)
    return str(_place() / "bin" / "go")


def _place() -> Path:
    return cache.root() / "go" / wanted()


def sums() -> dict[str, str]:
    """Version of the toolchain module → the hash that its archive has to have."""
    lines = (line.split() for line in (MODULE_DIR / "toolchain.sum").read_text(encoding="ascii").splitlines())
    return {version: sum_ for _, version, sum_ in lines}


def _fetch(into: Path) -> None:
    version = f"v0.0.1-go{wanted()}.linux-amd64"
    with tempfile.TemporaryDirectory(dir=cache.root() / "tmp", ignore_cleanup_errors=True) as scratch:
        # Not into the user's module cache: this Go of theirs would never use it.
        environment = [f"GOMODCACHE={scratch}/modules", "GOFLAGS=-modcacherw", "GOTOOLCHAIN=local"]
        command = ["env", *environment, "go", "mod", "download", "-json", f"golang.org/toolchain@{version}"]
        answer = shell.output_of(command, cwd=Path(scratch))
        if answer is None:
            raise SetupError(
                f"Go {wanted()} could not be fetched with the machine's Go (`{' '.join(command[3:])}` failed). "
                "Install one as Go's site describes (go.dev/doc/install), put it in PATH and run `make setup` again."
            )
        told = json.loads(answer)
        if told.get("Sum") != sums().get(version):
            raise SetupError(
                f"The archive of golang.org/toolchain {version} has the sum {told.get('Sum')}, "
                f"but tools/runsc/toolchain.sum says {sums().get(version)}."
            )
        shutil.copytree(told["Dir"], into, dirs_exist_ok=True, symlinks=True)
    # A module's files have no execute bits.
    for program in [*(into / "bin").iterdir(), *(into / "pkg" / "tool").rglob("*")]:
        if program.is_file():
            program.chmod(0o755)
    into.chmod(0o755)
