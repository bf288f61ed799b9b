"""The system user that the API process becomes."""

from __future__ import annotations

import pwd
import subprocess

from scripts.setup import shell
from scripts.setup.report import SetupError, Step

USER = "hutch"


def ensure(step: Step) -> None:
    """Create the user where there is none."""
    try:
        found = pwd.getpwnam(USER)
    except KeyError:
        command = ["/usr/sbin/useradd", "--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent"]
        command += ["--shell", "/usr/sbin/nologin", USER]
        done = subprocess.run(shell.privileged(command), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SetupError(f"The system user `{USER}` could not be created: {done.stderr.strip()}") from None
        step.made(f"created system user {USER}")
        return
    if found.pw_uid == 0:
        raise SetupError(f"The user `{USER}` has uid 0; the API must not run as root. Rename or remove that user.")
    step.found(f"{USER}, uid {found.pw_uid}")
