"""`hutch ls`, `get`, `stop`, `rm`: sandboxes by name."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

import typer

from hutch.cli import errors, options, output
from hutch.cli.connection import with_client
from hutch.client import AsyncClient
from hutch.errors import HutchError


def ls(
    everything: Annotated[bool, typer.Option("--all", "-a", help="Also those without a running session.")] = False,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """List sandboxes, newest first."""

    async def work(client: AsyncClient) -> None:
        query = {} if everything else {"status": "running"}
        found = [sandbox async for sandbox in client.sandboxes.all(**query)]
        if as_json:
            output.write_json({"sandboxes": found})
            return
        rows = [
            (
                sandbox.name,
                sandbox.status,
                output.moment(sandbox.created_at),
                output.moment(sandbox.expires_at),
                sandbox.image.partition("@")[0],
            )
            for sandbox in found
        ]
        output.write_table(("NAME", "STATUS", "CREATED", "EXPIRES", "IMAGE"), rows)

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


def get(name: options.Name, data_dir: options.DataDir = None, as_json: options.AsJson = False) -> None:
    """Show a sandbox and its current session."""

    async def work(client: AsyncClient) -> None:
        found = await client.sandboxes.get(name)
        if as_json:
            output.write_json(found)
            return
        sandbox, session = found.sandbox, found.session
        lines = [
            ("name", sandbox.name),
            ("status", sandbox.status),
            ("image", sandbox.image),
            ("size", f"{sandbox.vcpus} vCPU, {sandbox.memory} MB"),
            ("cwd", sandbox.cwd),
            ("created", output.moment(sandbox.created_at)),
            ("expires", output.moment(sandbox.expires_at)),
            ("session", f"{session.id} ({session.status})"),
        ]
        if session.stop_reason:
            lines.append(("stopped", session.stop_reason))
        if session.active_cpu_duration_ms is not None:
            lines.append(("active CPU", f"{session.active_cpu_duration_ms} ms"))
        lines += [("route", f"{route.port} → {route.url}") for route in found.routes]
        lines += [("tag", f"{key}={value}") for key, value in sandbox.tags.items()]
        for label, text in lines:
            output.write_line(f"{label:<11} {text}")

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


def stop(names: options.Names, data_dir: options.DataDir = None, as_json: options.AsJson = False) -> None:
    """Stop the sessions of sandboxes; the sandboxes stay."""

    async def one(client: AsyncClient, name: str) -> None:
        session = await client.sandboxes.stop((await client.sandboxes.get(name)).session.id)
        if as_json:
            output.write_json(session)
        else:
            used = f", {session.active_cpu_duration_ms} ms of CPU" if session.active_cpu_duration_ms is not None else ""
            output.write_line(f"{name}: {session.status}{used}")

    async def work(client: AsyncClient) -> int:
        return await _each(client, names, one, as_json)

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


def rm(
    names: options.Names,
    missing_ok: Annotated[bool, typer.Option("--force", "-f", help="A sandbox that is not there is no error.")] = False,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Delete sandboxes, running or not."""

    async def one(client: AsyncClient, name: str) -> None:
        try:
            await client.sandboxes.delete(name)
        except HutchError as error:
            if not (missing_ok and error.status == 404):
                raise
        if not as_json:
            output.write_line(name)

    async def work(client: AsyncClient) -> int:
        failed = await _each(client, names, one, as_json)
        if as_json and not failed:
            output.write_json({"deleted": names})
        return failed

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


async def _each(client: AsyncClient, names: list[str], one: Callable[[AsyncClient, str], Awaitable[None]], as_json: bool) -> int:
    """Do `one` for every name, also after one of them failed; the exit code."""
    code = 0
    for name in names:
        try:
            await one(client, name)
        except HutchError as error:
            errors.report(error, as_json=as_json)
            code = errors.exit_code(error, runs_program=False)
    return code
