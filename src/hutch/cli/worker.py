"""`hutch worker …`: workers, beside `ntn` or without it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from hutch.cli import errors, options, output, usage, worker_project, worker_syncs, worker_webhooks
from hutch.cli.connection import with_client
from hutch.cli.credential import read_secret
from hutch.cli.worker_named import Data, Named, find, json_input
from hutch.client import AsyncClient
from hutch.client.models import WorkerTool
from hutch.errors import HutchError, NotFoundError

app = typer.Typer(no_args_is_help=True, help="Workers of a project: begin, try and deploy them; runs, tools, secrets.")
env_app = typer.Typer(no_args_is_help=True, help="Secrets that runs find in their environment.")
app.add_typer(env_app, name="env")
app.add_typer(worker_syncs.app, name="sync")
app.add_typer(worker_syncs.database_app, name="database")
app.add_typer(worker_webhooks.app, name="webhook")
app.command("connect")(worker_webhooks.connect)

app.command()(worker_project.new)
app.command()(worker_project.dev)
app.command()(worker_project.deploy)

LOOK_S = 1.0
RunId = Annotated[str, typer.Argument(metavar="RUN", help="Id of a run, as `runs` shows it.")]


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


@app.command()
def rename(
    worker: Named,
    name: Annotated[str, typer.Argument(help="The new name.")],
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Give a worker another name. Its id and the addresses of its webhooks stay."""

    async def work(client: AsyncClient) -> None:
        found = (await find(client, worker)).worker_id
        await client.workers.rename(found, name)
        if as_json:
            output.write_json({"id": found, "name": name})

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@app.command("usage")
def show_usage(
    worker: Named,
    start: Annotated[str | None, typer.Option("--from", help="Date or time (ISO 8601, UTC). Default: 30 days ago.")] = None,
    end: Annotated[str | None, typer.Option("--to", help="Date or time, exclusive. Default: now.")] = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Show what a worker's builds and runs used, and what it costs."""

    async def work(client: AsyncClient) -> None:
        found = await find(client, worker)
        report = await client.usage.report(start=start, end=end, group_by="worker")
        mine = [group for group in report.groups if group.key == found.worker_id]
        if as_json:
            output.write_json({"worker": found.worker_id, "usage": mine[0] if mine else None, "currency": report.currency})
            return
        output.write_table(usage.COLUMNS, [usage.line(found.name, group, report.currency) for group in mine])

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
    value = json_input(data, as_json=as_json)

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
    follow: Annotated[
        bool,
        typer.Option("--follow", "-f", help="Wait for the end of the run; without RUN go on with the runs after it, for ever."),
    ] = False,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Print what a run wrote. It is there when the run has ended."""

    async def work(client: AsyncClient) -> None:
        found = (await find(client, worker)).worker_id
        if follow and run_id is None:
            await _follow(client, found, as_json=as_json)
            return
        chosen = run_id
        if chosen is None:
            last = await client.workers.runs(found)
            if not last:
                raise NotFoundError("not_found", "The worker has no runs.")
            chosen = last[0].run_id
        while follow and (await client.workers.run_details(found, chosen)).ended_at is None:  # noqa: ASYNC110 - it ends elsewhere
            await asyncio.sleep(LOOK_S)
        await _print_log(client, found, chosen, as_json=as_json)

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


async def _follow(client: AsyncClient, worker_id: str, *, as_json: bool) -> None:
    """Print logs as runs end, from the last one on."""
    printed: set[str] | None = None
    while True:
        runs = await client.workers.runs(worker_id)
        if printed is None:
            printed = {run.run_id for run in runs[1:] if run.ended_at is not None}
        for run in reversed(runs):
            if run.ended_at is not None and run.run_id not in printed:
                if not as_json:
                    output.note(f"{run.name} {run.run_id} ended with {run.exit_code}")
                await _print_log(client, worker_id, run.run_id, as_json=as_json)
        printed = {run.run_id for run in runs if run.ended_at is not None}
        await asyncio.sleep(LOOK_S)


async def _print_log(client: AsyncClient, worker_id: str, run_id: str, *, as_json: bool) -> None:
    text = await client.workers.logs(worker_id, run_id)
    if as_json:
        output.write_json({"run": run_id, "logs": text})
        return
    for each in text.splitlines():
        output.write_line(each)


@app.command()
def result(worker: Named, run_id: RunId, data_dir: options.DataDir = None, as_json: options.AsJson = False) -> None:
    """Show a run: its input, its output or error, where its time went, and what it cost."""

    async def work(client: AsyncClient) -> None:
        run = await client.workers.run_details((await find(client, worker)).worker_id, run_id)
        if as_json:
            output.write_json({"run": run})
            return
        cost = usage.money(run.cost["amount_nano"], run.cost["currency"]) if run.cost is not None else "-"
        rows = [
            ("run", run.id),
            ("name", run.name),
            ("started", output.moment(run.started_at)),
            ("ended", output.moment(run.ended_at)),
            ("exit", output.text_of(run.exit_code)),
            *((name.removesuffix("_ms"), f"{value} ms") for name, value in run.phases.items()),
            ("cost", cost),
            ("input", output.json_text(run.input)),
            ("output", output.json_text(run.output)),
        ]
        output.write_table(("FIELD", "VALUE"), rows)

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@app.command()
def replay(
    worker: Named,
    run_id: RunId,
    deployment: Annotated[
        str | None, typer.Option("--deployment", help="Id of another deployment than the one that serves.")
    ] = None,
    deny_network: Annotated[
        bool, typer.Option("--deny-network", help="It reaches nothing, so that it changes nothing elsewhere.")
    ] = False,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Run a capability once more with the input of a run, and print what it returns, as JSON. Nothing of it is applied."""

    async def work(client: AsyncClient) -> int:
        found = (await find(client, worker)).worker_id
        run = await client.workers.replay(found, run_id, deployment=deployment, deny_network=deny_network)
        output.write_json({"run": run} if as_json else run.output)
        return 0 if run.exit_code == 0 else errors.FAILED

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@app.command()
def cancel(worker: Named, run_id: RunId, data_dir: options.DataDir = None, as_json: options.AsJson = False) -> None:
    """End a run that goes on. What it did elsewhere is done."""

    async def work(client: AsyncClient) -> None:
        await client.workers.cancel((await find(client, worker)).worker_id, run_id)
        if as_json:
            output.write_json({"canceled": run_id})

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
    arguments = json_input(data, as_json=as_json)

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
