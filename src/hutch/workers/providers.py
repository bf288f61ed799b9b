"""Providers of OAuth that are known here: where people agree, where tokens come from, and which hosts take them.

`notion_managed` capabilities name a provider and nothing else; the operator has registered an app with it, whose client is in the
file that `workers.oauth_clients` names. For `user_managed` ones the table only says which hosts take the tokens of an endpoint.
A provider that is not in the table is one as soon as the file has its endpoints.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from hutch.workers import reading
from hutch.workers.destinations import wrong_token_host
from hutch.workers.manifest import OAuth
from hutch.workers.oauth import is_endpoint

MAX_FILE_BYTES = 256 * 1024
MAX_DEPTH = 8


class Provider(msgspec.Struct, frozen=True, kw_only=True):
    """`hosts` take its tokens. `scope` is asked for where the operator says nothing else; `parameters` go along when somebody is
    sent there, so that there is a token to refresh with."""

    authorize: str
    token: str
    hosts: tuple[str, ...] = ()
    scope: str = ""
    parameters: dict[str, str] = {}


def _google(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}.googleapis.com" for name in names)


KNOWN: dict[str, Provider] = {
    "airtable": Provider(
        authorize="https://airtable.com/oauth2/v1/authorize",
        token="https://airtable.com/oauth2/v1/token",  # noqa: S106 - an address
        hosts=("api.airtable.com",),
        scope="data.records:read schema.bases:read",
    ),
    "asana": Provider(
        authorize="https://app.asana.com/-/oauth_authorize",
        token="https://app.asana.com/-/oauth_token",  # noqa: S106 - an address
        hosts=("app.asana.com",),
        scope="default",
    ),
    "atlassian": Provider(
        authorize="https://auth.atlassian.com/authorize",
        token="https://auth.atlassian.com/oauth/token",  # noqa: S106 - an address
        hosts=("api.atlassian.com",),
        scope="offline_access read:jira-work read:jira-user",
        parameters={"audience": "api.atlassian.com", "prompt": "consent"},
    ),
    "dropbox": Provider(
        authorize="https://www.dropbox.com/oauth2/authorize",
        token="https://api.dropboxapi.com/oauth2/token",  # noqa: S106 - an address
        hosts=("api.dropboxapi.com", "content.dropboxapi.com"),
        parameters={"token_access_type": "offline"},
    ),
    "github": Provider(
        authorize="https://github.com/login/oauth/authorize",
        token="https://github.com/login/oauth/access_token",  # noqa: S106 - an address
        hosts=("api.github.com", "uploads.github.com"),
        scope="read:user repo",
    ),
    "gitlab": Provider(
        authorize="https://gitlab.com/oauth/authorize",
        token="https://gitlab.com/oauth/token",  # noqa: S106 - an address
        hosts=("gitlab.com",),
        scope="read_api",
    ),
    "google": Provider(
        authorize="https://accounts.google.com/o/oauth2/v2/auth",
        token="https://oauth2.googleapis.com/token",  # noqa: S106 - an address
        hosts=_google(
            *("www", "gmail", "sheets", "docs", "drive", "slides", "people", "tasks", "forms", "calendar-json", "admin", "chat"),
            *("analyticsdata", "bigquery", "searchconsole", "youtube", "photoslibrary", "openidconnect"),
        ),
        scope="openid email https://www.googleapis.com/auth/calendar.readonly",
        parameters={"access_type": "offline", "prompt": "consent"},
    ),
    "hubspot": Provider(
        authorize="https://app.hubspot.com/oauth/authorize",
        token="https://api.hubapi.com/oauth/v1/token",  # noqa: S106 - an address
        hosts=("api.hubapi.com",),
        scope="oauth crm.objects.contacts.read",
    ),
    "linear": Provider(
        authorize="https://linear.app/oauth/authorize",
        token="https://api.linear.app/oauth/token",  # noqa: S106 - an address
        hosts=("api.linear.app",),
        scope="read",
    ),
    "microsoft": Provider(
        authorize="https://login.microsoftonline.com/common/oauth2/v2.0/authorize",
        token="https://login.microsoftonline.com/common/oauth2/v2.0/token",  # noqa: S106 - an address
        hosts=("graph.microsoft.com",),
        scope="offline_access User.Read",
    ),
    "salesforce": Provider(
        authorize="https://login.salesforce.com/services/oauth2/authorize",
        token="https://login.salesforce.com/services/oauth2/token",  # noqa: S106 - an address
        hosts=("*.my.salesforce.com", "login.salesforce.com"),
        scope="api refresh_token",
    ),
    "slack": Provider(
        authorize="https://slack.com/oauth/v2/authorize",
        token="https://slack.com/api/oauth.v2.access",  # noqa: S106 - an address
        hosts=("slack.com", "files.slack.com"),
        scope="channels:read,channels:history",
    ),
}
_BY_ENDPOINT = {urlsplit(one.token).netloc: one for one in KNOWN.values()}


class Client(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """An operator's app with a provider, as the file has it. What is missing is taken from the table."""

    client_id: str
    client_secret: str
    authorization_endpoint: str | None = None
    token_endpoint: str | None = None
    hosts: tuple[str, ...] | None = None
    scope: str | None = None

    def __repr__(self) -> str:
        return f"Client({self.client_id!r})"


