"""`hutch snapshot take|ls|tree|rm|verify|export|import`: files that sandboxes left."""

from __future__ import annotations

import sys
from contextlib import aclosing
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hutch.cli import options, output, stdio
from hutch.cli.connection import with_client
from hutch.client import AsyncClient
from hutch.client.models import Snapshot

app = typer.Typer(no_args_is_help=True, help="Snapshots of sandboxes' files, which other sandboxes can begin with.")

COLUMNS = ("ID", "SANDBOX", "STATUS", "SIZE", "MEMORY", "MADE", "CREATED", "EXPIRES", "STORED")
DAY_MS = 86_400_000
CHUNK_BYTES = 256 * 1024


class ArchiveFormat(StrEnum):
    TAR = "tar"
    OCI = "oci"


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

    async def work(client: AsyncClient) -> None:
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

    async def work(client: AsyncClient) -> None:
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

    async def work(client: AsyncClient) -> None:
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

    async def work(client: AsyncClient) -> None:
        for snapshot_id in ids:
            await client.snapshots.delete(snapshot_id)
        if as_json:
            output.write_json({"deleted": ids})

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@app.command()
def verify(snapshot_id: Id, data_dir: options.DataDir = None, as_json: options.AsJson = False) -> None:
    """Read a snapshot's copy in the blob store, and compare it with the files on the machine. 0 when it is whole, else 1."""

    async def work(client: AsyncClient) -> None:
        found = await client.snapshots.verify(snapshot_id)
        if as_json:
            output.write_json(found)
        else:
            beside = "the same as the files on the machine" if found.compared else "not on the machine"
            output.write_line(f"{found.snapshot_id} is whole: {found.files} entries, {found.bytes} bytes, {beside}")

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@app.command()
def export(
    snapshot_id: Id,
    file: Annotated[str, typer.Argument(help="Where to; `-` is standard output.")],
    form: Annotated[ArchiveFormat, typer.Option("--format", help="`oci`: in an OCI image layout.")] = ArchiveFormat.TAR,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Write what a snapshot holds over its image as a tar, laid out as the layers of OCI images are."""

    async def work(client: AsyncClient) -> None:
        if file != "-":
            count = await (await client.get_snapshot(snapshot_id)).export_to(file, form.value)
            if as_json:
                output.write_json({"bytes": count})
            return
        async with aclosing(client.snapshots.export(snapshot_id, form)) as content:
            async for chunk in content:
                await stdio.write_all(sys.stdout.fileno(), chunk)

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@app.command(name="import")
def load(
    file: Annotated[str, typer.Argument(help="A tar as `export` writes it; `-` is standard input.")],
    image: Annotated[str | None, typer.Option("--image", help="What it lies over (default: the server's).")] = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Make a snapshot out of a tar, and print its id."""

    async def work(client: AsyncClient) -> None:
        archive = stdio.chunks(sys.stdin.fileno(), CHUNK_BYTES) if file == "-" else Path(file)
        made = (await client.import_snapshot(archive, image=image)).record
        if as_json:
            output.write_json(made)
        else:
            output.write_line(made.id)

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


def _cells(one: Snapshot) -> tuple[str, ...]:
    expires = output.moment(one.expires_at) if one.expires_at is not None else "-"
    size, memory, made = str(one.size_bytes), str(one.memory_bytes or "-"), one.creation_method
    stored = output.moment(one.stored_at) if one.stored_at is not None else "failed" if one.store_error is not None else "-"
    return one.id, one.source_sandbox_name or "-", one.status, size, memory, made, output.moment(one.created_at), expires, stored
