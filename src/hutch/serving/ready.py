"""The ready file, and the same below the data directory, where the CLI looks for it."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

from hutch.settings import Settings

SERVER_FILE = "server.json"


@dataclass(frozen=True, slots=True)
class Ready:
    """How to reach a server. `url` is the base without `/api`; what is not served yet is None; `token` is an administrator's."""

    url: str
    token: str
    team_id: str
    project_id: str
    dashboard_url: str | None
    ingress_url: str | None
    isolation: str
    pid: int


def server_file(settings: Settings) -> Path:
    return settings.run_dir / SERVER_FILE


def write(path: Path, ready: Ready) -> None:
    """Write it whole or not at all, readable by its owner only."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(asdict(ready), file)
            file.write("\n")
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove(path: Path, pid: int) -> None:
    """Remove it, if it is still ours."""
    try:
        if json.loads(path.read_bytes()).get("pid") == pid:
            path.unlink()
    except (OSError, ValueError, AttributeError):
        return
