"""`hutch run`: a sandbox for one program."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Annotated

import typer

from hutch.cli import create, options, output
from hutch.cli.connection import with_client
from hutch.cli.program import Program, check, run_program
from hutch.client import AsyncClient
from hutch.errors import HutchError, NotFoundError

CLEAN_UP_S = 30.0


def run(
    argv: Annotated[list[str], typer.Argument(metavar="PROGRAM [ARGUMENT]...", help="What to run, after `--`.")],
    image: options.Image = None,
    runtime: options.Runtime = None,
    vcpus: options.Vcpus = None,
    timeout: options.Timeout = None,
    env: options.Env = None,
    network_policy: options.NetworkPolicy = None,
    cwd: options.Cwd = None,
    sudo: options.Sudo = False,
    interactive: options.Interactive = False,
    tty: options.Tty = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the sandbox behind and say its name.")] = False,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Run a program in a new sandbox, pass its output and exit code on, and delete the sandbox."""
    program = Program(argv, cwd, {}, sudo, None, interactive, tty, as_json)

    async def work(client: AsyncClient) -> int:
        check(program)
        wanted = create.fields(image, runtime, vcpus, timeout, env, network_policy)
        # Shielded: a sandbox whose name never arrived here could not be deleted.
        creating = asyncio.ensure_future(client.sandboxes.create(**wanted, persistent=False))
        try:
            created = await asyncio.shield(creating)
        except asyncio.CancelledError:
            with contextlib.suppress(HutchError, TimeoutError):
                async with asyncio.timeout(CLEAN_UP_S):
                    await _delete(client, (await creating).sandbox.name)
            raise
        name = created.sandbox.name
        try:
            code = await run_program(client, created.session.id, program)
        except BaseException:
            await _clean_up(client, name)
            raise
        if keep:
            output.note(f"the sandbox is {name}")
        else:
            await _clean_up(client, name)
        return code

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json, runs_program=True))


async def _clean_up(client: AsyncClient, name: str) -> None:
    try:
        async with asyncio.timeout(CLEAN_UP_S):
            await _delete(client, name)
    except (HutchError, TimeoutError) as error:
        # The program's outcome matters more; the sandbox still ends with its timeout.
        output.note(f"the sandbox {name} could not be deleted and ends with its timeout: {error}")


async def _delete(client: AsyncClient, name: str) -> None:
    with contextlib.suppress(NotFoundError):
        await client.sandboxes.delete(name)
