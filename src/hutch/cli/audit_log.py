"""`hutch audit-log ls|verify`: who changed what in a team. `hutch audit` is about the network of a sandbox."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any

import typer

from hutch.cli import errors, options, output
from hutch.cli.connection import with_client
from hutch.cli.project import OfTeam
from hutch.client import AsyncClient
from hutch.client.models import LogPage
from hutch.control.audit_log import Chain, Entry, Head
from hutch.errors import BadRequestError, InternalError

app = typer.Typer(no_args_is_help=True, help="The log of who changed what in a team.")

PAGE = 1000
_HEAD = re.compile(r"([0-9]{1,18}):([0-9a-f]{64})")


@app.command()
def ls(
    team: OfTeam = None,
    after: Annotated[int, typer.Option("--after", min=0, help="Only entries behind this number.")] = 0,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Write the entries, oldest first; with --json one per line."""

    async def work(client: AsyncClient) -> None:
        async for page in _pages(client, team, after):
            for entry in page.entries:
                if as_json:
                    print(json.dumps(entry))
                else:
                    output.write_line(line(entry))

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@app.command()
def verify(
    team: OfTeam = None,
    expect: Annotated[
        str | None, typer.Option("--expect", help="NUMBER:HASH as an earlier run printed it; that entry must still be there.")
    ] = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Check that no entry was altered, removed or inserted; exit 1 and say where if one was. Prints the number and the hash of
    the last entry: kept elsewhere, they prove later that nobody made a new log."""

    async def work(client: AsyncClient) -> int:
        chain, head = Chain(_expected(expect)), Head()
        async for page in _pages(client, team, 0):
            chain.check(map(_entry, page.entries))
            head = Head(page.head.seq, page.head.hash)
        chain.end(head)
        if as_json:
            output.write_json({"valid": not chain.problems, "problems": chain.problems, "seq": head.seq, "hash": head.hash})
        else:
            for problem in chain.problems:
                output.note(problem)
            output.write_line(f"{chain.head.seq}:{chain.head.hash}" if chain.head.seq else "no entries")
        return errors.FAILED if chain.problems else 0

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


async def _pages(client: AsyncClient, team: str | None, after: int) -> AsyncIterator[LogPage]:
    """All that there are, at least one."""
    while True:
        page = await client.teams.audit_log(after=after, limit=PAGE, team=team)
        yield page
        if not page.entries or page.next >= page.head.seq:
            return
        after = page.next


def _entry(values: dict[str, Any]) -> tuple[Entry, str]:
    try:
        return Entry(**{name: values[name] for name in Entry.__slots__}), str(values["hash"])
    except KeyError as error:
        raise InternalError("unexpected_answer", f"The server sent an entry without {error}.") from error


def _expected(text: str | None) -> Head | None:
    if text is None:
        return None
    match = _HEAD.fullmatch(text)
    if match is None:
        raise BadRequestError("bad_option", f"--expect is {text[:100]!r}; it should be NUMBER:HASH, as `verify` prints it.")
    return Head(int(match[1]), match[2])


def line(entry: dict[str, Any]) -> str:
    """An entry for people: when, who, from where, what, about what."""
    who = entry["member_id"] or entry["token_id"]
    detail = " ".join(f"{key}={output.text_of(value)}" for key, value in sorted(entry["detail"].items()))
    outcome = "" if entry["outcome"] == "done" else f"({entry['outcome']})"
    columns = (entry["seq"], output.moment(entry["at"]), who, entry["address"] or "-", entry["action"], entry["subject"], outcome)
    return " ".join(str(word) for word in (*columns, detail) if word != "").replace("\n", "�")
