"""`hutch audit`: what a sandbox's egress firewall decided."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from hutch.cli import options, output
from hutch.cli.connection import with_client
from hutch.client import AsyncClient


def audit(
    name: options.Name,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new records as they come.")] = False,
    after: Annotated[int, typer.Option("--after", min=0, help="Only records behind this number.")] = 0,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Write the audit of a sandbox, oldest record first; with --json one record per line."""

    async def work(client: AsyncClient) -> None:
        async for record in client.audit.all(name, after=after, follow=follow):
            if as_json:
                print(json.dumps(record), flush=follow)
            else:
                output.write_line(line(record))

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


def line(record: dict[str, Any]) -> str:
    """A record for people: when, what, why, about whom."""
    at = record.get("ts")
    when = output.moment(at) if isinstance(at, int) else str(at or "-")
    about = [str(record[key]) for key in ("method", "name", "path") if record.get(key)]
    about += [str(to) for to in [record.get("dst") or record.get("origDst")] if to]
    status = [f"→ {record['status']}"] if record.get("status") else []
    columns = (("seq", 6), ("kind", 6), ("decision", 14), ("reason", 18))
    seq, *rest = (str(record.get(key) or "-").ljust(width) for key, width in columns)
    words = [seq, when, *rest, *about, *status]
    # What a guest asked for may hold line breaks; one record is one line.
    return " ".join(words).replace("\n", "�").rstrip()
