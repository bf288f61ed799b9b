"""`hutch token create|ls|revoke`."""

from __future__ import annotations

from typing import Annotated

import typer

from hutch.cli import options, output
from hutch.cli.connection import with_client
from hutch.client import AsyncClient

app = typer.Typer(no_args_is_help=True, help="Tokens of teams and projects.")


@app.command()
def create(
    team: Annotated[str | None, typer.Option("--team", help="Id or slug; made if it does not exist. Default: yours.")] = None,
    project: Annotated[str | None, typer.Option("--project", help="Id or slug; made if it does not exist.")] = None,
    role: Annotated[
        str | None, typer.Option("--role", help="viewer, billing, developer, owner or admin. Default: the member's, else member.")
    ] = None,
    ttl: Annotated[str | None, typer.Option("--ttl", help="Life, such as 12h or 30d.")] = None,
    name: Annotated[str, typer.Option("--name", help="A remark that `ls` shows.")] = "",
    member: Annotated[str | None, typer.Option("--member", help="Id of the member whose token it is.")] = None,
    scopes: Annotated[
        list[str] | None, typer.Option("--scope", help="A permission of the role; with any, it has no others. Repeatable.")
    ] = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Make a token and print it; it is never shown again."""

    async def work(client: AsyncClient) -> None:
        ttl_ms = options.duration_ms(ttl, "--ttl")
        ttl_s = ttl_ms // 1000 if ttl_ms is not None else None
        made = await client.tokens.create(
            team=team, project=project, role=role, ttl_s=ttl_s, name=name or None, member=member, scopes=scopes
        )
        if as_json:
            output.write_json(made)
        else:
            output.write_line(made.token or "")

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@app.command()
def ls(data_dir: options.DataDir = None, as_json: options.AsJson = False) -> None:
    """List the tokens that you may manage; their values are not kept."""

    async def work(client: AsyncClient) -> None:
        found = await client.tokens.list()
        if as_json:
            output.write_json({"tokens": found})
            return
        rows = [
            (
                item.id,
                item.role,
                item.team_id,
                item.project_id or "-",
                output.moment(item.expires_at),
                "revoked" if item.revoked else "",
                output.moment(item.last_used_at),
                str(item.use_count),
                ",".join(item.scopes) if item.scopes is not None else "-",
                item.name,
            )
            for item in found
        ]
        output.write_table(("ID", "ROLE", "TEAM", "PROJECT", "EXPIRES", "", "LAST USED", "USES", "SCOPES", "NAME"), rows)

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@app.command()
def revoke(
    ids: Annotated[list[str], typer.Argument(help="Ids, as `ls` shows them.")],
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Refuse tokens from now on."""

    async def work(client: AsyncClient) -> None:
        for token_id in ids:
            await client.tokens.revoke(token_id)
        if as_json:
            output.write_json({"revoked": ids})

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))
