"""`hutch usage`, `hutch receipt show|verify`, `hutch budget get|set|events`."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from hutch.cli import errors, options, output
from hutch.cli.connection import with_client
from hutch.client import AsyncClient
from hutch.client.models import Budget, BudgetList, Quantities, ReceiptKeys, Usage, UsageGroup, UsageReport
from hutch.client.wire import decode
from hutch.errors import BadRequestError, HutchError
from hutch.metering import receipts
from hutch.metering.budgets import Limits
from hutch.metering.receipts import ReceiptInvalid, ReceiptUnreadable

receipt_app = typer.Typer(no_args_is_help=True, help="Signed receipts of what was used.")
budget_app = typer.Typer(no_args_is_help=True, help="What a team or project may use.")

INVALID, UNREADABLE = 1, 2
COLUMNS = ("key", "cpu", "gateway", "memory", "disk", "sent", "snapshots", "creations", "amount")
RULE_COLUMNS = ("rule", "sent", "received", "connections", "requests")
_SESSION = re.compile(r"sbx_[A-Za-z0-9]{1,64}")


class By(enum.StrEnum):
    DAY = "day"
    SANDBOX = "sandbox"
    WORKER = "worker"
    TAG = "tag"


class Period(enum.StrEnum):
    DAY = "day"
    MONTH = "month"
    TOTAL = "total"


Team = Annotated[str | None, typer.Option("--team", help="Id or slug of a team.")]
Project = Annotated[str | None, typer.Option("--project", help="Id or slug of a project.")]


def usage(
    name: Annotated[str | None, typer.Argument(help="Name of a sandbox. Default: the whole project.")] = None,
    start: Annotated[str | None, typer.Option("--from", help="Date or time (ISO 8601, UTC). Default: 30 days ago.")] = None,
    end: Annotated[str | None, typer.Option("--to", help="Date or time, exclusive. Default: now.")] = None,
    by: Annotated[By, typer.Option("--by", help="What to group by.")] = By.DAY,
    tag: Annotated[str | None, typer.Option("--tag", help="Key of the tag, with --by tag.")] = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Show what a sandbox has used, or what the project has by day, sandbox or tag, and what it costs."""

    async def work(client: AsyncClient) -> None:
        if name is not None:
            used = await client.usage.of(name)
            if as_json:
                output.write_json(used)
            else:
                output.write_table(COLUMNS, [[name, *_cells(used), money(used.amount_nano, used.currency)]])
                if used.network:
                    output.write_table(RULE_COLUMNS, _rules(used))
            return
        report = await client.usage.report(start=start, end=end, group_by=by.value, tag=tag)
        if as_json:
            output.write_json(report)
        else:
            output.write_table(COLUMNS, _lines(report))

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


def _lines(report: UsageReport) -> Iterator[list[str]]:
    for group in report.groups:
        yield line(group.key or "-", group, report.currency)
    yield ["total", *_cells(report.total), money(report.amount_nano, report.currency)]


def line(name: str, group: UsageGroup, currency: str) -> list[str]:
    """A group of a report, as `COLUMNS`."""
    return [name, *_cells(group.usage), money(group.amount_nano, currency)]


def _cells(used: Quantities) -> list[str]:
    return [
        f"{used.active_cpu_us / 10**6:.3f} s",
        f"{used.gateway_cpu_us / 10**6:.3f} s",
        f"{used.memory_byte_seconds / (2**30 * 3600):.4f} GiB h",
        f"{used.disk_byte_seconds / (10**9 * 3600):.4f} GB h",
        output.size(used.egress_bytes),
        f"{used.snapshot_byte_seconds / (10**9 * 3600):.4f} GB h",
        str(used.creations),
    ]


def _rules(used: Usage) -> Iterator[list[str]]:
    for line in used.network:
        bytes_passed = [output.size(line.sent_bytes), output.size(line.received_bytes)]
        yield [line.rule or "-", *bytes_passed, str(line.connections), str(line.requests)]


def money(nano: int, currency: str) -> str:
    """An amount to the last unit."""
    return f"{nano // 10**9}.{nano % 10**9:09d} {currency}"


# -- receipts ----------------------------------------------------------------------------------------


@receipt_app.command("show")
def show(
    subject: Annotated[str, typer.Argument(help="Name of a sandbox, or id of a session (sbx_…).")],
    command: Annotated[str | None, typer.Option("--command", help="Id of one of the session's commands (cmd_…).")] = None,
    data_dir: options.DataDir = None,
) -> None:
    """Print the signed receipt of a sandbox, of a session, or of what a session used while one command ran."""

    async def work(client: AsyncClient) -> None:
        if command is not None:
            output.write_json(await client.usage.command_receipt(subject, command))
        elif _SESSION.fullmatch(subject):
            output.write_json(await client.usage.session_receipt(subject))
        else:
            output.write_json(await client.usage.receipt(subject))

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=False))


