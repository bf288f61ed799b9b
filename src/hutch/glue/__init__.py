"""What `hutch env` puts in front of the vendor's clients: `redirect.mjs` for Node, `python/sitecustomize.py` for Python.

`npm/` makes a package of `redirect.mjs`, for programs that would rather import it; there is one copy of the code.
"""

import shutil
from pathlib import Path

_HERE = Path(__file__).resolve().parent
REDIRECT_MODULE = _HERE / "redirect.mjs"
PYTHON_PATH = _HERE / "python"
NPM_PACKAGE = _HERE / "npm"


def write_npm_package(directory: Path) -> None:
    """Make a directory that `npm install` takes. Raises `OSError`."""
    directory.mkdir(parents=True, exist_ok=True)
    for source in (NPM_PACKAGE / "package.json", NPM_PACKAGE / "redirect.d.mts", NPM_PACKAGE / "README.md", REDIRECT_MODULE):
        shutil.copyfile(source, directory / source.name)
