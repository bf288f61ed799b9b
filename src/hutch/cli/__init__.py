"""The command line: `hutch NOUN …`.

    app.py         the commands, put together
    serve.py, token.py, env.py, run.py, create.py, sandboxes.py, execute.py, copy.py, logs.py, image.py, config.py, doctor.py,
    policy.py, credential.py, audit.py, traffic.py, snapshot.py, drive.py, login.py
                   one file per noun: options in, one call of `hutch.client` (or of the server's own modules), lines out
    build.py       the steps of `hutch image build`; context.py: what COPY may take
    options.py     options that several commands share
    connection.py  the client and the event loop behind a command, and what a signal does to both
    output.py      lines for people, JSON for programs
    errors.py      the one place where errors become exit codes

`hutch host`, `hutch debug` and the API's process are told apart here before anything is imported: they start often, must start
fast, and parse their own arguments.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["host"]:
        from hutch.host.main import main as host

        return host(arguments[1:])
    if arguments[:1] == ["debug"]:
        from hutch.host.debug import main as debug

        return debug(arguments[1:])
    from hutch.cli.app import run

    return run(arguments)
