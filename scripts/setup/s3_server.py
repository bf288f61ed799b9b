"""The S3 server of the tests, built from its Go module: the version in `tools/s3/go.mod`, every source checked by `go.sum`."""

from __future__ import annotations

import tempfile
from pathlib import Path

from scripts.setup import cache, go, shell
from scripts.setup.report import Step

MODULE_DIR = shell.CHECKOUT / "tools" / "s3"
PROGRAM = "github.com/versity/versitygw/cmd/versitygw"
LINK = shell.HUTCH_DIR / "bin" / "versitygw"


def ensure(step: Step) -> None:
    """Build it where the cache has none of this version, and link `.hutch/bin/versitygw` to it."""
    sources = [MODULE_DIR / name for name in ("go.mod", "go.sum", "tools.go")]
    place = cache.root() / "s3" / cache.content_key(files=[*sources, Path(__file__)])
    if not place.exists():
        step.say("building the S3 server of the tests (a minute or two; once per version)")
        with cache.building(place) as made, tempfile.TemporaryDirectory(dir=cache.root() / "tmp") as scratch:
            command = [go.obtain(step), "build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags=-s -w"]
            environment = {"CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off", "GOTMPDIR": scratch}
            shell.logged([*command, "-o", made / "versitygw", PROGRAM], "test-tools", cwd=MODULE_DIR, env=environment)
        step.done = True
    cache.link(LINK, place / "versitygw")
