"""`hutch team create|ls|rename|rm`."""

from __future__ import annotations

from typing import Annotated

import typer

from hutch.cli import options, output
from hutch.cli.connection import with_client
from hutch.client import AsyncClient

app = typer.Typer(no_args_is_help=True, help="Teams.")

Team = Annotated[str, typer.Argument(help="Id or slug of a team.")]
Slug = Annotated[str, typer.Argument(help="Lowercase letters, digits and hyphens.")]


@app.command()
def create(slug: Slug, data_dir: options.DataDir = None, as_json: options.AsJson = False) -> None:
    """Make a team; that takes an administrator's token."""

    async def work(client: AsyncClient) -> None:
        made = await client.teams.create(slug)
        output.write_json(made) if as_json else output.write_line(made.id)

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@app.command()
def ls(data_dir: options.DataDir = None, as_json: options.AsJson = False) -> None:
    """List your team; all teams for administrators."""

    async def work(client: AsyncClient) -> None:
        found = await client.teams.list()
        if as_json:
            output.write_json({"teams": found})
            return
        output.write_table(("ID", "SLUG", "CREATED"), [(team.id, team.slug, output.moment(team.created_at)) for team in found])

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@app.command()
def rename(team: Team, slug: Slug, data_dir: options.DataDir = None, as_json: options.AsJson = False) -> None:
    """Give a team another slug; its id stays."""

    async def work(client: AsyncClient) -> None:
        renamed = await client.teams.rename(team, slug)
        if as_json:
            output.write_json(renamed)

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@app.command()
def rm(
    team: Team,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Delete a team with its sandboxes, snapshots, drives, images, credentials, tokens and logs. There is no way back."""
    if not yes:
        typer.confirm(f"Delete the team {team} and everything that it has?", abort=True, err=True)

    async def work(client: AsyncClient) -> None:
        await client.teams.delete(team)
        if as_json:
            output.write_json({"deleted": team})

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))
