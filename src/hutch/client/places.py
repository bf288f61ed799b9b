"""Which server to talk to: `HUTCH_URL` and `HUTCH_TOKEN`, or the file that `hutch serve` keeps below its data directory."""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hutch.errors import BadRequestError, UnavailableError


@dataclass(frozen=True, slots=True)
class Server:
    """A server and who we are there. `url` is the base without `/api`; ids are empty where nobody knows them."""

    url: str
    token: str
    team_id: str = ""
    project_id: str = ""


def server_file(data_dir: Path) -> Path:
    """Where a running server says how to reach it (mode 0600)."""
    return data_dir / "run" / "server.json"


def find_server(data_dir: Path | None = None, environment: Mapping[str, str] | None = None) -> Server:
    """The server that is meant. `data_dir` given wins over the environment; without either, the settings' directory.

    Raises `UnavailableError` when no server runs there, `BadRequestError` for half an environment or a bad URL.
    """
    environment = os.environ if environment is None else environment
    if data_dir is None:
        url, token = environment.get("HUTCH_URL", ""), environment.get("HUTCH_TOKEN", "")
        if url and token:
            return _from_environment(url, token)
        if url or token:
            given, missing = ("HUTCH_URL", "HUTCH_TOKEN") if url else ("HUTCH_TOKEN", "HUTCH_URL")
            raise BadRequestError(
                "server_unknown", f"{given} is set but {missing} is not. Set both, or neither and use --data-dir."
            )
        # Settings take a while to import, and most scripts have the two variables.
        from hutch.settings import load

        data_dir = load(environment=environment).server.data_dir
        # `make serve` keeps its state in the checkout.
        checkout = Path(__file__).resolve().parents[3] / ".hutch" / "data"
        if not server_file(data_dir).exists() and server_file(checkout).exists():
            data_dir = checkout
    return _from_file(server_file(data_dir))


def _from_environment(url: str, token: str) -> Server:
    try:
        parts = urlsplit(url)
        ok = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query and not parts.fragment
    except ValueError:
        ok = False
    if not ok:
        raise BadRequestError("server_unknown", f"HUTCH_URL is {url!r}; it should be like http://127.0.0.1:7070.")
    claims = claims_of(token)
    return Server(url.rstrip("/").removesuffix("/api"), token, claims.get("owner_id", ""), claims.get("project_id", ""))


def _from_file(path: Path) -> Server:
    try:
        content = json.loads(path.read_bytes())
        return Server(content["url"].rstrip("/"), content["token"], content.get("team_id") or "", content.get("project_id") or "")
    except FileNotFoundError:
        raise UnavailableError(
            "server_not_running",
            f"No server runs there: {path} does not exist. Start one with `hutch serve`, or set HUTCH_URL and HUTCH_TOKEN.",
        ) from None
    except PermissionError:
        raise UnavailableError(
            "server_not_readable", f"{path} belongs to another user. Run as that user, or set HUTCH_URL and HUTCH_TOKEN."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UnavailableError("server_not_readable", f"{path} is not what `hutch serve` writes: {error!r}.") from error


def claims_of(token: str) -> dict[str, str]:
    """The text claims of a token, unverified: only its issuer can say more. Empty for what is not a token of ours."""
    parts = token.split(".")
    if len(parts) != 3:
        return {}
    try:
        payload: Any = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        return {}
    return {key: value for key, value in payload.items() if isinstance(value, str)} if isinstance(payload, dict) else {}
