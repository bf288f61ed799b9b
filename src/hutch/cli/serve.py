"""`hutch serve`: the server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hutch.cli import errors, options
from hutch.errors import HutchError


def serve(
    config_file: options.ConfigFile = None,
    data_dir: Annotated[Path | None, typer.Option("--data-dir", help="Directory of all state.")] = None,
    listen: Annotated[str | None, typer.Option("--listen", help="HOST:PORT; port 0 takes a free one.")] = None,
    isolation: Annotated[str | None, typer.Option("--isolation", help="auto, gvisor, qemu or firecracker.")] = None,
    ready_file: Annotated[Path | None, typer.Option("--ready-file", help="Written once a create would succeed.")] = None,
) -> None:
    """Run the server until SIGTERM."""
    from hutch.serve import run
    from hutch.settings import load

    flags = {"server.data_dir": data_dir, "server.listen": listen, "isolation.backend": isolation}
    try:
        code = run(load(config_file, flags=flags), ready_file)
    except HutchError as error:
        errors.report(error, as_json=False)
        raise typer.Exit(errors.FAILED) from None
    raise typer.Exit(code)
