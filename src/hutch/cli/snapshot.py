"""`hutch snapshot take|ls|tree|rm`: files that sandboxes left."""

from __future__ import annotations

from typing import Annotated

import typer

from hutch.cli import options, output
from hutch.cli.connection import with_client
from hutch.client import Client
from hutch.client.models import Snapshot

app = typer.Typer(no_args_is_help=True, help="Snapshots of sandboxes' files, which other sandboxes can begin with.")

COLUMNS = ("ID", "SANDBOX", "STATUS", "SIZE", "MADE", "CREATED", "EXPIRES")
DAY_MS = 86_400_000

Id = Annotated[str, typer.Argument(help="As `ls` shows it.", metavar="ID")]


@app.command()
def take(
    name: options.Name,
    keep_running: Annotated[bool, typer.Option("--keep-running", help="Let the sandbox run on.")] = False,
    memory: Annotated[bool, typer.Option("--memory", help="With its processes, which go on in whatever begins with it.")] = False,
    days: Annotated[
        int | None, typer.Option("--days", min=0, help="Days after its last use that it is kept; 0: for ever.")
    ] = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Make a snapshot of a running sandbox, which stops with that, and print its id."""

    async def work(client: Client) -> None:
        found = await client.sandboxes.get(name)
        expiration = days * DAY_MS if days is not None else None
        taken = await client.snapshots.take(found.session.id, expiration_ms=expiration, keep_running=keep_running, memory=memory)
        if as_json:
            output.write_json(taken.snapshot)
        else:
            output.write_line(taken.snapshot.id)

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@app.command()
def ls(
    name: Annotated[str | None, typer.Argument(help="Only those of this sandbox.")] = None,
    deleted: Annotated[bool, typer.Option("--deleted", help="Also deleted ones.")] = False,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """List the project's snapshots, newest first."""

    async def work(client: Client) -> None:
        found = [one async for one in client.snapshots.all(name) if deleted or one.status != "deleted"]
        if as_json:
            output.write_json({"snapshots": found})
        else:
            output.write_table(COLUMNS, [_cells(one) for one in found])

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@app.command()
def tree(
    snapshot_id: Id,
    descendants: Annotated[bool, typer.Option("--descendants", help="What came from it instead.")] = False,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Show what a snapshot came from, nearest first."""

    async def work(client: Client) -> None:
        found = await client.snapshots.tree(snapshot_id, descendants=descendants)
        if as_json:
            output.write_json(found)
        else:
            output.write_table((*COLUMNS, "OF"), [(*_cells(node.snapshot), node.count) for node in found.snapshots])

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@app.command()
def rm(
    ids: Annotated[list[str], typer.Argument(help="As `ls` shows them.", metavar="ID…")],
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Delete snapshots. Sandboxes that began with them are not touched."""

    async def work(client: Client) -> None:
        for snapshot_id in ids:
            await client.snapshots.delete(snapshot_id)
        if as_json:
            output.write_json({"deleted": ids})

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


def _cells(one: Snapshot) -> tuple[str, ...]:
    expires = output.moment(one.expires_at) if one.expires_at is not None else "-"
    size, made = str(one.size_bytes), one.creation_method
    return one.id, one.source_sandbox_name, one.status, size, made, output.moment(one.created_at), expires
