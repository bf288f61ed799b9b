"""`hutch worker sync …` and `hutch worker database …`: what syncs do, and what they brought."""

from __future__ import annotations

import contextlib
import enum
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from hutch.cli import errors, options, output
from hutch.cli.connection import with_client
from hutch.cli.credential import read_secret
from hutch.cli.worker_named import Named, find, json_input
from hutch.client import AsyncClient
from hutch.client.models import NotionTarget, WorkerSync
from hutch.errors import BadRequestError, HutchError, NotFoundError

app = typer.Typer(no_args_is_help=True, help="Syncs of a worker: how they do, cycles, previews, schedules.")
database_app = typer.Typer(no_args_is_help=True, help="Databases that syncs write to.")

Key = Annotated[str, typer.Argument(metavar="KEY", help="Key of a sync.")]
Database = Annotated[str, typer.Argument(metavar="DATABASE", help="Key of a database.")]
Filter = Annotated[list[str] | None, typer.Option("--filter", help="PROPERTY=TEXT. Repeatable.")]
Sort = Annotated[str | None, typer.Option("--sort", help="A property; with `-` before it from the largest on.")]
View = Annotated[str | None, typer.Option("--view", help="Name of a view.")]


class Form(enum.StrEnum):
    JSON = "json"
    CSV = "csv"


# -- syncs -------------------------------------------------------------------------------------------


