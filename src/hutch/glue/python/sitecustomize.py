"""Points the vendor's Python SDK at the server in `HUTCH_URL`; on `PYTHONPATH` through `hutch env`.

The SDK has an option for its base URL but no environment variable. This waits for the SDK to be imported and then replaces its
default, so that programs need no change and other programs lose no time. The SDK of the first API (`vercel` before 0.6),
which other packages are pinned to, has its default elsewhere. Another `sitecustomize` further down the path runs too.
"""

import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_OPTIONS = "vercel.sandbox._internal.options"
_FIRST_API = "vercel._internal.sandbox.core"


class _Patched(Loader):
    """Runs a module as its own loader would, then changes the default."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        base = os.environ["HUTCH_URL"].rstrip("/").removesuffix("/api")
        if module.__name__ == _OPTIONS:
            module.DEFAULT_SANDBOX_API_BASE_URL = f"{base}/api"  # type: ignore[attr-defined]
            return
        for client in ("SyncSandboxOpsClient", "AsyncSandboxOpsClient"):
            getattr(module, client).__init__.__kwdefaults__["host"] = f"{base}/api"


class _Finder(MetaPathFinder):
    """Finds the one module that matters, as everybody else would. No process has both SDKs."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname not in (_OPTIONS, _FIRST_API):
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Patched(spec.loader)
        return spec


def _run_next() -> None:
    """Run the `sitecustomize` that this one hides, if there is one."""
    here = os.path.dirname(os.path.abspath(__file__))
    rest = [entry for entry in sys.path if os.path.abspath(entry or ".") != here]
    spec = PathFinder.find_spec("sitecustomize", rest)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


if os.environ.get("HUTCH_URL"):
    sys.meta_path.insert(0, _Finder())
_run_next()
