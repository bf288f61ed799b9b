"""`hutch exec`: a program in a sandbox that is there."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from hutch.cli import options, output
from hutch.cli.connection import with_client
from hutch.cli.program import Program, check, run_program
from hutch.client import AsyncClient


def execute(
    name: options.Name,
    argv: Annotated[list[str], typer.Argument(metavar="PROGRAM [ARGUMENT]...", help="What to run, after `--`.")],
    env: options.Env = None,
    cwd: options.Cwd = None,
    sudo: options.Sudo = False,
    interactive: options.Interactive = False,
    tty: options.Tty = False,
    timeout: Annotated[str | None, typer.Option("--timeout", help="Kill the program after this, such as 90s.")] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Leave it running and print the command's id.")] = False,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Run a program in a sandbox and pass its output and exit code on."""

    # The parser leaves the `--` after NAME where it is.
    words = argv[1:] if argv[0] == "--" else argv

    async def work(client: AsyncClient) -> int:
        variables = options.pairs(env, "--env", dict(os.environ))
        limit = options.duration_ms(timeout, "--timeout")
        program = Program(words, cwd, variables, sudo, limit, interactive, tty, as_json)
        check(program)
        session_id = (await client.sandboxes.woken(name)).session.id
        if not detach:
            return await run_program(client, session_id, program)
        command = await client.commands.start(session_id, words, cwd=cwd, env=variables, sudo=sudo, timeout_ms=limit)
        if as_json:
            output.write_json(command)
        else:
            output.write_line(command.id)
        return 0

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json, runs_program=True))