@app.command()
def status(
    worker: Named,
    key: Annotated[str | None, typer.Argument(metavar="[KEY]", help="Key of a sync. Default: all.")] = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Show how syncs do."""

    async def work(client: AsyncClient) -> None:
        details = await client.workers.details((await find(client, worker)).worker_id)
        found = [sync for sync in details.syncs if key in (None, sync.key)]
        if key is not None and not found:
            raise NotFoundError("not_found", f"The worker has no sync '{key[:64]}'.")
        output.write_json({"syncs": found}) if as_json else _show(found)

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@app.command()
def trigger(
    worker: Named,
    key: Key,
    wait: Annotated[bool, typer.Option("--wait", help="Until the cycle is complete or failed.")] = False,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Begin a cycle now, whatever the schedule says. With --wait, a cycle that failed is exit code 1."""

    async def work(client: AsyncClient) -> int:
        found = await client.workers.trigger_sync((await find(client, worker)).worker_id, key, wait=wait)
        output.write_json({"sync": found}) if as_json else _show([found])
        return errors.FAILED if wait and found.failures else 0

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@app.command()
def preview(
    worker: Named,
    key: Key,
    context: Annotated[
        str | None, typer.Option("--context", help="JSON: the state to run from. Default: the sync's own.")
    ] = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Run a sync once and print what it returns, as JSON: changes, whether there is more, and the context after it."""
    given = json_input(context, as_json=as_json, option="--context") if context is not None else None

    async def work(client: AsyncClient) -> None:
        output.write_json(await client.workers.preview_sync((await find(client, worker)).worker_id, key, context=given))

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@app.command()
def pause(worker: Named, key: Key, data_dir: options.DataDir = None, as_json: options.AsJson = False) -> None:
    """Begin no cycle by schedule any more. A run that goes on is finished."""
    _tell(lambda client, found: client.workers.pause_sync(found, key), worker, data_dir, as_json=as_json)


@app.command()
def resume(worker: Named, key: Key, data_dir: options.DataDir = None, as_json: options.AsJson = False) -> None:
    """Go on by schedule; a time that was missed meanwhile is due now."""
    _tell(lambda client, found: client.workers.resume_sync(found, key), worker, data_dir, as_json=as_json)


@app.command()
def reset(worker: Named, key: Key, data_dir: options.DataDir = None, as_json: options.AsJson = False) -> None:
    """Forget a sync's state and statistics; rows stay. The next cycle begins from nothing."""
    _tell(lambda client, found: client.workers.reset_sync(found, key), worker, data_dir, as_json=as_json)


@app.command()
def schedule(
    worker: Named,
    key: Key,
    every: Annotated[str | None, typer.Option("--every", help="An interval such as 5m or 2h.")] = None,
    cron: Annotated[str | None, typer.Option("--cron", help="Five fields, such as `0 6 * * 1-5`.")] = None,
    time_zone: Annotated[str, typer.Option("--time-zone", help="Of --cron, such as Europe/Berlin.")] = "UTC",
    manual: Annotated[bool, typer.Option("--manual", help="Only when it is triggered.")] = False,
    default: Annotated[bool, typer.Option("--default", help="As its program says, again.")] = False,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Have a sync run at other times than its program says, whatever is deployed."""
    try:
        wanted = _schedule(every, cron, time_zone, manual=manual, default=default)
    except HutchError as error:
        errors.report(error, as_json=as_json)
        raise typer.Exit(errors.FAILED) from None
    _tell(lambda client, found: client.workers.schedule_sync(found, key, wanted), worker, data_dir, as_json=as_json)


def _schedule(every: str | None, cron: str | None, time_zone: str, *, manual: bool, default: bool) -> dict[str, Any] | None:
    """Raises `BadRequestError`."""
    if sum((every is not None, cron is not None, manual, default)) != 1:
        raise BadRequestError("bad_option", "Say one of --every, --cron, --manual and --default.")
    if every is not None:
        return {"type": "interval", "interval_ms": options.duration_ms(every, "--every")}
    if cron is not None:
        return {"type": "cron", "expression": cron, "time_zone": time_zone}
    return {"type": "manual"} if manual else None


def _tell(
    asked: Callable[[AsyncClient, str], Awaitable[WorkerSync]], worker: str, data_dir: Path | None, *, as_json: bool
) -> None:
    async def work(client: AsyncClient) -> None:
        found = await asked(client, (await find(client, worker)).worker_id)
        output.write_json({"sync": found}) if as_json else _show([found])

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


def _show(found: list[WorkerSync]) -> None:
    rows = [
        (
            item.key,
            "running" if item.executing else "paused" if item.paused else item.label.lower(),
            item.mode,
            item.database or "-",
            output.moment(item.stats.get("last_succeeded_at")),
            output.moment(item.next_run_at),
            str(item.stats.get("cycles", 0)),
            item.last_error or "",
        )
        for item in found
    ]
    output.write_table(("KEY", "STATE", "MODE", "DATABASE", "SUCCEEDED", "NEXT", "CYCLES", "ERROR"), rows)


# -- databases ---------------------------------------------------------------------------------------


@database_app.command("ls")
def list_databases(worker: Named, data_dir: options.DataDir = None, as_json: options.AsJson = False) -> None:
    """List a worker's databases."""

    async def work(client: AsyncClient) -> None:
        found = (await client.workers.details((await find(client, worker)).worker_id)).databases
        if as_json:
            output.write_json({"databases": found})
            return
        rows = [(item.key, item.title, str(item.rows), item.primary_key, "yes" if item.declared else "no") for item in found]
        output.write_table(("KEY", "TITLE", "ROWS", "PRIMARY KEY", "DEPLOYED"), rows)

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@database_app.command()
def rows(
    worker: Named,
    database: Database,
    filters: Filter = None,
    sort: Sort = None,
    view: View = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Rows of a page.")] = 100,
    after: Annotated[str | None, typer.Option("--after", help="`next` of the page before.")] = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Show rows of a database."""

    async def work(client: AsyncClient) -> None:
        found, chosen = (await find(client, worker)).worker_id, options.pairs(filters, "--filter")
        page = await client.workers.rows(found, database, filter=chosen, sort=sort, view=view, after=after, limit=limit)
        if as_json:
            output.write_json(page)
            return
        names = list(dict.fromkeys(name for row in page.rows for name in row.properties))
        lines = [(row.key, *(output.json_text(row.properties.get(name)) for name in names)) for row in page.rows]
        output.write_table(("KEY", *names), lines)
        if page.next is not None:
            output.note(f"there is more: --after {page.next}")

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@database_app.command()
def export(
    worker: Named,
    database: Database,
    form: Annotated[Form, typer.Option("--format", help="json or csv.")] = Form.JSON,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Write it there. Default: standard output.")] = None,
    filters: Filter = None,
    sort: Sort = None,
    view: View = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Write all rows of a database. With --json errors are JSON."""

    async def work(client: AsyncClient) -> None:
        found, chosen = (await find(client, worker)).worker_id, options.pairs(filters, "--filter")
        pieces = client.workers.export(found, database, form.value, filter=chosen, sort=sort, view=view)
        with _opened(file) as out:
            async for piece in pieces:
                out.write(piece)
            out.flush()

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@database_app.command()
def mirror(
    worker: Named,
    database: Database,
    token_stdin: Annotated[bool, typer.Option("--token-stdin", help="Read an integration's token from standard input.")] = False,
    page: Annotated[str | None, typer.Option("--page", metavar="ID", help="Make a database below this page.")] = None,
    data_source: Annotated[
        str | None, typer.Option("--data-source", metavar="ID", help="Use this data source; what it lacks is added.")
    ] = None,
    base_url: Annotated[str | None, typer.Option("--base-url", help="An API like Notion's. Default: Notion's.")] = None,
    status: Annotated[bool, typer.Option("--status", help="Show how far it is.")] = False,
    off: Annotated[bool, typer.Option("--off", help="Mirror it no more; pages in Notion stay.")] = False,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Mirror a database's rows into Notion from now on, one way."""

    async def work(client: AsyncClient) -> None:
        if [token_stdin, status, off].count(True) != 1 or token_stdin is not ((page is None) is not (data_source is None)):
            raise BadRequestError(
                "bad_option", "It takes --status, --off, or --token-stdin with one of --page and --data-source."
            )
        token = read_secret("Token", None).strip() if token_stdin else ""
        found = (await find(client, worker)).worker_id
        if off:
            await client.workers.unmirror(found, database)
            return
        if status:
            shown = await client.workers.notion(found, database)
        else:
            parent = {"page_id": page} if page is not None else {"data_source_id": data_source or ""}
            shown = await client.workers.mirror(found, database, token, parent, base_url=base_url)
        output.write_json({"notion": shown}) if as_json else _show_mirror(shown)

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


def _show_mirror(shown: NotionTarget) -> None:
    numbers = (str(count) for count in (shown.mirrored, shown.waiting, shown.failed))
    line = (shown.data_source_id, *numbers, "yes" if shown.stopped else "no", shown.last_error or "-")
    output.write_table(("DATA SOURCE", "MIRRORED", "WAITING", "FAILED", "STOPPED", "ERROR"), [line])
    for warning in shown.warnings:
        output.note(warning)


def _opened(file: Path | None) -> contextlib.AbstractContextManager[IO[bytes]]:
    """Where an export goes. Raises `BadRequestError`."""
    if file is None:
        return contextlib.nullcontext(sys.stdout.buffer)
    try:
        return file.open("wb")
    except OSError as error:
        raise BadRequestError("not_writable", f"{file} can't be written: {error.strerror}.") from error
