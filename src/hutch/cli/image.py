"""`hutch image ls`."""

from __future__ import annotations

import typer

from hutch.cli import errors, options, output
from hutch.errors import HutchError

app = typer.Typer(no_args_is_help=True, help="Images: root file systems of sandboxes.")


@app.callback()
def image() -> None:
    """Images: root file systems of sandboxes."""


@app.command()
def ls(config_file: options.ConfigFile = None, data_dir: options.DataDir = None, as_json: options.AsJson = False) -> None:
    """List the images of this machine. Needs no server."""
    from hutch.images import ImageStore
    from hutch.settings import load

    try:
        images = ImageStore(load(config_file, flags={"server.data_dir": data_dir}).image_dir()).list()
    except HutchError as error:
        errors.report(error, as_json=as_json)
        raise typer.Exit(errors.FAILED) from None
    sizes = [sum(layer.size for layer in found.layers) for found in images]
    if as_json:
        shown = [
            {
                "name": found.name,
                "aliases": list(found.aliases),
                "digest": found.digest,
                "size": total,
                "layers": len(found.layers),
            }
            for found, total in zip(images, sizes, strict=True)
        ]
        output.write_json({"images": shown})
        return
    rows = [
        (found.name, ", ".join(found.aliases) or "-", found.digest.removeprefix("sha256:")[:12], output.size(total))
        for found, total in zip(images, sizes, strict=True)
    ]
    output.write_table(("NAME", "ALIASES", "DIGEST", "SIZE"), rows)
