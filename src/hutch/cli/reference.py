"""docs/cli.md from the commands themselves: `python -m hutch.cli.reference`. A test fails when the page is out of date."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from hutch.cli.app import assembled

PAGE = Path(__file__).resolve().parents[3] / "docs" / "cli.md"

_INTRODUCTION = """\
# Command line

<!-- Made by `python -m hutch.cli.reference`; a test fails when it is out of date. -->

The client commands find the server by `HUTCH_URL` and `HUTCH_TOKEN`, or by `--data-dir` on the machine where it runs. Without
either they look in `/var/lib/hutch` and, in a checkout, in `.hutch/data`, where `make serve` keeps its state.

Options stand before names: what follows a sandbox's name in `exec`, or the first word in `run`, belongs to the program.

## Exit codes

| code | meaning |
| --- | --- |
| 0 | done |
| 1 | refused or failed; the text is on standard error, with `--json` as `{"error": {"code", "message"}}` |
| 2 | the command line itself was wrong |
| 125 | `run`, `exec`: Hutch failed, not the program |
| 127 | `run`, `exec`: there is no such program in the sandbox |
| 128 + n | ended by signal n: 130 after Ctrl-C, 143 after SIGTERM |

Every other code of `run` and `exec` is the program's own. Shell completion: `hutch --install-completion`.

`hutch host` and `hutch debug` parse their own arguments; see `hutch debug --help`.

"""
_SKIPPED = {"help", "install_completion", "show_completion"}


def reference() -> str:
    """The whole page."""
    root: Any = typer.main.get_command(assembled())
    parts = [_INTRODUCTION]
    for name, command in _commands(root, "hutch"):
        parts.append(f"## `{name}`\n\n{(command.help or '').strip()}\n\n")
        rows = [row for parameter in command.params if parameter.name not in _SKIPPED and (row := _row(parameter))]
        if rows:
            parts.append("| option | meaning |\n| --- | --- |\n" + "\n".join(rows) + "\n\n")
    return "".join(parts).rstrip() + "\n"


def _commands(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if command.hidden or name == "debug":
            continue
        full = f"{prefix} {name}"
        if hasattr(command, "commands"):
            yield from _commands(command, full)
        else:
            yield full, command


def _row(parameter: Any) -> str:
    text = (getattr(parameter, "help", None) or "").replace("|", "\\|")
    if parameter.param_type_name == "argument":
        label = parameter.metavar or parameter.name.upper()
    else:
        label = ", ".join([*parameter.opts, *parameter.secondary_opts])
    return f"| `{label}` | {text} |"


def main() -> int:
    PAGE.write_text(reference())
    return 0


if __name__ == "__main__":
    sys.exit(main())
