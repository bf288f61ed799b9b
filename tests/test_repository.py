"""What no file of the repository may contain."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from scripts.setup.shell import CHECKOUT, output_of

BINARY = {".png", ".ico", ".woff2", ".gz"}


def committed() -> Iterator[tuple[Path, str]]:
    """Every text file that is, or is about to be, in the repository. Without git (an unpacked archive) there is none."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=CHECKOUT, capture_output=True, check=False
    )
    if listed.returncode != 0:
        pytest.skip("this is no git checkout, so nothing says which files belong to it")
    for name in listed.stdout.decode().split("\0"):
        path = CHECKOUT / name
        if name and path.is_file() and not path.is_symlink() and path.suffix not in BINARY:
            yield path.relative_to(CHECKOUT), path.read_text(encoding="utf-8", errors="replace")


def registry_hosts() -> set[str]:
    """The hosts that this machine's package clients are set up with: they are named in no committed file."""
    addresses: list[str] = []
    python = CHECKOUT / ".venv" / "bin" / "python"
    default = output_of(
        [python, "-c", "import pip._internal.models.index as i; print(i.PyPI.url, 'https://' + i.PyPI.file_storage_domain)"]
    )
    addresses += (default or "").split()
    addresses += re.findall(r"https?://[^'\s]+", output_of([python, "-m", "pip", "config", "list"]) or "")
    addresses += (output_of([CHECKOUT / ".hutch" / "node" / "bin" / "npm", "config", "get", "registry"]) or "").split()
    addresses += re.split(r"[,|]", output_of(["go", "env", "GOPROXY"]) or "")
    for path in [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]:
        if path.suffix in (".list", ".sources") and path.is_file():
            lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
            addresses += re.findall(r"https?://[^\s\]]+", "\n".join(lines))
    hosts = {urlsplit(address).hostname for address in addresses if "://" in address}
    return {host for host in hosts if host is not None}


def test_no_file_names_a_registrys_host() -> None:
    hosts = registry_hosts()
    assert hosts, "no client told its registry"
    pattern = re.compile("|".join(rf"(?<![\w.-]){re.escape(host)}(?![\w-])" for host in sorted(hosts)))
    found = [f"{path}: {match[0]}" for path, text in committed() for match in [pattern.search(text)] if match]
    assert found == []


def test_no_file_names_a_place_of_this_machine() -> None:
    places = [rf"{re.escape(str(CHECKOUT))}\b", rf"{re.escape(str(Path.home()))}/\.\w", r"/(?:work|farm)/"]
    pattern = re.compile("|".join(places))
    found = [f"{path}: {match[0]}" for path, text in committed() for match in [pattern.search(text)] if match]
    assert found == []


def test_the_hook_for_continuous_integration_runs_the_test_command() -> None:
    hook = CHECKOUT / ".ci" / "run"
    assert hook.stat().st_mode & 0o111
    assert re.search(r"^make test\b", hook.read_text(), re.MULTILINE)
    assert re.search(r"^test:", (CHECKOUT / "Makefile").read_text(), re.MULTILINE)
