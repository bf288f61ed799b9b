"""Dependencies of workers that are installed once: the files that installing left, sealed before there is anything else.

    package.json, lock file, .npmrc        node     ┐
    uv.lock and pyproject.toml             python   ├▶ key ─▶ a layer of the project, or: fresh sandbox, only these files,
    requirements.txt, or pyproject.toml    python   ┘                                     installed, sealed

A layer is made from its key's files alone, without the worker's source and without its secrets, so whoever in the project has
the same files would have installed the same. No other project finds it. Where more than these files decides what is installed
(scripts of the project itself, dependencies in its own directories) there is no layer, and everything is installed each time.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import tomllib
import zlib
from dataclasses import dataclass
from typing import Any

import msgspec

from hutch.api.services import Services
from hutch.api.snapshots import usable
from hutch.control.records import Scope
from hutch.errors import GoneError, NotFoundError
from hutch.storage import snapshots, worker_layers
from hutch.workers.languages import NODE, PYTHON

BLOCK = 512
MAX_INFLATED = 64 * 1024 * 1024
"""Archives that are larger than that, unpacked, have no layer."""
MAX_FILE = 16 * 1024 * 1024
MANIFEST = "package.json"
LOCKS = ("package-lock.json", "npm-shrinkwrap.json")
NODE_FILES = (MANIFEST, *LOCKS, ".npmrc")
UV_LOCK, REQUIREMENTS, PROJECT, VERSION = "uv.lock", "requirements.txt", "pyproject.toml", ".python-version"
READ = (*NODE_FILES, UV_LOCK, REQUIREMENTS, PROJECT, VERSION)
OWN_BUILD = ("binding.gyp", "node_modules")
"""With them npm does more than to install what the files name."""
INSTALLED = ".venv"
REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\s*(\[[A-Za-z0-9._, -]*\])?\s*([=<>!~(;].*)?")
"""The name of a package, extras, versions, markers: no address, no directory, no option."""
HASH = "--hash="
SCRIPTS = frozenset(
    {"preinstall", "install", "postinstall", "prepublish", "preprepare", "prepare", "postprepare", "dependencies"}
)
"""What npm runs of the project itself when it installs."""
KINDS = ("dependencies", "devDependencies", "optionalDependencies", "peerDependencies")
LOCAL = ("file:", "link:", "workspace:", "portal:", ".", "/", "~/")
UNLOCKED_MS = 3_600_000
"""How long a layer without a lock file is used: there may be newer versions then."""
MOST = 20
"""Layers of a project; the ones that were used least lately go first."""
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Inputs:
    """The files that decide what is installed, by name."""

    files: dict[str, bytes]
    language: str = NODE

    @property
    def locked(self) -> bool:
        """Whether they name one version of each package."""
        hashed = HASH.encode() in self.files.get(REQUIREMENTS, b"")
        return hashed or any(name in self.files for name in (*LOCKS, UV_LOCK))

    def key(self, *settings: object) -> str:
        """What a layer is found by: these files, and whatever else decides."""
        content = [(name, hashlib.sha256(data).hexdigest()) for name, data in sorted(self.files.items())]
        return hashlib.sha256(msgspec.json.encode([FORMAT, content, settings])).hexdigest()

    def archive(self) -> bytes:
        """They alone, as an archive."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name, content in self.files.items():
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(content), 0o644
                archive.addfile(entry, io.BytesIO(content))
        return buffer.getvalue()


# -- reading an archive ------------------------------------------------------------------------------


def inputs(archive: bytes) -> Inputs | None:
    """Those of an uploaded archive; None where a layer would not do, and where the archive is odd in any way: who unpacks it says
    what is wrong."""
    try:
        found = _root(_inflated(archive))
    except (ValueError, zlib.error):
        return None
    if MANIFEST not in found:
        return _of_python(found)
    files = {name: found[name] for name in NODE_FILES if name in found}
    odd = any(name in found for name in OWN_BUILD)
    return Inputs(files) if not odd and _installs_only_what_it_names(files) else None


def _of_python(found: dict[str, bytes]) -> Inputs | None:
    """Of those that `hutch.workers.languages` installs from, the first."""
    if INSTALLED in found:
        return None
    names: tuple[str, ...]
    try:
        if UV_LOCK in found:
            names, fine = (UV_LOCK, PROJECT), _locks_only_packages(found[UV_LOCK].decode())
        elif REQUIREMENTS in found:
            names, fine = (REQUIREMENTS,), _requires_only_packages(found[REQUIREMENTS].decode())
        elif PROJECT in found:
            names, fine = (PROJECT,), _declares_only_packages(found[PROJECT].decode())
        else:
            return None
    except (ValueError, RecursionError):
        return None
    files = {name: found[name] for name in (*names, VERSION) if name in found}
    return Inputs(files, PYTHON) if fine else None


def _locks_only_packages(text: str) -> bool:
    """The project itself, which is not installed, is there as well. Raises `ValueError`."""
    packages = tomllib.loads(text).get("package", [])
    if not isinstance(packages, list):
        return False
    sources = [package.get("source", {}) if isinstance(package, dict) else None for package in packages]
    return all(isinstance(source, dict) and _elsewhere(source) for source in sources)


