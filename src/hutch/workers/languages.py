"""What programs of workers are written in: how each is installed, built and started.

    package.json                                   node      `npm install`, `npm run build`, dist/index.js
    pyproject.toml, requirements.txt, worker.py    python    `uv`, the worker of worker.py (`hutch.worker`)
    hutch-worker                                   own       a program that does all of it itself (docs/worker-runner.md)

The first that a project has says what it is. All are started with the same arguments, and answer in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from urllib.parse import urlsplit

SOURCE = "/vercel/sandbox"
"""Where a worker is, in its builds and runs."""
PLATFORM = "/opt/hutch-worker"
NODE = "node"
PYTHON = "python"
OWN = "own"
ENTRY = "dist/index.js"
OWN_PROGRAM = "hutch-worker"
_FILES = {"package.json": NODE, "pyproject.toml": PYTHON, "requirements.txt": PYTHON, "worker.py": PYTHON, OWN_PROGRAM: OWN}
DETECT = ["sh", "-c", f"for file in {' '.join(_FILES)}; do if test -f $file; then echo $file; fi; done"]
UNKNOWN = f"The project has none of {', '.join(_FILES)} at its top."

# The address, and where what it lists is: what pip is set to, or what it has built in.
_PYTHON_INDEX = """python3 -m pip config get global.index-url 2>/dev/null || python3 -c '
from pip._internal.models.index import PyPI
print(PyPI.simple_url, PyPI.file_storage_domain)'"""
_UV = "uv --no-cache --no-config --quiet"
_INSTALL_PYTHON = f"""set -e
{_UV} venv .venv
if test -f uv.lock; then {_UV} sync --frozen --no-dev --no-install-project --compile-bytecode
elif test -f requirements.txt; then {_UV} pip install --compile-bytecode -r requirements.txt
elif test -f pyproject.toml; then {_UV} pip install --compile-bytecode -r pyproject.toml
fi"""
# What is imported from beside the program that is started, whatever the environment says.
_START_PYTHON = """import hutch.worker.__main__ as runner

runner.start()
"""
_NAMESPACE = """from pkgutil import extend_path

# A project may depend on the client, which has the same name.
__path__ = extend_path(__path__, __name__)
"""


@dataclass(frozen=True, slots=True)
class Step:
    """A program of a build. `secrets`: whether it sees the worker's, after the network was closed."""

    name: str
    argv: list[str]
    secrets: bool = False


@dataclass(frozen=True, slots=True)
class Language:
    """`index` prints the address of the registry that `install` uses, and other hosts that it needs; `environment` tells
    `install` about it. `files` are put into `PLATFORM`; `start` is followed by the runner's arguments."""

    install: list[str]
    index: list[str] | None
    environment: Callable[[str], dict[str, str]]
    steps: tuple[Step, ...]
    files: Callable[[], Mapping[str, bytes]]
    start: list[str]


def detected(said: str) -> str | None:
    """The language of a project, from what `DETECT` printed."""
    found = said.split()
    return next((language for name, language in _FILES.items() if name in found), None)


def registries(said: str) -> tuple[str, ...]:
    """Hosts, from what `Language.index` printed; none where it is no address."""
    address, *others = said.split() or [""]
    host = urlsplit(address).hostname
    return (host, *others) if host else ()


def _node_files() -> dict[str, bytes]:
    return {"runner.mjs": files("hutch.workers").joinpath("runner.mjs").read_bytes()}


def _python_files() -> dict[str, bytes]:
    package = Path(str(files("hutch.worker")))
    found = {f"python/hutch/worker/{path.name}": path.read_bytes() for path in sorted(package.glob("*.py"))}
    return found | {"python/hutch/__init__.py": _NAMESPACE.encode(), "python/start.py": _START_PYTHON.encode()}


def _none(_: str) -> dict[str, str]:
    return {}


LANGUAGES = {
    NODE: Language(
        install=["npm", "install", "--no-audit", "--no-fund", "--include=dev"],
        index=["npm", "config", "get", "registry"],
        environment=_none,
        steps=(
            Step("build", ["npm", "run", "build"], secrets=True),
            Step("check", ["sh", "-c", f"test -f {ENTRY} || {{ echo 'The build left no {ENTRY}.' >&2; exit 1; }}"]),
        ),
        files=_node_files,
        start=["node", f"{PLATFORM}/runner.mjs", f"{SOURCE}/{ENTRY}"],
    ),
    PYTHON: Language(
        install=["sh", "-c", _INSTALL_PYTHON],
        index=["sh", "-c", _PYTHON_INDEX],
        environment=lambda said: {"UV_DEFAULT_INDEX": said.split()[0], "UV_PYTHON_DOWNLOADS": "never"},
        steps=(),
        files=_python_files,
        start=[f"{SOURCE}/.venv/bin/python", "-u", f"{PLATFORM}/python/start.py", SOURCE],
    ),
    OWN: Language(
        install=["sh", "-c", f"test -x {OWN_PROGRAM} || chmod +x {OWN_PROGRAM}; ./{OWN_PROGRAM} --install"],
        index=None,
        environment=_none,
        steps=(),
        files=dict,
        start=[f"{SOURCE}/{OWN_PROGRAM}"],
    ),
}
