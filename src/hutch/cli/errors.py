"""Errors → text and exit codes. The only place where that happens.

    0    done
    1    refused or failed; the server's text is on standard error (with `--json` as `{"error": {"code", "message"}}`)
    2    the command line itself was wrong
    125  `run`, `exec`: Hutch failed, not the program
    127  `run`, `exec`: there is no such program in the sandbox
    128+n  ended by signal n (130 Ctrl-C, 143 SIGTERM)

Anything else from `run` and `exec` is the program's own exit code.
"""

from __future__ import annotations

import json
import sys

from hutch.errors import HutchError

FAILED = 1
USAGE = 2
NOT_OURS = 125
NO_SUCH_PROGRAM = 127


def exit_code(error: HutchError, *, runs_program: bool) -> int:
    """The exit code for `error`; `runs_program` for commands whose other codes belong to the program they run."""
    if not runs_program:
        return FAILED
    return NO_SUCH_PROGRAM if error.code == "executable_not_found" else NOT_OURS


def report(error: HutchError, *, as_json: bool) -> None:
    """Write `error` to standard error."""
    if as_json:
        print(json.dumps(error.body()), file=sys.stderr)
    else:
        print(f"hutch: {printable(error.message)} ({printable(error.code)})", file=sys.stderr)


def printable(text: str) -> str:
    """`text` without characters that a terminal would obey: names and messages may come from a hostile place."""
    return "".join(character if character.isprintable() or character == "\n" else "�" for character in text)
