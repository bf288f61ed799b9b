"""Builds the base image and its variants into an image store, or locks its packages. Run as root by `scripts.setup.image`."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from scripts.setup import cache, pack, recipe, rootfs, shell
from scripts.setup.report import SetupError

LOG = "image-build"


def say(text: str) -> None:
    print(f"{shell.PROGRESS}{text}", flush=True)


def build_tree(plan: recipe.Recipe, root: Path, *, pin: bool = True) -> dict[str, str]:
    """Make the base image's tree in `root`. Returns the Debian packages with their versions."""
    say("installing Debian into the image's tree")
    rootfs.bootstrap(plan, root, LOG, pin=pin)
    found = rootfs.installed(root)
    say("adding Node, pnpm, Bun and uv")
    rootfs.add_languages(root, LOG)
    rootfs.add_files(root)
    rootfs.add_user(root, _original(root), plan.images[0])
    rootfs.clean(root)
    rootfs.compile_python(plan, root, LOG)
    return found


def _original(root: Path) -> Path:
    """A copy of the tree's account files from before our user is in them, for the images that have another one."""
    kept = root.with_name(root.name + ".original")
    (kept / "etc").mkdir(parents=True)
    for name in ("passwd", "group", "shadow", "gshadow"):
        shutil.copy2(root / "etc" / name, kept / "etc" / name)
        status = (root / "etc" / name).stat()
        os.chown(kept / "etc" / name, status.st_uid, status.st_gid)
    shutil.copytree(root / "etc/skel", kept / "etc/skel")
    return kept


def build(store: Path, index: Path) -> None:
    """Build every image of the recipe."""
    plan = recipe.load()
    scratch = Path(tempfile.mkdtemp(dir=cache.root() / "tmp"))
    scratch.chmod(0o755)
    try:
        root = scratch / "root"
        packages = build_tree(plan, root)
        _report(rootfs.drift(plan.pinned, packages))
        say("packing")
        base = pack.layer(root, store / "blobs" / "sha256", plan.epoch_s, plan.uuid, LOG)
        contents: dict[str, object] = {
            "epoch_s": plan.epoch_s,
            "suite": plan.suite,
            "debian": packages,
            "tools": rootfs.locked_versions(),
        }
        entries: list[dict[str, object]] = []
        for number, image in enumerate(plan.images):
            layers = [base]
            if number > 0:
                tree = scratch / f"layer{number}"
                tree.mkdir(mode=0o755)
                rootfs.add_user(tree, scratch / "root.original", image)
                layers.append(pack.layer(tree, store / "blobs" / "sha256", plan.epoch_s, plan.uuid, LOG))
            digest = pack.manifest(image.name, layers, image.config(), contents, store / "manifests")
            entries.append({"name": image.name, "aliases": list(image.aliases), "manifest": digest})
        say("starting every promised program in it")
        rootfs.check(root, LOG)
        pack.index(entries, index)
    finally:
        cache.discard(scratch)


def _report(changed: list[str]) -> None:
    """Say which packages are not at their locked versions. Signed by Debian as well, so this stops only who asks for it."""
    if not changed:
        return
    say(f"{len(changed)} packages are not at their locked versions, because the mirror has replaced them:")
    for line in changed[:10]:
        say(f"  {line}")
    if len(changed) > 10:
        say(f"  and {len(changed) - 10} more")
    say("  `make image-lock` writes the current versions into images/base/packages.lock")
    if os.environ.get("HUTCH_IMAGE_STRICT") == "1":
        raise SetupError("HUTCH_IMAGE_STRICT=1 allows no other package versions than the locked ones.")


def lock(place: Path) -> None:
    """Write the mirror's current version of every package of the image to `place`."""
    plan = recipe.load()
    scratch = Path(tempfile.mkdtemp(dir=cache.root() / "tmp"))
    scratch.chmod(0o755)
    try:
        rootfs.bootstrap(plan, scratch / "root", LOG, pin=False)
        lines = [f"{name}={version}\n" for name, version in rootfs.installed(scratch / "root").items()]
        place.write_text(
            "# Written by `make image-lock`: every Debian package of the base image.\n" + "".join(lines), encoding="utf-8"
        )
    finally:
        cache.discard(scratch)


def _give_back(store: Path, index: Path) -> None:
    """Make what was built the property of who called sudo: the kernel lets nobody link, and nobody remove, files of others."""
    owner = os.environ.get("SUDO_UID")
    group = os.environ.get("SUDO_GID")
    if owner and group:
        for path in [store, *store.rglob("*"), index]:
            os.chown(path, int(owner), int(group))


def main(arguments: list[str]) -> int:
    if os.geteuid() != 0 or len(arguments) != 2:
        print("usage, as root: python3 -m scripts.setup.image_build STORE INDEX | lock FILE", file=sys.stderr)
        return 2
    os.umask(0o022)
    try:
        if arguments[0] == "lock":
            lock(Path(arguments[1]))
        else:
            build(Path(arguments[0]), Path(arguments[1]))
            _give_back(Path(arguments[0]), Path(arguments[1]))
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
