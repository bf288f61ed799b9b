"""`hutch policy …`: what a network policy means, without a server (`check`); those of sandboxes (`get`, `apply`, `learn`); those
of teams and projects (`set`, `show`, `rm`)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from hutch.cli import errors, options, output
from hutch.cli.connection import with_client
from hutch.client import AsyncClient
from hutch.errors import BadRequestError, HutchError

if TYPE_CHECKING:
    from hutch.egress.policy import CheckedPolicy, Explanation

app = typer.Typer(no_args_is_help=True, help="Network policies.")

REFUSED = "deny"
Policy = Annotated[
    str, typer.Argument(metavar="POLICY", help="File with a policy, `-` for standard input, or the policy itself as JSON.")
]
Team = Annotated[str | None, typer.Option("--team", help="Id or slug of a team; with --project, of the project's team.")]
Project = Annotated[str | None, typer.Option("--project", help="Id or slug of a project.")]


@app.callback()
def policy() -> None:
    """Network policies."""


@app.command()
def check(
    text: Policy,
    url: Annotated[
        str | None, typer.Option("--url", help="Ask about a request to this URL (https, http, postgresql, ssh, tcp).")
    ] = None,
    method: Annotated[str, typer.Option("--method", "-X", help="Its method.")] = "GET",
    header: Annotated[
        list[str] | None,
        typer.Option("--header", "-H", help="One of its headers, `NAME: VALUE`; $VAR is a placeholder. Repeatable."),
    ] = None,
    address: Annotated[str | None, typer.Option("--address", help="The IP address that the sandbox dials.")] = None,
    missing: Annotated[
        list[str] | None, typer.Option("--missing", help="A stored credential that is to be taken as missing. Repeatable.")
    ] = None,
    bounds: Annotated[
        list[str] | None, typer.Option("--bounds", help="A policy within which this one holds, as for POLICY. Repeatable.")
    ] = None,
    config_file: options.ConfigFile = None,
    as_json: options.AsJson = False,
) -> None:
    """Check a policy and, with --url, say what would happen to a request: exit code 1 if it were refused."""
    from hutch.egress import policy as engine
    from hutch.settings import load

    try:
        loaded = load(config_file)
        settings = engine.Boundaries.of(loaded)
        operators = engine.operator_policy(loaded)
        within = [operators.encode()] if operators is not None else []
        within += [options.policy_text(item) for item in bounds or []]
        raw = options.policy_text(text)
        limits = [engine.check(item, role="bounds", settings=settings).text for item in within]
        checked = engine.check(raw, settings=engine.within(settings, limits))
        found = None
        if url is not None:
            absent = dict.fromkeys(missing or [], False)
            question = engine.Question(url, method, [_header(item) for item in header or []], address, absent)
            found = engine.explain([*within, raw], question, settings)
    except HutchError as error:
        errors.report(error, as_json=as_json)
        raise typer.Exit(errors.FAILED) from None
    if as_json:
        shown = msgspec.to_builtins(checked)
        # The only part with secret values.
        del shown["text"]
        output.write_json({"policy": shown, "explanation": found})
    else:
        for words in _policy_lines(checked) if found is None else _explanation_lines(found):
            output.write_line(words)
        for warning in checked.warnings:
            output.note(f"warning: {warning.pointer or 'the policy'} {warning.message} ({warning.code})")
    raise typer.Exit(errors.FAILED if found is not None and found.decision == REFUSED else 0)


# -- of sandboxes ------------------------------------------------------------------------------------


@app.command()
def get(name: options.Name, data_dir: options.DataDir = None, as_json: options.AsJson = False) -> None:
    """Write the network policy of a sandbox's current session as JSON; secret values are <redacted>."""

    async def work(client: AsyncClient) -> None:
        _write((await client.sandboxes.get(name)).session.network_policy or {"mode": "allow-all"}, as_json=as_json)

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@app.command()
def apply(
    name: options.Name,
    text: Policy,
    generation: Annotated[
        int | None, typer.Option("--generation", min=1, help="Only if the policy in place has this number.")
    ] = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Replace the network policy of a running sandbox; done when it is enforced."""

    async def work(client: AsyncClient) -> None:
        policy = options.policy_to_send(text)
        session = (await client.sandboxes.get(name)).session
        changed = await client.sandboxes.set_network_policy(session.id, policy, generation=generation)
        applied = changed.network_policy or {}
        if as_json:
            output.write_json(applied)
            return
        own = applied.get("hutch", {})
        output.write_line(f"generation {own.get('generation')}, {_flows(own)}")
        output.note_warnings(applied)

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@app.command()
def learn(
    name: options.Name,
    paths: Annotated[
        bool, typer.Option("--paths", help="Narrow names to the methods and first path segments of their requests.")
    ] = False,
    include_denied: Annotated[
        bool, typer.Option("--include-denied", help="Allow also what was refused, where a policy can allow it.")
    ] = False,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Write the smallest policy that allows what a sandbox did, from its audit. What it can't say is remarked."""

    async def work(client: AsyncClient) -> None:
        from hutch.egress.learn import Learner

        learner = Learner(include_denied=include_denied)
        async for record in client.audit.all(name):
            learner.add(record)
        learned = learner.learned(paths=paths)
        _write(learned.policy, as_json=as_json)
        for remark in learned.notes:
            output.note(remark)

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


# -- of teams and projects ---------------------------------------------------------------------------


@app.command("set")
def set_policy(
    text: Policy,
    team: Team = None,
    project: Project = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Bound the policies of a team's or project's sandboxes; done when all that run are held to it."""

    async def work(client: AsyncClient) -> None:
        _require_place(team, project)
        done = await client.bounds.put(options.policy_to_send(text), team=team, project=project)
        if as_json:
            output.write_json(done)
            return
        output.write_line(f"{done.hutch.get('sessions')} running sandboxes, {_flows(done.hutch)}")
        output.note_warnings({"hutch": done.hutch})

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@app.command()
def show(team: Team = None, project: Project = None, data_dir: options.DataDir = None, as_json: options.AsJson = False) -> None:
    """Write what bounds a team's or project's sandboxes as JSON; null where nothing does."""

    async def work(client: AsyncClient) -> None:
        _require_place(team, project)
        _write(await client.bounds.get(team=team, project=project), as_json=as_json)

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


@app.command()
def rm(team: Team = None, project: Project = None, data_dir: options.DataDir = None, as_json: options.AsJson = False) -> None:
    """Remove what bounds a team's or project's sandboxes."""

    async def work(client: AsyncClient) -> None:
        _require_place(team, project)
        await client.bounds.delete(team=team, project=project)
        if as_json:
            output.write_json({"removed": True})

    raise typer.Exit(with_client(work, data_dir=data_dir, as_json=as_json))


def _require_place(team: str | None, project: str | None) -> None:
    if team is None and project is None:
        raise BadRequestError("bad_option", "Say whose policy it is: --team TEAM or --project PROJECT.")


def _flows(own: dict[str, Any]) -> str:
    return f"{own.get('closedFlows')} connections closed, {own.get('keptFlows')} kept"


def _write(policy: object, *, as_json: bool) -> None:
    """A policy as JSON, for people on many lines. Text of somebody else's is escaped, so that no terminal obeys it."""
    print(json.dumps(policy, indent=None if as_json else 2))


# -- checking ----------------------------------------------------------------------------------------


def _policy_lines(checked: CheckedPolicy) -> list[str]:
    lines = [("mode", checked.mode + (", and nothing is allowed" if checked.empty else "")), ("hash", checked.hash)]
    lines += [("intercepted", pattern) for pattern in checked.intercepted]
    lines += [("credential", name) for name in checked.credentials]
    lines += [("placeholder", f"${variable} for {name}") for variable, name in checked.placeholders]
    lines += [("outside", " ".join(item.values())) for item in checked.outside]
    return [f"{label:<12} {words}" for label, words in lines]


def _explanation_lines(found: Explanation) -> list[str]:
    lines = [("decision", f"{found.decision} ({found.reason}): {found.message}"), ("at", found.stage)]
    if found.dns is not None:
        lines.append(("dns", found.dns.decision + (f" ({found.dns.reason})" if found.dns.reason else "")))
    if found.address is not None:
        lines.append(("address", found.address.ip + (", assumed" if found.address.assumed else "")))
    if found.mode is not None:
        lines.append(("mode", found.mode))
    if found.pattern is not None:
        lines.append(("pattern", found.pattern))
    if found.rule is not None:
        lines.append(("rule", f"{found.rule.index} of {found.rule.of} ({found.rule.id})"))
    lines += [("injected", name) for name in found.injected]
    lines += [("credential", name) for name in found.credentials]
    if found.status is not None:
        lines.append(("status", str(found.status)))
    return [f"{label:<12} {words}" for label, words in lines]


def _header(text: str) -> tuple[str, str]:
    name, separator, value = text.partition(":")
    if not separator or not name.strip():
        raise BadRequestError("bad_option", f"--header is {text!r}; it should be NAME: VALUE.")
    return name.strip(), value.strip()
