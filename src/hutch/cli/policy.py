"""`hutch policy check`: what a network policy means, without a server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from hutch.cli import errors, options, output
from hutch.errors import BadRequestError, HutchError

if TYPE_CHECKING:
    from hutch.egress.policy import CheckedPolicy, Explanation

app = typer.Typer(no_args_is_help=True, help="Network policies.")

REFUSED = "deny"


@app.callback()
def policy() -> None:
    """Network policies."""


@app.command()
def check(
    text: Annotated[
        str, typer.Argument(metavar="POLICY", help="File with a policy, `-` for standard input, or the policy itself as JSON.")
    ],
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
        settings = engine.Boundaries.of(load(config_file))
        within = [_read(item) for item in bounds or []]
        raw = _read(text)
        limits = tuple(msgspec.Raw(engine.check(item, role="bounds", settings=settings).text.encode()) for item in within)
        checked = engine.check(raw, settings=msgspec.structs.replace(settings, bounds=limits))
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


def _read(text: str) -> bytes:
    """A policy from where `text` says. Raises `BadRequestError`."""
    if text in ("allow-all", "deny-all"):
        return f'"{text}"'.encode()
    if text.lstrip()[:1] in ("{", '"'):
        return text.encode("utf-8", "surrogateescape")
    try:
        return sys.stdin.buffer.read() if text == "-" else Path(text).read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no file can have that name"
        raise BadRequestError("not_readable", f"The policy {text[:256]} can't be read: {reason}.") from error


def _header(text: str) -> tuple[str, str]:
    name, separator, value = text.partition(":")
    if not separator or not name.strip():
        raise BadRequestError("bad_option", f"--header is {text!r}; it should be NAME: VALUE.")
    return name.strip(), value.strip()
