"""The Python environment `.venv`: every package at its locked version and checked against its hash, and Hutch itself."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

from scripts.setup import cache, packages, recipe, shell
from scripts.setup.report import SetupError, Step

VENV = shell.CHECKOUT / ".venv"
OLDEST = (3, 11)
# Best first. $HUTCH_PYTHON comes before all of them.
_CANDIDATES = ("python3", "python3.13", "python3.12", "python3.11")
_STAMP = VENV / "hutch-setup"
_UV_LOCK = recipe.DIRECTORY / "tools" / "uv.txt"


def python_version(executable: str | Path) -> tuple[int, ...] | None:
    """(3, 11, 7), or None where that is no Python."""
    said = shell.output_of([executable, "-c", "import sys; print(*sys.version_info[:3])"])
    return tuple(int(number) for number in said.split()) if said else None


def ensure(step: Step) -> None:
    """Make `.venv` where there is none, and install what the lock files say where that has changed."""
    have = python_version(VENV / "bin" / "python")
    fresh = have is None or have < OLDEST
    key = _key(have)
    if not fresh and _STAMP.exists() and _STAMP.read_text(encoding="ascii") == key and (VENV / "bin" / "hutch").exists():
        step.found(f".venv (Python {_dotted(have)})")
        _compile()
        return
    if fresh:
        _make(step)
    _install(step)
    _compile()
    have = python_version(VENV / "bin" / "python")
    _STAMP.write_text(_key(have), encoding="ascii")
    step.made(f".venv (Python {_dotted(have)})")


def _compile() -> None:
    """Compile our own sources that are new: who runs as another user can't keep what it compiled."""
    shell.logged([VENV / "bin" / "python", "-m", "compileall", "-q", "-j", "0", shell.CHECKOUT / "src"], "python")


def _dotted(version: tuple[int, ...] | None) -> str:
    return ".".join(str(part) for part in version or ())


def _key(version: tuple[int, ...] | None) -> str:
    names = ("requirements.txt", "requirements-dev.txt", "pyproject.toml")
    files = [shell.CHECKOUT / name for name in names] + [_UV_LOCK, Path(__file__)]
    # The checkout's own place is part of it: the editable installation points there.
    return cache.content_key(_dotted(version), str(shell.CHECKOUT), files=files)


def _make(step: Step) -> None:
    if VENV.exists():
        shutil.rmtree(VENV)
    python = _find() or _install_python(step)
    step.say(f"making .venv with {python}")
    shell.logged([python, "-m", "venv", VENV], "python")


def _find() -> str | None:
    """A Python that is recent enough and can make environments."""
    for name in filter(None, (os.environ.get("HUTCH_PYTHON"), *_CANDIDATES)):
        version = python_version(name)
        if version is not None and version >= OLDEST and shell.output_of([name, "-c", "import venv, ensurepip"]) is not None:
            return shutil.which(name) or name
    return None


def _install_python(step: Step) -> str:
    offered = packages.candidate("python3") or (0,)
    names = ["python3", "python3-venv"] if offered >= OLDEST else ["python3.11", "python3.11-venv"]
    packages.install(names, step)
    python = _find()
    if python is None:
        raise SetupError(
            f"Hutch needs Python {_dotted(OLDEST)} or newer with its venv module; setup itself runs on {sys.version.split()[0]}. "
            "Install one, and name it in HUTCH_PYTHON where it is not in PATH."
        )
    return python


def _install(step: Step) -> None:
    python = VENV / "bin" / "python"
    step.say("installing the locked packages")
    pip: list[str | Path] = [python, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    if shell.output_of([VENV / "bin" / "uv", "--version"]) is None:
        shell.logged([*pip, "install", "--require-hashes", "--no-deps", "-r", _UV_LOCK], "python")
    # Bytecode too: what runs as another user can't keep it, and would compile all that it imports at each start.
    uv: list[str | Path] = [VENV / "bin" / "uv", "pip", "install", "--quiet", "--compile-bytecode", "--python", python]
    lock = shell.CHECKOUT / "requirements-dev.txt"
    shell.logged([*uv, "--require-hashes", "--no-deps", "-r", lock], "python", env=index_for_uv())
    # Without isolation: hatchling is in the lock file, and nothing unchecked is fetched to build with.
    shell.logged([*uv, "--no-deps", "--no-build-isolation", "--editable", shell.CHECKOUT], "python", env=index_for_uv())


def index_for_uv() -> dict[str, str]:
    """pip's own index in uv's words: uv does not read pip's configuration."""
    if any(name in os.environ for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL")):
        return {}
    listed = shell.output_of([VENV / "bin" / "python", "-m", "pip", "config", "list"]) or ""
    found = dict(re.findall(r"(?m)^[^.=\s]+\.(index-url|extra-index-url|cert)='(.*)'$", listed))
    names = {"index-url": "UV_DEFAULT_INDEX", "extra-index-url": "UV_INDEX", "cert": "SSL_CERT_FILE"}
    return {names[key]: value for key, value in found.items() if names[key] not in os.environ}
