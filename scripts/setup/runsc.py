"""gVisor's `runsc`, built from its Go module: the version in `tools/runsc/go.mod`, every source checked through `go.sum`."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from scripts.setup import cache, go, shell
from scripts.setup.report import SetupError, Step


def gvisor_version() -> str:
    found = re.search(r"^require gvisor\.dev/gvisor (\S+)$", (go.MODULE_DIR / "go.mod").read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise SetupError(f"{go.MODULE_DIR / 'go.mod'} requires no gvisor.dev/gvisor.")
    return found[1]


def ensure(step: Step) -> None:
    """Build `runsc` where the cache has none of this version, and link `.hutch/bin/runsc` to it."""
    place = _place(_says(go.find()))
    if not (place / "runsc").exists():
        program = go.obtain(step)
        said = _says(program)
        place = _place(said)
        step.say(f"building it with {said.removeprefix('go version ')} (a minute or two; once per version)")
        with cache.building(place) as made, tempfile.TemporaryDirectory(dir=cache.root() / "tmp") as scratch:
            _build(program, made / "runsc", Path(scratch))
        step.done = True
    cache.link(shell.HUTCH_DIR / "bin" / "runsc", place / "runsc")
    answer = shell.output_of([shell.HUTCH_DIR / "bin" / "runsc", "--version"])
    if answer is None:
        raise SetupError(f"{place / 'runsc'} does not start. Remove {place} and run setup again.")
    step.detail = f".hutch/bin/runsc ({answer.splitlines()[0].removeprefix('runsc version ')})"


def _says(program: str | None) -> str:
    # In the module's directory: a Go that fetches the version which go.mod asks for answers with that one.
    return (program and shell.output_of([program, "version"], cwd=go.MODULE_DIR)) or ""


def _place(said: str) -> Path:
    sources = [go.MODULE_DIR / name for name in ("go.mod", "go.sum", "tools.go")]
    return cache.root() / "runsc" / cache.content_key(said, files=[*sources, Path(__file__)])


def _build(program: str, binary: Path, scratch: Path) -> None:
    flags = f"-s -w -X gvisor.dev/gvisor/runsc/version.version={gvisor_version()}"
    # -mod=readonly: a source that go.sum does not know is an error, not an addition.
    command = [program, "build", "-mod=readonly", "-trimpath", "-buildvcs=false", f"-ldflags={flags}"]
    environment = {"CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off", "GOTMPDIR": str(scratch)}
    shell.logged([*command, "-o", binary, "gvisor.dev/gvisor/runsc"], "runsc", cwd=go.MODULE_DIR, env=environment)
