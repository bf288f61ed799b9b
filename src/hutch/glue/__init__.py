"""What `hutch env` puts in front of the vendor's clients: `redirect.mjs` for Node, `python/sitecustomize.py` for Python."""

from pathlib import Path

REDIRECT_MODULE = Path(__file__).resolve().parent / "redirect.mjs"
PYTHON_PATH = Path(__file__).resolve().parent / "python"