def _elsewhere(source: dict[str, Any]) -> bool:
    return str(source.get("registry", "")).startswith(("https:", "http:")) or source in ({"virtual": "."}, {"editable": "."})


def _requires_only_packages(text: str) -> bool:
    for line in text.replace("\\\n", " ").splitlines():
        wanted, *options = line.split("#")[0].strip().split(" --")
        if any(not f"--{option}".startswith(HASH) for option in options) or (
            wanted.strip() and not REQUIREMENT.fullmatch(wanted.strip())
        ):
            return False
    return True


def _declares_only_packages(text: str) -> bool:
    """Raises `ValueError`."""
    whole = tomllib.loads(text)
    project, tool = whole.get("project", {}), whole.get("tool", {})
    if not isinstance(project, dict) or not isinstance(tool, dict) or "uv" in tool or project.get("dynamic"):
        return False
    wanted = project.get("dependencies", [])
    return isinstance(wanted, list) and all(isinstance(one, str) and REQUIREMENT.fullmatch(one.strip()) for one in wanted)


def _inflated(archive: bytes) -> bytes:
    inflate = zlib.decompressobj(wbits=31)
    content = inflate.decompress(archive, MAX_INFLATED)
    if inflate.unconsumed_tail or not inflate.eof:
        raise ValueError("too large, or cut off")
    return content


def _root(content: bytes) -> dict[str, bytes]:
    """What is in the top directory: files by name, and directories, as empty ones. Raises `ValueError`."""
    found: dict[str, bytes] = {}
    at, long_name = 0, False
    while at + BLOCK <= len(content):
        header = content[at : at + BLOCK]
        if not any(header):
            break
        size, kind = int(header[124:136].strip(b" \0") or b"0", 8), header[156:157]
        if size < 0:
            raise ValueError("a negative size")
        if kind not in b"0\05LKxg":
            raise ValueError("more than files and directories")
        prefix = _text(header[345:500]) if header[257:262] == b"ustar" else ""
        name = "/".join(part for part in (prefix, _text(header[:100])) if part).removeprefix("./")
        top, _, rest = name.rstrip("/").partition("/")
        data = content[at + BLOCK : at + BLOCK + size]
        if kind in b"LKxg" or long_name:
            # What follows `L` has a name of more than 100 bytes, and none of ours has.
            long_name = kind == b"L" or (long_name and kind in b"Kxg")
        elif top in READ and not rest and kind != b"5":
            if len(data) != size or size > MAX_FILE:
                raise ValueError("cut off, or too large")
            found[top] = data
        elif top in (*OWN_BUILD, INSTALLED):
            found[top] = b""
        at += BLOCK + -(-size // BLOCK) * BLOCK
    return found


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode()


def _installs_only_what_it_names(files: dict[str, bytes]) -> bool:
    try:
        package = json.loads(files[MANIFEST])
        lock: Any = next((json.loads(files[name]) for name in LOCKS if name in files), {})
    except (ValueError, RecursionError):
        return False
    if not isinstance(package, dict) or not isinstance(lock, dict) or "workspaces" in package:
        return False
    scripts = package.get("scripts", {})
    if not isinstance(scripts, dict) or SCRIPTS & scripts.keys():
        return False
    named = [_wanted(package.get(kind, {})) for kind in KINDS]
    packages = lock.get("packages", {})
    if None in named or not isinstance(packages, dict):
        return False
    return not any(isinstance(item, dict) and item.get("link") for item in packages.values())


def _wanted(dependencies: Any) -> bool | None:
    """True when none of them is in a directory of the project; None when one is, or may be."""
    if not isinstance(dependencies, dict):
        return None
    fine = all(isinstance(wanted, str) and not wanted.strip().startswith(LOCAL) for wanted in dependencies.values())
    return True if fine else None


# -- layers ------------------------------------------------------------------------------------------


async def find(services: Services, scope: Scope, found: Inputs, key: str) -> str | None:
    """The snapshot of a project's layer, which counts as used now. None when there is none to use."""
    now = services.clock()
    async with services.database.write() as connection:
        layer = await worker_layers.find(connection, scope, key)
        if layer is None or (not found.locked and now - layer.created_at > UNLOCKED_MS):
            return None
        try:
            await usable(connection, scope, layer.snapshot_id, now)
        except (GoneError, NotFoundError):
            return None
        await worker_layers.used(connection, scope, key, now)
    return layer.snapshot_id


async def keep(services: Services, scope: Scope, key: str, snapshot_id: str) -> None:
    """Have a project find this layer, instead of one that it had of the same key."""
    now = services.clock()
    async with services.database.write() as connection:
        gone = await worker_layers.put(connection, scope, key, snapshot_id, now)
        gone += await worker_layers.beyond(connection, scope, MOST)
        for former in gone:
            await snapshots.mark_deleted(connection, former, now)
    if gone:
        services.snapshots_due.set()


async def collect(services: Services) -> None:
    """Delete layers that were not used for `workers.keep_layers_s`."""
    now = services.clock()
    before = now - services.settings.workers.keep_layers_s * 1000
    async with services.database.write() as connection:
        gone = await worker_layers.unused(connection, before)
        for snapshot_id in gone:
            await snapshots.mark_deleted(connection, snapshot_id, now)
    if gone:
        services.snapshots_due.set()
