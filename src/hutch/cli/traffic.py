"""`hutch traffic`: what passed for a sandbox, by name and by rule."""

from __future__ import annotations

from collections.abc import Iterator

import typer

from hutch.cli import options, output
from hutch.cli.connection import with_client
from hutch.client import AsyncClient
from hutch.client.models import Tally, Traffic

COLUMNS = ("about", "up", "down", "connections", "requests", "denied", "injected")


def traffic(name: options.Name, data_dir: options.DataDir = None, as_json: options.AsJson = False) -> None:
    """Show what passed for the current session of a sandbox, until now or its end, by name and by rule of its policy."""

    async def work(client: AsyncClient) -> None:
        found = await client.audit.traffic(name)
        if as_json:
            output.write_json(found)
        else:
            output.write_table(COLUMNS, lines(found))

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


def lines(found: Traffic) -> Iterator[list[str]]:
    """Cells of a table: both totals, then names, then rules."""
    yield ["payload", str(found.payload.up), str(found.payload.down), *"----"]
    yield ["interface", str(found.interface.egress), str(found.interface.ingress), *"----"]
    for name in found.names:
        # A name is what a guest asked for; one entry is one line.
        yield [name.name.replace("\n", "�"), *_counts(name)]
    for rule in found.rules:
        yield [f"rule {rule.rule}", *_counts(rule)]


def _counts(tally: Tally) -> list[str]:
    return [str(getattr(tally, column)) for column in COLUMNS[1:]]
