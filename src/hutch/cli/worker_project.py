"""`hutch worker new|dev|deploy`: a worker's project on somebody's own machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any

import typer

from hutch.cli import errors, options, output
from hutch.cli.connection import with_client
from hutch.client import AsyncClient, projects
from hutch.errors import BadRequestError, HutchError, NotFoundError, RunFailedError
from hutch.workers import manifest as manifests
from hutch.workers.changes import Batch, Upsert
from hutch.workers.envelope import scan
from hutch.workers.languages import ENTRY, NODE, OWN, OWN_PROGRAM, PYTHON, UNKNOWN, detected
from hutch.workers.manifest import Capability
from hutch.workers.outcome import Failure, judge

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
Directory = Annotated[Path, typer.Option("--dir", help="The project. Default: here.")]


def new(
    name: Annotated[str, typer.Argument(help="Name of the worker, and of the directory that is made.")],
    python: Annotated[bool, typer.Option("--python", help="In Python rather than in TypeScript.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Begin a project: a sync and a tool that can be deployed as they are."""
    try:
        if NAME.fullmatch(name) is None:
            raise BadRequestError("bad_option", f'NAME should match pattern "^{NAME.pattern}$".')
        target = Path(name)
        if target.exists():
            raise BadRequestError("bad_option", f"There is a {name} already.")
        source = files("hutch.cli") / "worker_templates" / ("python" if python else "typescript")
        _copy(source, target, name)
    except HutchError as error:
        errors.report(error, as_json=as_json)
        raise typer.Exit(errors.FAILED) from None
    if as_json:
        output.write_json({"directory": name})
        return
    steps = [
        f"cd {name}",
        *([] if python else ["npm install"]),
        'hutch worker dev greet -d \'{"name": "you"}\'',
        "hutch worker deploy",
    ]
    output.write_line("\n".join(steps))


def _copy(source: Traversable, target: Path, name: str) -> None:
    target.mkdir()
    for item in source.iterdir():
        if item.is_dir():
            if item.name != "__pycache__":
                _copy(item, target / item.name, name)
        else:
            (target / item.name).write_text(item.read_text(encoding="utf-8").replace("NAME", name), encoding="utf-8")
    if target == Path(name):
        (target / ".gitignore").write_text("node_modules/\ndist/\n.venv/\n__pycache__/\n.env\n", encoding="utf-8")


