"""`hutch logs`: what a command wrote."""

from __future__ import annotations

from typing import Annotated

import typer

from hutch.cli import options, output
from hutch.cli.connection import with_client
from hutch.cli.program import write_output
from hutch.client import AsyncClient
from hutch.errors import NotFoundError


def logs(
    name: options.Name,
    command: Annotated[str | None, typer.Argument(help="Id of a command. Default: the latest one.")] = None,
    list_them: Annotated[bool, typer.Option("--list", "-l", help="List the session's commands instead.")] = False,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Write a command's output from its start, and follow it until it ends."""

    async def work(client: AsyncClient) -> None:
        session_id = (await client.sandboxes.get(name)).session.id
        wanted = command
        if list_them or wanted is None:
            commands = await client.commands.list(session_id)
            if list_them:
                if as_json:
                    output.write_json({"commands": commands})
                    return
                rows = [
                    (
                        item.id,
                        "running" if item.exit_code is None else str(item.exit_code),
                        output.moment(item.started_at),
                        " ".join([item.name, *item.args]),
                    )
                    for item in commands
                ]
                output.write_table(("ID", "EXIT", "STARTED", "COMMAND"), rows)
                return
            if not commands:
                raise NotFoundError("not_found", f"No command was started in sandbox '{name}'.")
            wanted = commands[0].id
        async for event in client.commands.logs(session_id, wanted):
            if as_json:
                output.write_json({"stream": event.stream, "data": event.text})
            else:
                await write_output(event)

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))
