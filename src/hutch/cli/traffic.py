"""`hutch traffic`: what passed for a sandbox, by name and by rule."""

from __future__ import annotations

import typer

from hutch.cli import options, output
from hutch.cli.connection import with_client
from hutch.client import Client

COLUMNS = ("up", "down", "connections", "requests", "denied", "injected")


def traffic(name: options.Name, data_dir: options.DataDir = None, as_json: options.AsJson = False) -> None:
    """Show what passed for a running sandbox, in bytes, by name and by rule of its policy."""

    async def work(client: Client) -> None:
        found = await client.audit.traffic(name)
        if as_json:
            output.write_json(found)
            return
        entries = [(entry["name"], entry) for entry in found["names"]]
        entries += [(f"rule {entry['rule']}", entry) for entry in found["rules"]]
        interface = {"up": found["interface"]["egress"], "down": found["interface"]["ingress"]}
        rows = [("payload", found["payload"]), ("interface", interface), *entries]
        output.write_table(
            ["about", *COLUMNS],
            # A name is what a guest asked for; one entry is one line.
            [[about.replace("\n", "�"), *(str(entry.get(column, "-")) for column in COLUMNS)] for about, entry in rows],
        )

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))
