"""`hutch fork`: sandboxes that begin where another one is."""

from __future__ import annotations

from typing import Annotated

import typer

from hutch.cli import options, output
from hutch.cli.connection import with_client
from hutch.client import AsyncClient


def fork(
    name: options.Name,
    fork_name: Annotated[
        str | None, typer.Option("--name", help="Name of the fork, with `-1` and so on for several; made up when left out.")
    ] = None,
    memory: Annotated[bool, typer.Option("--memory", help="With all processes of the running sandbox.")] = False,
    count: Annotated[int, typer.Option("--count", min=1, max=100, help="How many.")] = 1,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Fork a sandbox, from its current snapshot or with its memory, and print the names of the forks."""

    async def work(client: AsyncClient) -> None:
        made = await client.sandboxes.fork(name, fork_name, memory=memory, count=count)
        if as_json:
            output.write_json({"forks": made})
        else:
            for one in made:
                output.write_line(one.sandbox.name)

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))
