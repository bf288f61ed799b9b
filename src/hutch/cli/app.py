"""The commands, put together."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from hutch import __version__
from hutch.cli import errors

# What follows `--`, or the first word that is not an option, belongs to the program, dashes included.
_PROGRAM = {"ignore_unknown_options": False, "allow_interspersed_args": False}


@dataclass(frozen=True, slots=True)
class Command:
    """A command: the function of that name in `hutch.cli.<module>`."""

    module: str
    function: str
    settings: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """Commands below a noun: the `typer.Typer` of that name in `hutch.cli.<module>`."""

    module: str
    name: str = "app"


COMMANDS: dict[str, Command | Group] = {
    "run": Command("run", "run", _PROGRAM),
    "exec": Command("execute", "execute", _PROGRAM),
    "create": Command("create", "create"),
    "fork": Command("fork", "fork"),
    "ls": Command("sandboxes", "ls"),
    "get": Command("sandboxes", "get"),
    "cp": Command("copy", "copy"),
    "logs": Command("logs", "logs"),
    "audit": Command("audit", "audit"),
    "traffic": Command("traffic", "traffic"),
    "usage": Command("usage", "usage"),
    "stop": Command("sandboxes", "stop"),
    "rm": Command("sandboxes", "rm"),
    "serve": Command("serve", "serve"),
    "doctor": Command("doctor", "doctor"),
    "env": Command("env", "env"),
    "login": Command("login", "login"),
    "logout": Command("login", "logout"),
    "whoami": Command("login", "whoami"),
    "policy": Group("policy"),
    "credential": Group("credential"),
    "snapshot": Group("snapshot"),
    "drive": Group("drive"),
    "worker": Group("worker"),
    "token": Group("token"),
    "team": Group("team"),
    "project": Group("project"),
    "member": Group("member"),
    "audit-log": Group("audit_log"),
    "image": Group("image"),
    "receipt": Group("usage", "receipt_app"),
    "budget": Group("usage", "budget_app"),
    "config": Group("config"),
}
"""In the order of `hutch --help`, but for groups, which come last there."""


def assembled(first: str | None = None) -> typer.Typer:
    """The program. If its first word is a command's name, it has nothing but that command: to import all of them takes longer
    than most of them run."""
    app = typer.Typer(
        name="hutch",
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        help="Run code that nobody trusts, in sandboxes of its own.",
    )
    app.callback()(hutch)
    alone = [] if first == "--version" else [first] if first in COMMANDS else None
    for name in COMMANDS if alone is None else alone:
        entry = COMMANDS[name]
        module = importlib.import_module(f"hutch.cli.{entry.module}")
        if isinstance(entry, Group):
            app.add_typer(getattr(module, entry.name), name=name)
        else:
            app.command(name, context_settings=entry.settings)(getattr(module, entry.function))
    app.command("host", help="The process that owns this machine's sandboxes; `hutch serve` starts it.", hidden=True)(_elsewhere)
    app.command("debug", help="Boot, use and end one machine without a server.", add_help_option=False)(_elsewhere)
    return app


def _elsewhere() -> None:
    raise AssertionError("hutch.cli.main takes this one")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"hutch {__version__}")
        raise typer.Exit


def hutch(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Run code that nobody trusts, in sandboxes of its own."""


def run(arguments: list[str]) -> int:
    """Parse and run; the exit code."""
    try:
        assembled(arguments[0] if arguments else None)(args=arguments, prog_name="hutch")
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else errors.FAILED if leave.code else 0
    except BrokenPipeError:
        # Whoever read our output has left; the interpreter must not try to flush the rest into the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return 0
