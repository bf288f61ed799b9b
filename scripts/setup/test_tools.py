"""What only the tests need: PostgreSQL, a browser, clients of the firewall's tests, and the JavaScript clients from npm."""

from __future__ import annotations

import os
from pathlib import Path

from scripts.setup import cache, packages, shell
from scripts.setup.report import Step

# Program → package. PostgreSQL's own programs are not in PATH.
_PROGRAMS = {"chromium": "chromium", "curl": "curl", "git": "git", "openssl": "openssl", "setpriv": "util-linux"}
_POSTGRES = Path("/usr/lib/postgresql")
CLIENTS = shell.CHECKOUT / "tests" / "clients"


def ensure(step: Step) -> None:
    """Install the packages that are missing, and every `package-lock.json` below `tests/clients`."""
    missing = [package for program, package in _PROGRAMS.items() if not packages.there(program)]
    if not any(_POSTGRES.glob("*/bin/initdb")):
        missing.append("postgresql")
    if missing:
        packages.install(missing, step)
        step.made(f"installed {', '.join(missing)}")
    locks = sorted(path for path in CLIENTS.glob("**/package-lock.json") if "node_modules" not in path.parts)
    for lock in locks:
        if _install_npm(lock.parent, step):
            step.done = True
    step.detail = step.detail or f"PostgreSQL, Chromium, {len(locks)} npm lock file{'' if len(locks) == 1 else 's'}"


def _install_npm(directory: Path, step: Step) -> bool:
    modules = directory / "node_modules"
    stamp = modules / ".hutch-setup"
    key = cache.content_key(files=[directory / "package.json", directory / "package-lock.json", Path(__file__)])
    if stamp.exists() and stamp.read_text(encoding="ascii") == key:
        return False
    step.say(f"npm ci in {directory.relative_to(shell.CHECKOUT)}")
    node = shell.HUTCH_DIR / "node" / "bin"
    environment = {"PATH": f"{node}{os.pathsep}{os.environ['PATH']}"}
    shell.logged([node / "npm", "ci", "--no-audit", "--no-fund"], "test-tools", cwd=directory, env=environment)
    stamp.write_text(key, encoding="ascii")
    return True
