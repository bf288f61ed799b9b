"""`hutch config show`."""

from __future__ import annotations

from typing import Any

import typer
from pydantic import BaseModel

from hutch.cli import errors, options, output
from hutch.errors import HutchError

app = typer.Typer(no_args_is_help=True, help="The configuration.")


@app.callback()
def config() -> None:
    """The configuration."""


@app.command()
def show(config_file: options.ConfigFile = None, data_dir: options.DataDir = None, as_json: options.AsJson = False) -> None:
    """Print every setting with its value and where it comes from, secrets masked."""
    from hutch.settings import Source, load

    try:
        settings = load(config_file, flags={"server.data_dir": data_dir})
    except HutchError as error:
        errors.report(error, as_json=as_json)
        raise typer.Exit(errors.FAILED) from None
    values = settings.effective()
    if as_json:
        output.write_json(
            {
                "settings": [
                    {"key": item.key, "value": _plain(item.value), "source": str(item.source), "origin": item.origin}
                    for item in values
                ]
            }
        )
        return
    rows = [
        (item.key, output.text_of(item.value), "default" if item.source is Source.DEFAULT else f"{item.source}: {item.origin}")
        for item in values
    ]
    output.write_table(("SETTING", "VALUE", "FROM"), rows)


def _plain(value: Any) -> Any:
    """A setting as JSON has it."""
    if isinstance(value, tuple):
        return [item.model_dump() if isinstance(item, BaseModel) else item for item in value]
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)
