"""`hutch member add|ls|set|rm`."""

from __future__ import annotations

from typing import Annotated

import typer

from hutch.cli import options, output
from hutch.cli.connection import with_client
from hutch.cli.project import OfTeam
from hutch.client import AsyncClient

app = typer.Typer(no_args_is_help=True, help="Members of a team and their roles.")

Role = Annotated[str, typer.Option("--role", help="viewer, billing, developer or owner.")]


@app.command()
def add(
    identity: Annotated[str, typer.Argument(help="Address, or subject of a provider.")],
    role: Role,
    name: Annotated[str, typer.Option("--name", help="How they are called.")] = "",
    team: OfTeam = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Add a member and print their id. Make them a token with `hutch token create --member ID`."""

    async def work(client: AsyncClient) -> None:
        made = await client.teams.add_member(identity, role, name=name, team=team)
        output.write_json(made) if as_json else output.write_line(made.id)

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@app.command()
def ls(team: OfTeam = None, data_dir: options.DataDir = None, as_json: options.AsJson = False) -> None:
    """List the members of a team."""

    async def work(client: AsyncClient) -> None:
        found = await client.teams.list_members(team=team)
        if as_json:
            output.write_json({"members": found})
            return
        rows = [
            (
                member.id,
                member.role,
                member.email or member.identity,
                member.name,
                output.moment(member.created_at),
                output.moment(member.last_login_at),
                "disabled" if member.disabled else "",
            )
            for member in found
        ]
        output.write_table(("ID", "ROLE", "IDENTITY", "NAME", "ADDED", "LAST LOGIN", ""), rows)

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@app.command("set")
def change(
    member_id: Annotated[str, typer.Argument(help="Id, as `ls` shows it.")],
    role: Annotated[str | None, typer.Option("--role", help="viewer, billing, developer or owner.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="How they are called.")] = None,
    disabled: Annotated[
        bool | None,
        typer.Option("--disable/--enable", help="Revoke their tokens and let them have no others; or let them again."),
    ] = None,
    team: OfTeam = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Change a member's role or name, or disable them; what their tokens may do changes at once."""

    async def work(client: AsyncClient) -> None:
        changed = await client.teams.change_member(member_id, role=role, name=name, disabled=disabled, team=team)
        if as_json:
            output.write_json(changed)

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@app.command()
def rm(
    ids: Annotated[list[str], typer.Argument(help="Ids, as `ls` shows them.")],
    team: OfTeam = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Remove members and refuse their tokens. The last owner stays."""

    async def work(client: AsyncClient) -> None:
        for member_id in ids:
            await client.teams.remove_member(member_id, team=team)
        if as_json:
            output.write_json({"removed": ids})

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))
