"""`hutch drive create|ls|get|fork|rm`: file systems that outlive sandboxes."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from hutch.cli import options, output
from hutch.cli.connection import with_client
from hutch.client import AsyncClient
from hutch.client.models import Drive
from hutch.errors import BadRequestError

app = typer.Typer(no_args_is_help=True, help="Drives: named file systems that sandboxes mount.")

COLUMNS = ("NAME", "SIZE", "REGION", "SANDBOX", "CREATED", "ID")
_SIZE = re.compile(r"([0-9]{1,15})([kmgt]i?b?|b)?", re.IGNORECASE)
_UNITS = {"": 1, "b": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}

Name = Annotated[str, typer.Argument(help="Name of a drive.")]


def size_bytes(text: str | None) -> int | None:
    """`10g`, `512MiB` or a number of bytes. Raises `BadRequestError`."""
    if text is None:
        return None
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise BadRequestError(
            "bad_option", f"--size is {text!r}; it should be bytes, or a number with k, m, g or t, such as 10g."
        )
    return int(match[1]) * _UNITS[(match[2] or "")[:1].lower()]


def mounts(items: list[str] | None) -> dict[str, dict[str, str]] | None:
    """`DRIVE:PATH` and `DRIVE:PATH:ro` items as the API has them. Raises `BadRequestError`."""
    found: dict[str, dict[str, str]] = {}
    for item in items or []:
        drive, _, path = item.partition(":")
        if not drive or not path:
            raise BadRequestError("bad_option", f"--mount is {item!r}; it should be DRIVE:PATH, or DRIVE:PATH:ro.")
        read_only = path.endswith(":ro")
        found[path.removesuffix(":ro")] = {"drive": drive, "mode": "snapshot" if read_only else "read-write"}
    return found or None


@app.command()
def create(
    name: Name,
    size: Annotated[str | None, typer.Option("--size", help="Most that it holds, such as 10g; 1 TiB when left out.")] = None,
    region: Annotated[str | None, typer.Option("--region", help="Region; sandboxes that mount it must name the same.")] = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Make a drive and print its name; one that there is stays as it is."""

    async def work(client: AsyncClient) -> None:
        made = await client.drives.get_or_create(name, max_size_bytes=size_bytes(size), region=region)
        _print(made, as_json)

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@app.command()
def ls(data_dir: options.DataDir = None, as_json: options.AsJson = False) -> None:
    """List the project's drives, newest first, and which sandbox writes to them."""

    async def work(client: AsyncClient) -> None:
        found = [drive async for drive in client.drives.all()]
        if as_json:
            output.write_json({"drives": found})
        else:
            output.write_table(COLUMNS, [_cells(drive) for drive in found])

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@app.command()
def get(name: Name, data_dir: options.DataDir = None, as_json: options.AsJson = False) -> None:
    """Show a drive and how much it holds."""

    async def work(client: AsyncClient) -> None:
        drive = await client.drives.get(name)
        if as_json:
            output.write_json(drive)
            return
        used = str(drive.used_bytes) if drive.used_bytes is not None else "-"
        output.write_table((*COLUMNS, "USED"), [(*_cells(drive), used)])

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@app.command()
def fork(
    source: Name,
    name: Annotated[str, typer.Argument(help="Name of the new drive.")],
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Make a drive that begins with what another one holds now, and print its name."""

    async def work(client: AsyncClient) -> None:
        _print(await client.drives.fork(source, name), as_json)

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@app.command()
def rm(
    names: Annotated[list[str], typer.Argument(help="Names of drives.", metavar="NAME…")],
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Delete drives and what they hold. Refused while a sandbox has them."""

    async def work(client: AsyncClient) -> None:
        for name in names:
            await client.drives.delete(name)
        if as_json:
            output.write_json({"deleted": names})

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


def _print(drive: Drive, as_json: bool) -> None:
    if as_json:
        output.write_json(drive)
    else:
        output.write_line(drive.name)


def _cells(drive: Drive) -> tuple[str, ...]:
    holder = drive.current_sandbox_name or "-"
    return drive.name, str(drive.max_size_bytes), drive.region, holder, output.moment(drive.created_at), drive.id
