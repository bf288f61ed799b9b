"""The base image: built once per content of `images/base` (and of what builds it), then found in the cache."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from scripts.setup import cache, recipe, shell
from scripts.setup.report import Step

_BUILDERS = ("recipe.py", "mirror.py", "wheels.py", "node.py", "rootfs.py", "pack.py", "image_build.py")
# What the build may see of the caller's environment when it runs under sudo.
_VARIABLES = (
    "HUTCH_DEBIAN_MIRROR",
    "HUTCH_DEBIAN_SECURITY_MIRROR",
    "HUTCH_DEBIAN_KEYRING",
    "HUTCH_IMAGE_STRICT",
    "http_proxy",
    "https_proxy",
    "no_proxy",
)


def directory() -> Path:
    """Where this recipe's image store is in the cache, made or not."""
    files = cache.files_below(recipe.DIRECTORY, lambda path: path.suffix != ".md")
    builders = [Path(__file__).with_name(name) for name in _BUILDERS]
    return cache.root() / "images" / cache.content_key(os.environ.get("HUTCH_DEBIAN_MIRROR", ""), files=[*files, *builders])


def ensure(step: Step) -> None:
    """Build the images where the cache has none, and link `.hutch/images` to them."""
    place = directory()
    if not (place / "index.json").exists():
        step.say("building it (a minute or two; once per recipe)")
        with cache.building(place) as made:
            store = cache.root() / "images" / "store"
            store.mkdir(parents=True, exist_ok=True)
            _as_root([store, made / "index.json"], step)
            _share(store, made)
        step.done = True
    cache.link(shell.HUTCH_DIR / "images", place)
    entries = json.loads((place / "index.json").read_text(encoding="utf-8"))["images"]
    step.detail = f".hutch/images ({', '.join(entry['name'] for entry in entries)})"


def _share(store: Path, made: Path) -> None:
    """Hard-link the store's files, so that the directory is complete in itself and holds earlier builds as well.

    A sandbox made from an earlier image names it by its digest, and has to find it after a rebuild.
    """
    for path in cache.files_below(store):
        place = made / path.relative_to(store)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.hardlink_to(path)


def lock(step: Step) -> None:
    """Write the current versions of the image's packages into `packages.lock`; the next setup builds with them."""
    (cache.root() / "tmp").mkdir(parents=True, exist_ok=True)
    place = recipe.DIRECTORY / "packages.lock"
    # Made by the caller, so that it is the caller's and not root's.
    place.touch()
    _as_root(["lock", place], step)
    step.made(f"{len(recipe.pinned_versions(place))} packages in images/base/packages.lock")


def _as_root(arguments: list[str | Path], step: Step) -> None:
    keep = [f"{name}={os.environ[name]}" for name in _VARIABLES if name in os.environ]
    keep += [f"HUTCH_CACHE_DIR={cache.root()}", f"PATH={os.environ['PATH']}:/usr/local/sbin:/usr/sbin:/sbin"]
    command = ["env", *keep, "PYTHONDONTWRITEBYTECODE=1", sys.executable, "-m", "scripts.setup.image_build", *arguments]
    shell.logged(shell.privileged(command), "image", say=step.say)
