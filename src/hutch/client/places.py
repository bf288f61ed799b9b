"""Which server to talk to: `HUTCH_URL` and `HUTCH_TOKEN`, that of `hutch login`, or the file that `hutch serve` keeps below its
data directory."""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hutch.errors import BadRequestError, UnavailableError


@dataclass(frozen=True, slots=True)
class Server:
    """A server and who we are there. `url` is the base without `/api`; what nobody knows is empty. `ingress_url`: where ports of
    sandboxes are reached."""

    url: str
    token: str = field(repr=False)
    team_id: str = ""
    project_id: str = ""
    ingress_url: str = ""


def server_file(data_dir: Path) -> Path:
    """Where a running server says how to reach it (mode 0600)."""
    return data_dir / "run" / "server.json"


def find_server(data_dir: Path | None = None, environment: Mapping[str, str] | None = None) -> Server:
    """The server that is meant. `data_dir` given wins over the environment; without either, the one that `hutch login` has kept,
    or else that of the settings' directory.

    Raises `UnavailableError` when no server runs there, `BadRequestError` for half an environment or a bad URL,
    `UnauthorizedError` for a login that is over.
    """
    environment = os.environ if environment is None else environment
    if data_dir is None:
        url, token = environment.get("HUTCH_URL", ""), environment.get("HUTCH_TOKEN", "")
        if url and token:
            return _from_environment(url, token, environment.get("HUTCH_INGRESS_URL", ""))
        if url or token:
            given, missing = ("HUTCH_URL", "HUTCH_TOKEN") if url else ("HUTCH_TOKEN", "HUTCH_URL")
            raise BadRequestError(
                "server_unknown", f"{given} is set but {missing} is not. Set both, or neither and use --data-dir."
            )
        from hutch.client.saved import login_file, saved

        kept = login_file(environment)
        logged_in = saved(kept) if kept is not None else None
        if logged_in is not None:
            return logged_in
        # Settings take a while to import, and most scripts have the two variables.
        from hutch.settings import load

        data_dir = load(environment=environment).server.data_dir
        # `make serve` keeps its state in the checkout.
        checkout = Path(__file__).resolve().parents[3] / ".hutch" / "data"
        if not server_file(data_dir).exists() and server_file(checkout).exists():
            data_dir = checkout
    return _from_file(server_file(data_dir))


def named_server(url: str | None, token: str | None) -> Server:
    """The server at a URL; what is not given is that of the environment. Raises `BadRequestError`."""
    url, token = url or os.environ.get("HUTCH_URL", ""), token or os.environ.get("HUTCH_TOKEN", "")
    if not url or not token:
        missing = "token" if url else "url"
        raise BadRequestError("server_unknown", f"`{missing}` is missing, and the environment has none either.")
    return _from_environment(url, token, os.environ.get("HUTCH_INGRESS_URL", ""))


def named_url(url: str, what: str = "HUTCH_URL") -> str:
    """The base of a server's URL, without `/api`; `what` says where it comes from. Raises `BadRequestError`."""
    try:
        parts = urlsplit(url)
        ok = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query and not parts.fragment
    except ValueError:
        ok = False
    if not ok:
        raise BadRequestError("server_unknown", f"{what} is {url!r}; a server's URL should be like http://127.0.0.1:7070.")
    return url.rstrip("/").removesuffix("/api")


def _from_environment(url: str, token: str, ingress_url: str) -> Server:
    base = named_url(url)
    claims = claims_of(token)
    return Server(base, token, claims.get("owner_id", ""), claims.get("project_id", ""), ingress_url)


def _from_file(path: Path) -> Server:
    try:
        content = json.loads(path.read_bytes())
        more = (content.get(key) or "" for key in ("team_id", "project_id", "ingress_url"))
        return Server(content["url"].rstrip("/"), content["token"], *more)
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
