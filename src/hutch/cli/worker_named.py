"""What commands about a worker begin with: which one is meant, and JSON that is given to it."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from hutch.cli import errors
from hutch.client import AsyncClient
from hutch.client.models import Worker
from hutch.errors import BadRequestError, NotFoundError

MAX_INPUT_BYTES = 8 * 1024 * 1024

Named = Annotated[str, typer.Argument(metavar="WORKER", help="Id, or a name that only one has.")]
Data = Annotated[str | None, typer.Option("--data", "-d", help="JSON; `-` reads it from standard input. Default: {}.")]


async def find(client: AsyncClient, named: str) -> Worker:
    """A worker by its id, or by a name that only one has. Raises `NotFoundError`, and `BadRequestError` for a name of several."""
    workers = await client.workers.list()
    found = [item for item in workers if item.worker_id == named] or [item for item in workers if item.name == named]
    if not found:
        raise NotFoundError("not_found", f"There is no worker '{named[:128]}' in this project. `hutch worker ls` shows them.")
    if len(found) > 1:
        raise BadRequestError("bad_option", f"{len(found)} workers are called '{named[:128]}'; say which by its id.")
    return found[0]


def json_input(data: str | None, *, as_json: bool, option: str = "--data") -> Any:
    """The value of an option that is JSON."""
    try:
        text = sys.stdin.buffer.read(MAX_INPUT_BYTES).decode() if data == "-" else data or "{}"
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        errors.report(BadRequestError("bad_option", f"{option} is no JSON: {error}."), as_json=as_json)
        raise typer.Exit(errors.FAILED) from None
