"""gVisor's `runsc`, built from its Go module: the version in `tools/runsc/go.mod`, every source checked through `go.sum`."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from scripts.setup import cache, packages, shell
from scripts.setup.report import SetupError, Step

MODULE_DIR = shell.CHECKOUT / "tools" / "runsc"
# From here on a Go fetches the newer one that a go.mod asks for by itself, through the Go proxy and its checksums.
_FETCHES_NEWER = (1, 21)


def go_version(text: str) -> tuple[int, ...]:
    """The version in `go version`'s answer: (1, 26, 8); empty where it has none."""
    found = re.search(r"\bgo(\d+(?:\.\d+)*)", text)
    return tuple(int(number) for number in found[1].split(".")) if found else ()


def wanted_version() -> tuple[int, ...]:
    """The oldest Go that `go.mod` accepts."""
    found = re.search(r"^go (\d+(?:\.\d+)*)$", (MODULE_DIR / "go.mod").read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise SetupError(f"{MODULE_DIR / 'go.mod'} has no go line.")
    return tuple(int(number) for number in found[1].split("."))


def gvisor_version() -> str:
    found = re.search(r"^require gvisor\.dev/gvisor (\S+)$", (MODULE_DIR / "go.mod").read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise SetupError(f"{MODULE_DIR / 'go.mod'} requires no gvisor.dev/gvisor.")
    return found[1]


def ensure(step: Step) -> None:
    """Build `runsc` where the cache has none of this version, and link `.hutch/bin/runsc` to it."""
    said = _go_says() or ""
    place = _place(said)
    if not (place / "runsc").exists():
        _require_go(go_version(said), step)
        said = _go_says() or ""
        place = _place(said)
        step.say(f"building it with {said.removeprefix('go version ')} (a minute or two; once per version)")
        with cache.building(place) as made, tempfile.TemporaryDirectory(dir=cache.root() / "tmp") as scratch:
            _build(made / "runsc", Path(scratch))
        step.done = True
    cache.link(shell.HUTCH_DIR / "bin" / "runsc", place / "runsc")
    answer = shell.output_of([shell.HUTCH_DIR / "bin" / "runsc", "--version"])
    if answer is None:
        raise SetupError(f"{place / 'runsc'} does not start. Remove {place} and run setup again.")
    step.detail = f".hutch/bin/runsc ({answer.splitlines()[0].removeprefix('runsc version ')})"


def _go_says() -> str | None:
    # In the module's directory: a go that fetches the version which go.mod asks for answers with that one.
    return shell.output_of(["go", "version"], cwd=MODULE_DIR)


def _place(go: str) -> Path:
    names = ("go.mod", "go.sum", "tools.go")
    return cache.root() / "runsc" / cache.content_key(go, files=[MODULE_DIR / name for name in names] + [Path(__file__)])


def _require_go(have: tuple[int, ...], step: Step) -> None:
    wanted = wanted_version()
    if have >= wanted:
        return
    number = ".".join(str(part) for part in wanted)
    local = shell.output_of(["go", "env", "GOTOOLCHAIN"], cwd=shell.CHECKOUT) or ""
    if have >= _FETCHES_NEWER and not local.startswith("local"):
        return
    if not have and (packages.candidate("golang-go") or (0,)) >= _FETCHES_NEWER:
        packages.install(["golang-go"], step)
        return
    found = f"go {'.'.join(map(str, have))}" if have else "no go"
    raise SetupError(
        f"runsc is built from source, which needs Go {number} or newer (or 1.21 or newer with GOTOOLCHAIN=auto, which then "
        f"fetches it); there is {found} here, and this distribution's is too old. Install Go as its site describes "
        "(go.dev/doc/install), put it in PATH and run `make setup` again. On Debian 12 with backports enabled, "
        "`apt-get install -t bookworm-backports golang-go` does as well."
    )


def _build(binary: Path, scratch: Path) -> None:
    flags = f"-s -w -X gvisor.dev/gvisor/runsc/version.version={gvisor_version()}"
    # -mod=readonly: a source that go.sum does not know is an error, not an addition.
    command = ["go", "build", "-mod=readonly", "-trimpath", "-buildvcs=false", f"-ldflags={flags}"]
    environment = {"CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off", "GOTMPDIR": str(scratch)}
    shell.logged([*command, "-o", binary, "gvisor.dev/gvisor/runsc"], "runsc", cwd=MODULE_DIR, env=environment)
