"""Loads a worker and runs one of its capabilities, or writes its manifest down: the platform's runner for Python.

    python -m hutch.worker ENTRY --manifest FILE     the manifest → FILE
    python -m hutch.worker ENTRY --run               loads, then reads {"key", "context"} from standard input to its end, and
                                                     runs that capability; the result goes to standard output
                                                     (docs/worker-runner.md)

ENTRY is a file, `file.py:name` where the worker is not called `worker`, or a directory: then pyproject.toml may say which
(`[tool.hutch] worker = "src/app.py:mine"`), and worker.py is it otherwise. The exit code is 0 for a success, 1 for a failure.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tomllib
import traceback
from pathlib import Path
from typing import Any, NoReturn

from hutch.worker import running
from hutch.worker.errors import WorkerError
from hutch.worker.registry import Worker

USAGE = 2


def load(entry: str) -> Worker:
    """The worker of a program. Raises `WorkerError`, and whatever the program does."""
    if Path(entry).is_dir():
        entry = _entry(Path(entry))
    path, _, name = entry.partition(":")
    file = Path(path).resolve()
    if not file.is_file():
        raise WorkerError(f"There is no {path}.")
    sys.path.insert(0, str(file.parent))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise WorkerError(f"{path} is no program in Python.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    found = getattr(module, name or "worker", None)
    if not isinstance(found, Worker):
        raise WorkerError(f"{path} has no Worker named `{name or 'worker'}` (`worker = Worker()`).")
    return found


def _entry(directory: Path) -> str:
    """Raises `WorkerError`."""
    project = directory / "pyproject.toml"
    found: Any = "worker.py"
    if project.is_file():
        try:
            found = tomllib.loads(project.read_text(encoding="utf-8")).get("tool", {}).get("hutch", {}).get("worker", found)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, AttributeError) as error:
            raise WorkerError(f"pyproject.toml can't be read: {error}") from error
    if not isinstance(found, str):
        raise WorkerError('pyproject.toml: `worker` of [tool.hutch] should be a text such as "src/app.py:mine".')
    return str(directory / found)


def main(arguments: list[str]) -> int:
    match arguments:
        case [entry, "--manifest", file]:
            manifest = json.dumps(load(entry).manifest, ensure_ascii=False, allow_nan=False)
            Path(file).write_text(manifest, encoding="utf-8")
            return 0
        case [entry, "--run"]:
            worker = load(entry)
            job: dict[str, Any] = json.loads(sys.stdin.buffer.read())
            return running.run(worker, job["key"], job.get("context"))
    print((__doc__ or "").partition("\n\n")[2], file=sys.stderr)
    return USAGE


def start() -> NoReturn:
    """Do what the command line says, and end."""
    code = 1
    try:
        code = main(sys.argv[1:])
    except WorkerError as error:
        print(f"WorkerError: {error}", file=sys.stderr)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:  # noqa: BLE001 - the program's, whatever it is
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    # Programs leave threads behind.
    os._exit(code)


if __name__ == "__main__":
    start()
