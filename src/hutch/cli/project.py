"""`hutch project create|ls|rename|rm`."""

from __future__ import annotations

from typing import Annotated

import typer

from hutch.cli import options, output
from hutch.cli.connection import with_client
from hutch.cli.team import Slug
from hutch.client import AsyncClient

app = typer.Typer(no_args_is_help=True, help="Projects of a team.")

OfTeam = Annotated[str | None, typer.Option("--team", help="Id or slug of the team. Default: yours.")]
Project = Annotated[str, typer.Argument(help="Id or slug of a project.")]


@app.command()
def create(slug: Slug, team: OfTeam = None, data_dir: options.DataDir = None, as_json: options.AsJson = False) -> None:
    """Make a project."""

    async def work(client: AsyncClient) -> None:
        made = await client.teams.create_project(slug, team=team)
        output.write_json(made) if as_json else output.write_line(made.id)

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@app.command()
def ls(team: OfTeam = None, data_dir: options.DataDir = None, as_json: options.AsJson = False) -> None:
    """List the projects of a team."""

    async def work(client: AsyncClient) -> None:
        found = await client.teams.list_projects(team=team)
        if as_json:
            output.write_json({"projects": found})
            return
        rows = [(project.id, project.slug, project.team_id, output.moment(project.created_at)) for project in found]
        output.write_table(("ID", "SLUG", "TEAM", "CREATED"), rows)

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@app.command()
def rename(
    project: Project, slug: Slug, team: OfTeam = None, data_dir: options.DataDir = None, as_json: options.AsJson = False
) -> None:
    """Give a project another slug; its id stays."""

    async def work(client: AsyncClient) -> None:
        renamed = await client.teams.rename_project(project, slug, team=team)
        if as_json:
            output.write_json(renamed)

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@app.command()
def rm(
    project: Project,
    team: OfTeam = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Delete a project with its sandboxes, snapshots, drives, images, credentials, tokens and logs. There is no way back."""
    if not yes:
        typer.confirm(f"Delete the project {project} and everything that it has?", abort=True, err=True)

    async def work(client: AsyncClient) -> None:
        await client.teams.delete_project(project, team=team)
        if as_json:
            output.write_json({"deleted": project})

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))