@receipt_app.command("verify")
def verify(
    file: Annotated[Path, typer.Argument(help="File with a receipt.")],
    keys: Annotated[
        Path | None,
        typer.Option("--keys", help="File with the server's keys, as GET …/receipt-keys answers them. Default: ask the server."),
    ] = None,
    data_dir: options.DataDir = None,
) -> None:
    """Check a receipt's signature and compute it again. Exit code 0: valid, 1: not valid, 2: unreadable."""
    try:
        receipt = receipts.parse(_read(file))
        known = _keys_of(keys) if keys is not None else None
    except (ReceiptUnreadable, OSError) as error:
        raise typer.Exit(_say(f"{file} can't be read: {_reason(error)}", UNREADABLE)) from None

    async def ask(client: AsyncClient) -> None:
        nonlocal known
        known = await client.usage.receipt_keys()

    if known is None and with_client(ask, data_dir=data_dir, as_json=False):
        raise typer.Exit(UNREADABLE)
    try:
        receipts.verify(receipt, known or {})
    except ReceiptInvalid as error:
        raise typer.Exit(_say(f"{file} is not valid: {error}", INVALID)) from None
    output.write_line(f"valid: {money(receipt['amount_nano'], receipt['currency'])}, signed with key {receipt['key_id']}")


def _read(file: Path) -> bytes:
    with file.open("rb") as source:
        return source.read(receipts.MAX_BYTES + 1)


def _keys_of(file: Path) -> dict[str, bytes]:

    try:
        return decode(_read(file), ReceiptKeys).raw()
    except HutchError as error:
        raise ReceiptUnreadable(f"the keys in {file} are none: {error.message}") from error


def _reason(error: BaseException) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def _say(text: str, code: int) -> int:
    output.note(errors.printable(text))
    return code


# -- budgets -----------------------------------------------------------------------------------------


@budget_app.command("get")
def get(team: Team = None, project: Project = None, data_dir: options.DataDir = None, as_json: options.AsJson = False) -> None:
    """Show the budgets of a team or project, and what is spent."""

    async def work(client: AsyncClient) -> None:
        _write(await client.usage.budgets(team=team, project=project), as_json=as_json)

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@budget_app.command("set")
def put(
    limits: Annotated[
        list[str] | None,
        typer.Argument(help=f"LIMIT=NUMBER: {', '.join(Limits.__struct_fields__)}. None removes the budget."),
    ] = None,
    period: Annotated[Period, typer.Option("--period", help="When it begins anew.")] = Period.TOTAL,
    soft: Annotated[
        list[str] | None, typer.Option("--soft", help="LIMIT=NUMBER that stops nothing and makes an event. Repeatable.")
    ] = None,
    notify_at: Annotated[
        list[int] | None,
        typer.Option("--notify-at", min=1, max=100, help="Percentage of each limit that makes an event. Repeatable."),
    ] = None,
    webhook: Annotated[
        str | None, typer.Option("--webhook", help="URL that events are sent to. Default: where they are sent now.")
    ] = None,
    no_webhook: Annotated[bool, typer.Option("--no-webhook", help="Send events nowhere any more.")] = False,
    team: Team = None,
    project: Project = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Limit what a team or project may use in a day, a month or in all. Running sandboxes that are beyond it are stopped."""

    async def work(client: AsyncClient) -> None:
        found = await client.usage.set_budget(
            team=team,
            project=project,
            period=period.value,
            soft=limits_of(soft or []),
            notify_at=notify_at or [],
            webhook=False if no_webhook else webhook,
            **limits_of(limits or []),
        )
        _write(found, as_json=as_json)
        for budget in found.budgets:
            if budget.webhook is not None and budget.webhook.secret is not None and not as_json:
                output.note(f"The secret of the webhook, which is shown this once: {budget.webhook.secret}")

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@budget_app.command("events")
def events(
    after: Annotated[int, typer.Option("--after", min=0, help="Number of the event to begin behind.")] = 0,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Most events to show.")] = 100,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Show what owners of budgets were told, oldest first: thresholds, soft limits, and limits that were reached."""

    async def work(client: AsyncClient) -> None:
        page = await client.usage.events(after=after, limit=limit)
        if as_json:
            output.write_json(page)
            return
        rows = [
            [
                str(one.seq),
                output.moment(one.at),
                one.type,
                f"{one.budget.of} {one.budget.id}",
                one.budget.span or "-",
                one.limit,
                f"{one.used} of {one.bound}",
                one.delivery.state,
            ]
            for one in page.events
        ]
        output.write_table(("SEQ", "AT", "TYPE", "BUDGET", "SPAN", "LIMIT", "USED", "WEBHOOK"), rows)

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


def limits_of(pairs: list[str]) -> dict[str, int]:
    """`active_cpu_us=5` … as limits. Raises `BadRequestError`."""
    found: dict[str, int] = {}
    for pair in pairs:
        name, _, number = pair.partition("=")
        if name not in Limits.__struct_fields__ or not re.fullmatch("[0-9]{1,19}", number):
            raise BadRequestError(
                "bad_option", f"{pair[:64]!r} is no limit; it should be NAME=NUMBER with {', '.join(Limits.__struct_fields__)}."
            )
        found[name] = int(number)
    return found


def _write(found: BudgetList, *, as_json: bool) -> None:
    if as_json:
        output.write_json(found)
        return
    rows = []
    for budget in found.budgets:
        for kind, limits in (("", budget.limits), (" (soft)", budget.soft)):
            for name, limit in limits.items():
                rows.append([budget.period, name + kind, str(_spent(budget, name)), str(limit)])
    output.write_table(("PERIOD", "LIMIT", "SPENT", "OF"), rows)


def _spent(budget: Budget, name: str) -> int:
    if name == "money_nano":
        return budget.spent_money_nano
    return budget.counts[name] if name in budget.counts else int(getattr(budget.spent, name, 0))