def clients(path: Path) -> dict[str, Client]:
    """The operator's clients, by provider. Raises `ValueError`, whose text has no secret, and `OSError`."""
    with path.open("rb") as file:
        raw = file.read(MAX_FILE_BYTES + 1)
    try:
        value = reading.load(raw, most_bytes=MAX_FILE_BYTES, most_depth=MAX_DEPTH)
        found = reading.convert(value, dict[str, Client])
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error
    for name, client in found.items():
        wrong = _wrong(name, client)
        if wrong is not None:
            raise ValueError(f"{path}: the provider {reading.shown(name)} {wrong}")
    return found


def _wrong(name: str, client: Client) -> str | None:
    if not client.client_id or any(ord(letter) < 0x20 for letter in client.client_id + client.client_secret):
        return "should have a clientId, and no control characters in it or in its clientSecret"
    known = KNOWN.get(name)
    for field, address in (
        ("authorizationEndpoint", client.authorization_endpoint or (known.authorize if known else None)),
        ("tokenEndpoint", client.token_endpoint or (known.token if known else None)),
    ):
        if address is None or not is_endpoint(address):
            return f"needs an address that begins with https:// as its {field}"
    for host in client.hosts or ():
        if wrong_token_host(host) is not None:
            return f"has {reading.shown(host)} among its hosts, where no token can be put"
    return None


def unconfigured(provider: str) -> str:
    """What to do about a provider without a client."""
    more = "" if provider in KNOWN else ", authorizationEndpoint, tokenEndpoint and hosts"
    return (
        f"The operator of this server has no app with the provider {reading.shown(provider)}. Register one there, and put its "
        f"clientId and clientSecret{more} into the file that `workers.oauth_clients` names; or declare the capability with a "
        "client of your own (authorizationEndpoint, tokenEndpoint, clientId, clientSecret)."
    )


def managed(found: OAuth, known: dict[str, Client]) -> OAuth | None:
    """A `notion_managed` capability with the operator's client in it; None where there is none."""
    name = found.provider or ""
    client, table = known.get(name), KNOWN.get(name)
    if client is None:
        return None
    authorize = client.authorization_endpoint or (table.authorize if table else "")
    token = client.token_endpoint or (table.token if table else "")
    scope = client.scope if client.scope is not None else table.scope if table else ""
    return msgspec.structs.replace(
        found,
        authorization_endpoint=authorize,
        token_endpoint=token,
        scope=scope,
        client_id=client.client_id,
        client_secret=client.client_secret,
        authorization_params=dict(table.parameters) if table else {},
        # Where people come back to is the server's own, whatever a worker says.
        callback_url=None,
    )


def hosts(found: OAuth, known: dict[str, Client]) -> tuple[str, ...]:
    """The hosts that take a capability's tokens; none where nobody knows."""
    if found.type == "notion_managed":
        client, table = known.get(found.provider or ""), KNOWN.get(found.provider or "")
        if client is not None and client.hosts is not None:
            return client.hosts
        return table.hosts if table is not None else ()
    try:
        provider = _BY_ENDPOINT.get(urlsplit(found.token_endpoint or "").netloc)
    except ValueError:
        return ()
    return provider.hosts if provider is not None else ()