def deploy(
    directory: Directory = Path(),
    name: Annotated[str | None, typer.Option("--name", help="Of a new worker. Default: the directory's.")] = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Deploy a project, the first time as a new worker. `workers.json` in it says which worker it is from then on."""

    def told(stream: str, text: str) -> None:
        sys.stderr.write(text if text.endswith("\n") else f"{text}\n")

    async def work(client: AsyncClient) -> None:
        worker_id = projects.known(directory)
        if worker_id is not None and name is not None:
            raise BadRequestError(
                "bad_option", f"--name is for new workers; {directory / projects.STATE} says that this is one already."
            )
        before = await _kinds(client, worker_id)
        worker = await client.workers.deploy(directory, name=name or directory.resolve().name, worker_id=worker_id, told=told)
        after = await _kinds(client, worker.worker_id)
        if as_json:
            output.write_json({"worker": worker, "capabilities": after})
            return
        output.write_line(f"{'Updated' if worker_id else 'Created'} {worker.name} ({worker.worker_id})")
        for key, kind in (before | after).items():
            mark = " " if key in before and key in after else "+" if key in after else "-"
            output.write_line(f"{mark} {kind}  {key}")

    async def _kinds(client: AsyncClient, worker_id: str | None) -> dict[str, str]:
        found = await client.workers.capabilities(worker_id) if worker_id else []
        return {str(item["key"]): str(item["_tag"]) for item in found}

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


# -- on this machine ---------------------------------------------------------------------------------


def dev(
    key: Annotated[str | None, typer.Argument(metavar="KEY", help="What is run. Without it: what there is.")] = None,
    data: Annotated[str | None, typer.Option("--data", "-d", help="JSON of the input; of a sync: of its state.")] = None,
    directory: Directory = Path(),
    as_json: options.AsJson = False,
) -> None:
    """Run a capability of a project on this machine, without a server: with its environment and its network, and no isolation. A
    sync is run to the end of its cycle, and its rows are shown; nothing is written anywhere. `.env` is read."""
    try:
        value = json.loads(data) if data is not None else None
        project = Project(directory)
        manifest = project.manifest()
        if key is None:
            rows = [(item.tag, item.key) for item in manifest.capabilities]
            output.write_json([item.declared for item in manifest.capabilities]) if as_json else output.write_table(
                ("KIND", "KEY"), rows
            )
            return
        capability = manifest.capability(key)
        if capability is None:
            raise NotFoundError("not_found", f"The worker has no capability '{key[:64]}'.")
        if capability.tag == "sync":
            project.sync(capability, value, as_json=as_json)
        else:
            output.write_json(project.run(capability, {} if value is None else value))
    except ValueError as error:
        errors.report(BadRequestError("bad_option", f"--data is no JSON: {error}."), as_json=as_json)
        raise typer.Exit(errors.FAILED) from None
    except HutchError as error:
        errors.report(error, as_json=as_json)
        raise typer.Exit(errors.FAILED) from None


class Project:
    """A project that is run here."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        names = " ".join(path.name for path in directory.iterdir()) if directory.is_dir() else ""
        language = detected(names)
        if language is None:
            raise BadRequestError("bad_option", UNKNOWN)
        self._start = {NODE: self._node, PYTHON: self._python, OWN: self._own}[language]()

    def _node(self) -> list[str]:
        if not (self._directory / "node_modules").is_dir():
            raise BadRequestError("bad_option", "There are no node_modules; run `npm install` first.")
        if (
            subprocess.run(["npm", "run", "--silent", "build"], cwd=self._directory, stdout=sys.stderr, check=False).returncode
            != 0
        ):
            raise RunFailedError("BuildFailed", "`npm run build` failed.")
        return ["node", str(files("hutch.workers") / "runner.mjs"), str((self._directory / ENTRY).resolve())]

    def _python(self) -> list[str]:
        own = self._directory / ".venv" / "bin" / "python"
        python = str(own.absolute()) if own.exists() else sys.executable
        return [python, "-u", "-m", "hutch.worker", str(self._directory.resolve())]

    def _own(self) -> list[str]:
        return [str((self._directory / OWN_PROGRAM).resolve())]

    def _environment(self) -> dict[str, str]:
        found = dict(os.environ)
        # `hutch.worker` is found by any Python, also one of a virtual environment that does not have it.
        found["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(str(files("hutch"))).parent), found.get("PYTHONPATH", "")]))
        secrets = self._directory / ".env"
        if secrets.is_file():
            for line in secrets.read_text(encoding="utf-8").splitlines():
                name, mark, value = line.partition("=")
                if mark and not name.lstrip().startswith("#"):
                    found[name.strip()] = value.strip().strip("\"'")
        return found

    def manifest(self) -> manifests.Manifest:
        """Raises `HutchError`."""
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / "manifest.json"
            command = [*self._start, "--manifest", str(file)]
            ended = subprocess.run(command, cwd=self._directory, env=self._environment(), stdout=sys.stderr, check=False)
            if ended.returncode != 0 or not file.exists():
                raise RunFailedError("ManifestError", "The worker can't be loaded; the lines above say why.")
            return manifests.parse(file.read_bytes())

    def run(self, capability: Capability, context: Any) -> Any:
        """What a capability returns, as it did. Raises `RunFailedError`."""
        return self._run(capability, context)[0]

    def _run(self, capability: Capability, context: Any) -> tuple[Any, Any]:
        job = json.dumps({"key": capability.key, "context": context}).encode()
        ended = subprocess.run(
            [*self._start, "--run"], cwd=self._directory, env=self._environment(), input=job, stdout=subprocess.PIPE, check=False
        )
        printed = scan(ended.stdout)
        for line in ended.stdout.splitlines():
            if not line.startswith(b"<__notion_") and line:
                sys.stderr.write(line.decode("utf-8", "replace") + "\n")
        outcome = judge(capability.tag, printed, exit_code=ended.returncode)
        if isinstance(outcome, Failure):
            raise RunFailedError(outcome.name, outcome.message)
        assert printed.envelope is not None
        return printed.envelope.value, outcome.value

    def sync(self, capability: Capability, state: Any, *, as_json: bool) -> None:
        """Show what a cycle from a state returns. Raises `RunFailedError`."""
        pacers: dict[str, Any] = {}
        changes: list[Any] = []
        while True:
            value, batch = self._run(capability, {"state": state, "pacers": pacers})
            assert isinstance(batch, Batch)
            changes += batch.changes
            state, pacers = batch.state, value.get("nextPacerStates") or {}
            if not batch.has_more:
                break
        if as_json:
            output.write_json({"changes": changes, "state": state})
            return
        rows = [
            ("write" if isinstance(change, Upsert) else "delete", getattr(change, "key", ""), _shown(change))
            for change in changes
        ]
        output.write_table(("CHANGE", "KEY", "PROPERTIES"), rows)


def _shown(change: Any) -> str:
    return json.dumps(change.properties, ensure_ascii=False) if isinstance(change, Upsert) else ""
