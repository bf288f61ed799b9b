"""The base image's recipe (`images/base/recipe.json`) as values."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.setup.shell import CHECKOUT

DIRECTORY = CHECKOUT / "images" / "base"
UID = 1000
GID = 1000
# Debian's own id of the group that may use sudo.
SUDO_GID = 27


@dataclass(frozen=True)
class ImageRecipe:
    """One image. `links` are symbolic links of its layer: place → target. The first image is the base and has no layer."""

    name: str
    aliases: tuple[str, ...]
    user: str
    home: str
    cwd: str
    env: dict[str, str]
    links: dict[str, str]

    @property
    def path(self) -> str:
        return self.env["PATH"]

    def config(self) -> dict[str, object]:
        """The `config` of its manifest."""
        return {
            "user": self.user,
            "uid": UID,
            "gid": GID,
            "groups": [SUDO_GID],
            "home": self.home,
            "cwd": self.cwd,
            "env": dict(sorted(self.env.items())),
        }


@dataclass(frozen=True)
class Recipe:
    """`epoch_s` is every file's time, `uuid` every image's; both fixed, so that the same packages give the same bytes."""

    suite: str
    epoch_s: int
    uuid: str
    packages: tuple[str, ...]
    pinned: dict[str, str]
    images: tuple[ImageRecipe, ...]


def entries(path: Path) -> list[str]:
    """The lines of a list file, without comments and empty lines."""
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def pinned_versions(path: Path) -> dict[str, str]:
    """`name=version` lines as a mapping; empty where there is no such file yet."""
    if not path.exists():
        return {}
    pairs = (line.partition("=") for line in entries(path))
    return {name: version for name, _, version in pairs}


def load(directory: Path = DIRECTORY) -> Recipe:
    raw: dict[str, Any] = json.loads((directory / "recipe.json").read_text(encoding="utf-8"))
    images = tuple(
        ImageRecipe(
            name=image["name"],
            aliases=tuple(image["aliases"]),
            user=image["user"],
            home=image["home"],
            cwd=image["cwd"],
            env={**raw["env"], **image["env"], "PATH": ":".join([*image["path"], *raw["system_path"]])},
            links=image["links"],
        )
        for image in raw["images"]
    )
    return Recipe(
        suite=raw["suite"],
        epoch_s=raw["source_date_epoch"],
        uuid=raw["uuid"],
        packages=tuple(entries(directory / "packages.txt")),
        pinned=pinned_versions(directory / "packages.lock"),
        images=images,
    )
