"""The commands, put together."""

from __future__ import annotations

import os
import signal
import sys
from typing import Annotated

import typer

from hutch import __version__
from hutch.cli import (
    audit,
    audit_log,
    config,
    copy,
    create,
    credential,
    doctor,
    drive,
    env,
    errors,
    execute,
    fork,
    image,
    login,
    logs,
    member,
    policy,
    project,
    sandboxes,
    serve,
    snapshot,
    team,
    token,
    traffic,
    usage,
    worker,
)
from hutch.cli import run as run_program

app = typer.Typer(
    name="hutch",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Run code that nobody trusts, in sandboxes of its own.",
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"hutch {__version__}")
        raise typer.Exit


@app.callback()
def hutch(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Run code that nobody trusts, in sandboxes of its own."""


# What follows `--`, or the first word that is not an option, belongs to the program, dashes included.
_PROGRAM = {"ignore_unknown_options": False, "allow_interspersed_args": False}

app.command(context_settings=_PROGRAM)(run_program.run)
app.command("exec", context_settings=_PROGRAM)(execute.execute)
app.command()(create.create)
app.command()(fork.fork)
app.command()(sandboxes.ls)
app.command()(sandboxes.get)
app.command("cp")(copy.copy)
app.command()(logs.logs)
app.command()(audit.audit)
app.command()(traffic.traffic)
app.command()(usage.usage)
app.command()(sandboxes.stop)
app.command()(sandboxes.rm)
app.command()(serve.serve)
app.command()(doctor.doctor)
app.command()(env.env)
app.command()(login.login)
app.command()(login.logout)
app.command()(login.whoami)
app.add_typer(policy.app, name="policy")
app.add_typer(credential.app, name="credential")
app.add_typer(snapshot.app, name="snapshot")
app.add_typer(drive.app, name="drive")
app.add_typer(worker.app, name="worker")
app.add_typer(token.app, name="token")
app.add_typer(team.app, name="team")
app.add_typer(project.app, name="project")
app.add_typer(member.app, name="member")
app.add_typer(audit_log.app, name="audit-log")
app.add_typer(image.app, name="image")
app.add_typer(usage.receipt_app, name="receipt")
app.add_typer(usage.budget_app, name="budget")
app.add_typer(config.app, name="config")


@app.command("host", help="The process that owns this machine's sandboxes; `hutch serve` starts it.", hidden=True)
def _host() -> None:
    raise AssertionError("hutch.cli.main takes this one")


@app.command("debug", help="Boot, use and end one machine without a server.", add_help_option=False)
def _debug() -> None:
    raise AssertionError("hutch.cli.main takes this one")


def run(arguments: list[str]) -> int:
    """Parse and run; the exit code."""
    try:
        app(args=arguments, prog_name="hutch")
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else errors.FAILED if leave.code else 0
    except BrokenPipeError:
        # Whoever read our output has left; the interpreter must not try to flush the rest into the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return 0
