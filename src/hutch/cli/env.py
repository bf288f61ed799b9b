"""`hutch env`: variables that make the vendor's clients talk to this server."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated

import typer

from hutch.cli import errors, options
from hutch.client import Server, find_server
from hutch.errors import HutchError
from hutch.glue import PYTHON_PATH, REDIRECT_MODULE


class Format(StrEnum):
    SH = "sh"
    FISH = "fish"
    JSON = "json"
    DOTENV = "dotenv"


def variables(server: Server, environment: Mapping[str, str]) -> dict[str, str]:
    """Every variable, with its value. `NODE_OPTIONS` and `PYTHONPATH` keep what `environment` has; twice is the same as once."""
    redirect = f"--import {REDIRECT_MODULE.as_uri()}"
    node = environment.get("NODE_OPTIONS", "")
    python = environment.get("PYTHONPATH", "")
    found = {
        "HUTCH_URL": server.url,
        "HUTCH_TOKEN": server.token,
        # The SDKs take a token of ours for what their platform injects: it carries team and project.
        "VERCEL_OIDC_TOKEN": server.token,
        "VERCEL_TOKEN": server.token,
        "VERCEL_AUTH_TOKEN": server.token,
        "VERCEL_TEAM_ID": server.team_id,
        "VERCEL_PROJECT_ID": server.project_id,
        "NODE_OPTIONS": node if redirect in node else f"{node} {redirect}".strip(),
        "PYTHONPATH": python
        if str(PYTHON_PATH) in python.split(os.pathsep)
        else os.pathsep.join(filter(None, (str(PYTHON_PATH), python))),
        # Without these the vendor's command line asks the Internet for news and reports what it does.
        "SANDBOX_SKIP_VERSION_CHECK": "1",
        "VERCEL_SANDBOX_TELEMETRY_DISABLED": "1",
        "VERCEL_TELEMETRY_DISABLED": "1",
    }
    return {name: value for name, value in found.items() if value}


def rendered(values: Mapping[str, str], form: Format) -> str:
    """The variables in a form that a shell or program reads back exactly."""
    if form is Format.JSON:
        return json.dumps(dict(values), indent=2)
    if form is Format.FISH:
        return "\n".join(f"set -gx {name} {_fish(value)};" for name, value in values.items())
    if form is Format.DOTENV:
        return "\n".join(f"{name}={json.dumps(value)}" for name, value in values.items())
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in values.items())


def _fish(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def env(
    form: Annotated[Format, typer.Option("--format", help="What reads it.")] = Format.SH,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Print variables for the vendor's clients. Use: eval "$(hutch env)"."""
    try:
        server = find_server(data_dir)
    except HutchError as error:
        errors.report(error, as_json=as_json)
        raise typer.Exit(errors.FAILED) from None
    print(rendered(variables(server, os.environ), Format.JSON if as_json else form))
