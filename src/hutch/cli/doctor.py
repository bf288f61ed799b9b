"""`hutch doctor`: can this machine serve sandboxes, and if not, why not."""

from __future__ import annotations

import typer

from hutch.cli import errors, options, output
from hutch.errors import HutchError


def doctor(config_file: options.ConfigFile = None, data_dir: options.DataDir = None, as_json: options.AsJson = False) -> None:
    """Check everything that a host needs, and settings that keep neighbours apart; exit 1 if something needed is missing."""
    from hutch.host.doctor import run
    from hutch.settings import load

    try:
        checks = run(load(config_file, flags={"server.data_dir": data_dir}))
    except HutchError as error:
        errors.report(error, as_json=as_json)
        raise typer.Exit(errors.FAILED) from None
    healthy = all(check.ok is not False for check in checks if check.required)
    if as_json:
        shown = [
            {"name": check.name, "ok": check.ok, "detail": check.detail, "hint": check.hint, "required": check.required}
            for check in checks
        ]
        output.write_json({"ok": healthy, "checks": shown})
    else:
        for check in checks:
            mark = {True: "ok  ", False: "FAIL" if check.required else "warn", None: "--  "}[check.ok]
            output.write_line(f"{mark}  {check.name}: {check.detail}")
            if check.ok is False and check.hint:
                output.write_line(f"      {check.hint}")
        output.write_line("This machine can serve sandboxes." if healthy else "This machine can't serve sandboxes yet.")
    raise typer.Exit(0 if healthy else errors.FAILED)
