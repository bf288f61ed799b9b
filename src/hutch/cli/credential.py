"""`hutch credential set|ls|rm`. A value never stands on the command line, where every process of the machine could read it."""

from __future__ import annotations

import getpass
import sys
from pathlib import Path
from typing import Annotated

import typer

from hutch.cli import errors, options, output
from hutch.cli.connection import with_client
from hutch.client import AsyncClient
from hutch.errors import BadRequestError, HutchError

app = typer.Typer(no_args_is_help=True, help="Stored credentials of a project, which network policies name.")

MAX_INPUT_BYTES = 64 * 1024

Name = Annotated[str, typer.Argument(help="Letters, digits, _ and -.")]


@app.command("set")
def set_value(
    name: Name,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="Read the value from this file instead of standard input.")
    ] = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Store a credential or replace it. One line break at the end of the input does not belong to the value."""
    try:
        value = read_secret(f"Value of {name}", file)
    except HutchError as error:
        errors.report(error, as_json=as_json)
        raise typer.Exit(errors.FAILED) from None

    async def work(client: AsyncClient) -> None:
        await client.credentials.put(name, value)
        if as_json:
            output.write_json({"name": name})

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@app.command()
def ls(data_dir: options.DataDir = None, as_json: options.AsJson = False) -> None:
    """List the project's credentials; their values are never shown."""

    async def work(client: AsyncClient) -> None:
        found = await client.credentials.list()
        if as_json:
            output.write_json({"credentials": found})
            return
        rows = [(item.name, output.moment(item.created_at), output.moment(item.updated_at)) for item in found]
        output.write_table(("NAME", "CREATED", "UPDATED"), rows)

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@app.command()
def rm(
    names: Annotated[list[str], typer.Argument(help="Names, as `ls` shows them.")],
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Delete credentials. Rules that name them are closed from now on."""

    async def work(client: AsyncClient) -> None:
        for name in names:
            await client.credentials.delete(name)
        if as_json:
            output.write_json({"deleted": names})

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


def read_secret(name: str, file: Path | None) -> str:
    """What standard input or a file holds; at a terminal it is asked for and not shown. Raises `BadRequestError`."""
    if file is None and sys.stdin.isatty():
        return getpass.getpass(f"{name}: ")
    try:
        if file is None:
            raw = sys.stdin.buffer.read(MAX_INPUT_BYTES)
        else:
            with file.open("rb") as source:
                raw = source.read(MAX_INPUT_BYTES)
    except OSError as error:
        raise BadRequestError("not_readable", f"{file or 'Standard input'} can't be read: {error.strerror}.") from error
    # The server says what a value may be; nothing that it would refuse gets lost here.
    return raw.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8", "replace")
