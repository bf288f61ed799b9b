"""What `hutch login` keeps: one server, and who we are there, in `hutch/login.json` of the user's configuration (mode 0600)."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from hutch.client.places import Server
from hutch.errors import UnauthorizedError, UnavailableError

MAX_BYTES = 64 * 1024


def login_file(environment: Mapping[str, str]) -> Path | None:
    """Where it is kept: below `$XDG_CONFIG_HOME`, or `.config` of the home directory; None where there is neither."""
    if environment.get("XDG_CONFIG_HOME", "").startswith("/"):
        return Path(environment["XDG_CONFIG_HOME"]) / "hutch" / "login.json"
    if environment.get("HOME", "").startswith("/"):
        return Path(environment["HOME"]) / ".config" / "hutch" / "login.json"
    return None


def save(path: Path, server: Server, expires_at: int) -> None:
    """Keep a login instead of the one before; it is never there in part, or for others to read. Raises `OSError`."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    content = {
        "url": server.url,
        "token": server.token,
        "team_id": server.team_id,
        "project_id": server.project_id,
        "ingress_url": server.ingress_url,
        "expires_at": expires_at,
    }
    # mkstemp makes it with mode 0600.
    descriptor, name = tempfile.mkstemp(prefix=".login-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def saved(path: Path) -> Server | None:
    """The login that is kept; None without one. Raises `UnauthorizedError` for one that is over, `UnavailableError` for a file
    that can't be used."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = json.loads(file.read(MAX_BYTES))
        texts = {name: str(content.get(name) or "") for name in ("team_id", "project_id", "ingress_url")}
        server = Server(str(content["url"]), str(content["token"]), **texts)
        over = int(content["expires_at"]) <= time.time() * 1000
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UnavailableError(
            "login_not_readable", f"{path} is not what `hutch login` writes: {error!r}. Log in again."
        ) from error
    if mode & 0o077:
        raise UnavailableError("login_not_readable", f"Others may read {path}, which has a token. Remove it, and log in again.")
    if over:
        raise UnauthorizedError("login_over", f"Your login at {server.url} is over. Log in again: hutch login {server.url}")
    return server
