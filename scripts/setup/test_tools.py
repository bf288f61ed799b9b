"""What only the tests need: PostgreSQL, an S3 server, a browser, a collector of telemetry, clients of the firewall's tests,
JavaScript from npm.

Two of them run in sandboxes: `.hutch/java` is a small Java runtime, `.hutch/guest-python` has packages for the image's Python.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from scripts.setup import cache, go, packages, python_env, s3_server, shell
from scripts.setup.report import SetupError, Step

# Program → package. PostgreSQL's own programs are not in PATH.
_PROGRAMS = {
    "chromium": "chromium",
    "cpio": "cpio",
    "curl": "curl",
    "fish": "fish",
    "/bin/busybox": "busybox-static",
    "git": "git",
    "javac": "default-jdk-headless",
    "jlink": "default-jdk-headless",
    "openssl": "openssl",
    "setpriv": "util-linux",
}
_POSTGRES = Path("/usr/lib/postgresql")
_JAVA_MODULES = "java.base,java.net.http,jdk.crypto.ec"
_GUEST_PACKAGES = ("grpcio", "typing-extensions")
_GUEST_PYTHON = "3.13"
JAVA = shell.HUTCH_DIR / "java"
GUEST_PYTHON = shell.HUTCH_DIR / "guest-python"
REGISTRY = shell.HUTCH_DIR / "registry"
COLLECTOR = shell.HUTCH_DIR / "collector"
TESTS = shell.CHECKOUT / "tests"


def ensure(step: Step) -> None:
    """Install the packages that are missing, every `package-lock.json` below `tests`, and what runs in sandboxes."""
    missing = sorted({package for program, package in _PROGRAMS.items() if not packages.there(program)})
    if not any(_POSTGRES.glob("*/bin/initdb")):
        missing.append("postgresql")
    if missing:
        packages.install(missing, step)
        step.made(f"installed {', '.join(missing)}")
    locks = sorted(path for path in TESTS.glob("**/package-lock.json") if "node_modules" not in path.parts)
    for lock in locks:
        if _install_npm(lock.parent, step):
            step.done = True
    _make_java(step)
    _install_for_guests(step)
    s3_server.ensure(step)
    package = "github.com/google/go-containerregistry/cmd/registry"
    _build("registry", package, ("go.mod", "go.sum", "tools.go"), REGISTRY, "a registry of images", step)
    _build("collector", ".", ("go.mod", "go.sum", "main.go"), COLLECTOR, "a collector of telemetry", step)
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


def _make_java(step: Step) -> None:
    """A runtime with an HTTP client and nothing else, for the machine's own version of Java."""
    version = shell.output_of(["jlink", "--version"]) or ""
    place = cache.root() / "java" / cache.content_key(version, _JAVA_MODULES)
    if not place.exists():
        step.say(f"making a runtime of Java {version}")
        with cache.building(place) as made:
            options = ["--strip-debug", "--no-header-files", "--no-man-pages"]
            shell.logged(["jlink", "--add-modules", _JAVA_MODULES, *options, "--output", made / "java"], "test-tools")
        step.done = True
    cache.link(JAVA, place / "java")


def _install_for_guests(step: Step) -> None:
    """Packages at the versions and hashes of our own lock file, for another Python than ours."""
    lock = (shell.CHECKOUT / "requirements-dev.txt").read_text(encoding="utf-8")
    pinned = [_pinned(name, lock) for name in _GUEST_PACKAGES]
    place = cache.root() / "guest-python" / cache.content_key(_GUEST_PYTHON, *pinned)
    if not place.exists():
        step.say(f"installing {', '.join(_GUEST_PACKAGES)} for sandboxes")
        with cache.building(place) as made:
            requirements = made / "requirements.txt"
            requirements.write_text("\n".join(pinned) + "\n", encoding="utf-8")
            uv: list[str | Path] = [python_env.VENV / "bin" / "uv", "pip", "install", "--quiet", "--require-hashes", "--no-deps"]
            platform = ["--python-version", _GUEST_PYTHON, "--python-platform", "x86_64-manylinux_2_28"]
            target: list[str | Path] = ["--target", made / "lib", "-r", requirements]
            index = python_env.index_for_uv()
            shell.logged([*uv, *platform, "--only-binary", ":all:", *target], "test-tools", env=index)
        step.done = True
    cache.link(GUEST_PYTHON, place / "lib")


def _build(name: str, package: str, sources: Sequence[str], link: Path, what: str, step: Step) -> None:
    """A program of Go, at the versions of `tools/NAME/go.mod`."""
    module = shell.CHECKOUT / "tools" / name
    place = cache.root() / name / cache.content_key(files=[*(module / source for source in sources), Path(__file__)])
    if not place.exists():
        program = go.obtain(step)
        step.say(f"building {what}")
        with cache.building(place) as made:
            options = ["-mod=readonly", "-trimpath", "-buildvcs=false"]
            environment = {"CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off"}
            command: list[str | Path] = [program, "build", *options, "-o", made / name, package]
            shell.logged(command, "test-tools", cwd=module, env=environment)
        step.done = True
    cache.link(link, place / name)


def _pinned(name: str, lock: str) -> str:
    """A package's lines of a lock file."""
    found = re.search(rf"(?m)^{name}==.*(?:\n .*)*", lock)
    if found is None:
        raise SetupError(f"requirements-dev.txt does not have {name}. Name it in requirements-dev.in and run `make lock`.")
    return found[0]
