"""`hutch worker webhook …` and `hutch worker connect`: what others call, and whom a worker logs in to."""

from __future__ import annotations

from typing import Annotated

import typer

from hutch.cli import options, output
from hutch.cli.connection import with_client
from hutch.cli.worker_named import Named, find
from hutch.client import AsyncClient
from hutch.client.models import WorkerWebhook

app = typer.Typer(no_args_is_help=True, help="Webhooks of a worker: their addresses, and whether requests are verified.")


@app.command("ls")
def list_webhooks(worker: Named, data_dir: options.DataDir = None, as_json: options.AsJson = False) -> None:
    """List a worker's webhooks. Whoever knows an address may call it."""

    async def work(client: AsyncClient) -> None:
        found = await client.workers.webhooks((await find(client, worker)).worker_id)
        output.write_json({"webhooks": found}) if as_json else _show(found)

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@app.command()
def verification(
    worker: Named,
    key: Annotated[str, typer.Argument(metavar="KEY", help="Key of a webhook.")],
    enabled: Annotated[bool, typer.Option("--enable/--disable", help="Whether the worker's `verify` is asked.")],
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Switch the verification of a webhook's requests. It holds across deployments, and opens a webhook that is blocked."""

    async def work(client: AsyncClient) -> None:
        found = (await find(client, worker)).worker_id
        changed = await client.workers.change_webhook(found, key, verification=enabled)
        output.write_json({"webhook": changed}) if as_json else _show([changed])

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


def connect(
    worker: Named,
    key: Annotated[str, typer.Argument(metavar="KEY", help="Key of an OAuth capability.")],
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Begin a worker's login with another service: print the address where you agree. Send it to nobody else."""

    async def work(client: AsyncClient) -> None:
        url = await client.workers.connect((await find(client, worker)).worker_id, key)
        output.write_json({"url": url}) if as_json else output.write_line(url)

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


def _show(found: list[WorkerWebhook]) -> None:
    rows = [
        (
            item.key,
            "blocked" if item.blocked else "open",
            "-" if not item.can_verify else "on" if item.verification else "off",
            item.url,
        )
        for item in found
    ]
    output.write_table(("KEY", "STATE", "VERIFICATION", "URL"), rows)
