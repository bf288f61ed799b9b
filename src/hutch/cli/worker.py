"""`hutch worker …`: workers, beside `ntn` or without it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hutch.cli import errors, options, output, worker_project
from hutch.cli.connection import with_client
from hutch.cli.credential import read_secret
from hutch.client import AsyncClient
from hutch.client.models import Worker, WorkerTool
from hutch.errors import BadRequestError, HutchError, NotFoundError

app = typer.Typer(no_args_is_help=True, help="Workers of a project: begin, try and deploy them; runs, tools, secrets.")
env_app = typer.Typer(no_args_is_help=True, help="Secrets that runs find in their environment.")
app.add_typer(env_app, name="env")

app.command()(worker_project.new)
app.command()(worker_project.dev)
app.command()(worker_project.deploy)

MAX_INPUT_BYTES = 8 * 1024 * 1024

Named = Annotated[str, typer.Argument(metavar="WORKER", help="Id, or a name that only one has.")]
Data = Annotated[str | None, typer.Option("--data", "-d", help="JSON; `-` reads it from standard input. Default: {}.")]


@app.command()
def ls(data_dir: options.DataDir = None, as_json: options.AsJson = False) -> None:
    """List the project's workers, newest first."""

    async def work(client: AsyncClient) -> None:
        found = await client.workers.list()
        if as_json:
            output.write_json({"workers": found})
            return
        output.write_table(("ID", "NAME", "UPDATED"), [(item.worker_id, item.name, item.updated_at) for item in found])

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@app.command()
def get(worker: Named, data_dir: options.DataDir = None, as_json: options.AsJson = False) -> None:
    """Show a worker and what it can do."""

    async def work(client: AsyncClient) -> None:
        found = await find(client, worker)
        capabilities = await client.workers.capabilities(found.worker_id)
        if as_json:
            output.write_json({"worker": found, "capabilities": capabilities})
            return
        output.write_table(
            ("ID", "NAME", "CREATED", "UPDATED"), [(found.worker_id, found.name, found.created_at, found.updated_at)]
        )
        output.write_line("")
        output.write_table(("KIND", "KEY"), [(str(item.get("_tag")), str(item.get("key"))) for item in capabilities])

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@app.command()
def rm(
    workers: Annotated[list[str], typer.Argument(metavar="WORKER…", help="Ids, or names that only one has.")],
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Delete workers with their secrets, deployments and runs."""

    async def work(client: AsyncClient) -> None:
        for worker in workers:
            await client.workers.delete((await find(client, worker)).worker_id)
        if as_json:
            output.write_json({"deleted": workers})

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


# -- runs --------------------------------------------------------------------------------------------


@app.command()
def run(
    worker: Named,
    key: Annotated[str, typer.Argument(metavar="KEY", help="Key of a tool, sync, automation or webhook.")],
    data: Data = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Run a capability once and print what it returns, as JSON. Nothing that it returns is applied."""
    value = _input(data, as_json=as_json)

    async def work(client: AsyncClient) -> None:
        found = await find(client, worker)
        output.write_json(await client.workers.run(found.worker_id, key, value))

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@app.command()
def runs(worker: Named, data_dir: options.DataDir = None, as_json: options.AsJson = False) -> None:
    """List the last 200 runs of a worker, newest first."""

    async def work(client: AsyncClient) -> None:
        found = await client.workers.runs((await find(client, worker)).worker_id)
        if as_json:
            output.write_json({"runs": found})
            return
        rows = [
            (
                item.run_id,
                item.name,
                item.started_at,
                item.ended_at or "-",
                "-" if item.exit_code is None else str(item.exit_code),
            )
            for item in found
        ]
        output.write_table(("ID", "NAME", "STARTED", "ENDED", "EXIT"), rows)

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@app.command()
def logs(
    worker: Named,
    run_id: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Id of a run. Default: the last one.")] = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Print what a run wrote."""

    async def work(client: AsyncClient) -> None:
        found = (await find(client, worker)).worker_id
        chosen = run_id
        if chosen is None:
            last = await client.workers.runs(found)
            if not last:
                raise NotFoundError("not_found", "The worker has no runs.")
            chosen = last[0].run_id
        text = await client.workers.logs(found, chosen)
        if as_json:
            output.write_json({"run": chosen, "logs": text})
            return
        for each in text.splitlines():
            output.write_line(each)

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


# -- tools -------------------------------------------------------------------------------------------


@app.command()
def tools(
    worker: Named,
    form: Annotated[
        str | None, typer.Option("--format", help="openai, openai-chat, anthropic or mcp: JSON as a model's API takes it.")
    ] = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """List a worker's tools as agents see them."""

    async def work(client: AsyncClient) -> None:
        found = (await find(client, worker)).worker_id
        if form is not None:
            output.write_json(await client.workers.functions(found, form))
            return
        _show(await client.workers.tools(found), as_json=as_json)

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@app.command()
def tool(
    worker: Named,
    name: Annotated[str, typer.Argument(metavar="TOOL", help="Name or key.")],
    enabled: Annotated[bool | None, typer.Option("--enable/--disable", help="Give it to agents, or take it from them.")] = None,
    confirm: Annotated[
        bool | None, typer.Option("--confirm/--no-confirm", help="Whether a person agrees to each call over MCP.")
    ] = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Change what agents may do with a tool. It holds across deployments."""

    async def work(client: AsyncClient) -> None:
        found = (await find(client, worker)).worker_id
        changed = await client.workers.change_tool(found, name, enabled=enabled, confirm=confirm)
        output.write_json(changed) if as_json else _show([changed], as_json=False)

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@app.command()
def call(
    worker: Named,
    name: Annotated[str, typer.Argument(metavar="TOOL", help="Name or key.")],
    data: Data = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Call a tool as an agent does: what may be null may be left out. Prints what it returns, as JSON."""
    arguments = _input(data, as_json=as_json)

    async def work(client: AsyncClient) -> None:
        found = (await find(client, worker)).worker_id
        output.write_json(await client.workers.call_tool(found, name, arguments))

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


# -- environment -------------------------------------------------------------------------------------


@env_app.command("ls")
def env_ls(
    worker: Named,
    values: Annotated[
        bool, typer.Option("--values", help="With their values, which takes the permission worker.secrets.")
    ] = False,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """List the names of a worker's secrets."""

    async def work(client: AsyncClient) -> None:
        found = (await find(client, worker)).worker_id
        if values:
            secrets = await client.workers.secrets(found)
            if as_json:
                output.write_json({"env": secrets})
                return
            output.write_table(("NAME", "VALUE"), list(secrets.items()))
            return
        names = await client.workers.secret_names(found)
        if as_json:
            output.write_json({"names": names})
            return
        for name in names:
            output.write_line(name)

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@env_app.command("set")
def env_set(
    worker: Named,
    name: Annotated[str, typer.Argument(help="Name of the variable.")],
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="Read the value from this file instead of standard input.")
    ] = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Store a secret or replace it. One line break at the end of the input does not belong to the value."""
    try:
        value = read_secret(f"Value of {name}", file)
    except HutchError as error:
        errors.report(error, as_json=as_json)
        raise typer.Exit(errors.FAILED) from None

    async def work(client: AsyncClient) -> None:
        await client.workers.set_secrets((await find(client, worker)).worker_id, {name: value})
        if as_json:
            output.write_json({"name": name})

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@env_app.command("rm")
def env_rm(
    worker: Named,
    names: Annotated[list[str], typer.Argument(help="Names, as `ls` shows them.")],
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Delete secrets."""

    async def work(client: AsyncClient) -> None:
        found = (await find(client, worker)).worker_id
        for name in names:
            await client.workers.delete_secret(found, name)
        if as_json:
            output.write_json({"deleted": names})

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


# -- common ------------------------------------------------------------------------------------------


async def find(client: AsyncClient, named: str) -> Worker:
    """A worker by its id, or by a name that only one has. Raises `NotFoundError`, and `BadRequestError` for a name of several."""
    workers = await client.workers.list()
    found = [item for item in workers if item.worker_id == named] or [item for item in workers if item.name == named]
    if not found:
        raise NotFoundError("not_found", f"There is no worker '{named[:128]}' in this project. `hutch worker ls` shows them.")
    if len(found) > 1:
        raise BadRequestError("bad_option", f"{len(found)} workers are called '{named[:128]}'; say which by its id.")
    return found[0]


def _input(data: str | None, *, as_json: bool) -> Any:
    """The value of `--data`."""
    try:
        text = sys.stdin.buffer.read(MAX_INPUT_BYTES).decode() if data == "-" else data or "{}"
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        errors.report(BadRequestError("bad_option", f"--data is no JSON: {error}."), as_json=as_json)
        raise typer.Exit(errors.FAILED) from None


def _show(found: list[WorkerTool], *, as_json: bool) -> None:
    if as_json:
        output.write_json({"tools": found})
        return
    rows = [
        (
            item.name,
            item.key,
            "read" if item.read_only else "write",
            "on" if item.enabled else "off",
            "asks" if item.confirm else "",
            item.title,
        )
        for item in found
    ]
    output.write_table(("NAME", "KEY", "KIND", "STATE", "PERSON", "TITLE"), rows)
