"""`hutch env`: variables that make the vendor's clients talk to this server."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from hutch.cli import errors, options
from hutch.cli.env_formats import Format, rendered
from hutch.client import Server, find_server
from hutch.errors import HutchError
from hutch.glue import PYTHON_PATH, REDIRECT_MODULE, write_npm_package


def variables(server: Server, environment: Mapping[str, str]) -> dict[str, str]:
    """Every variable, with its value. `NODE_OPTIONS` and `PYTHONPATH` keep what `environment` has; twice is the same as once."""
    redirect = f"--import {REDIRECT_MODULE.as_uri()}"
    node = environment.get("NODE_OPTIONS", "")
    python = environment.get("PYTHONPATH", "")
    found = {
        "HUTCH_URL": server.url,
        "HUTCH_TOKEN": server.token,
        "HUTCH_INGRESS_URL": server.ingress_url,
        # The SDKs take a token of ours for what their platform injects: it carries team and project.
        "VERCEL_OIDC_TOKEN": server.token,
        "VERCEL_TOKEN": server.token,
        "VERCEL_AUTH_TOKEN": server.token,
        "VERCEL_TEAM_ID": server.team_id,
        "VERCEL_PROJECT_ID": server.project_id,
        "NOTION_API_BASE_URL": server.url,
        "NOTION_API_TOKEN": server.token,
        # Any will do: the token says which project it is.
        "NOTION_WORKSPACE_ID": server.project_id or "default",
        # Without it `ntn` looks for a keyring of the desktop before it takes the token.
        "NOTION_KEYRING": "0",
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


def env(
    form: Annotated[Format, typer.Option("--format", help="What reads it.")] = Format.SH,
    npm_package: Annotated[
        Path | None, typer.Option("--npm-package", metavar="DIR", help="Write the npm package @hutch/redirect there instead.")
    ] = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Print variables for the vendor's clients. Use: eval "$(hutch env)"."""
    if npm_package is not None:
        try:
            write_npm_package(npm_package)
        except OSError as error:
            raise typer.BadParameter(f"can't write there: {error.strerror}", param_hint="--npm-package") from None
        return
    try:
        text = rendered(variables(find_server(data_dir), os.environ), Format.JSON if as_json else form)
    except HutchError as error:
        errors.report(error, as_json=as_json)
        raise typer.Exit(errors.FAILED) from None
    print(text)
