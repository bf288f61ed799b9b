"""The table of OAuth providers, and the operator's file of apps with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hutch.workers import oauth, providers
from hutch.workers.destinations import wrong_token_host
from hutch.workers.manifest import OAuth
from tests.workers.declared import CLIENT_SECRET

APP = {"clientId": "operator", "clientSecret": CLIENT_SECRET}
GITHUB = OAuth(type="notion_managed", name="gh", provider="github", callback_url="https://elsewhere.test/")


def written(directory: Path, value: Any) -> Path:
    path = directory / "clients.json"
    path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
    return path


@pytest.mark.parametrize("name", sorted(providers.KNOWN))
def test_every_known_provider_can_be_used(name: str, tmp_path: Path) -> None:
    provider = providers.KNOWN[name]
    assert all(oauth.is_endpoint(address) for address in (provider.authorize, provider.token))
    assert provider.hosts
    assert [wrong_token_host(host) for host in provider.hosts] == [None] * len(provider.hosts)
    clients = providers.clients(written(tmp_path, {name: APP}))
    found = providers.managed(OAuth(type="notion_managed", name="n", provider=name), clients)
    assert found is not None
    url = oauth.authorization_url(found, "https://hutch.test/back", oauth.secrets(bytes(64)))
    assert url.startswith(provider.authorize)
    assert "client_id=operator" in url
    assert CLIENT_SECRET not in url


def test_a_managed_capability_gets_the_operators_app_and_no_address_of_its_own() -> None:
    found = providers.managed(GITHUB, {"github": providers.Client(client_id="a", client_secret="b", scope="gist")})
    assert found is not None
    assert (found.client_id, found.client_secret, found.scope, found.callback_url) == ("a", "b", "gist", None)
    assert found.token_endpoint == "https://github.com/login/oauth/access_token"


def test_what_nobody_configured_says_what_to_do() -> None:
    assert providers.managed(GITHUB, {}) is None
    text = providers.unconfigured("github")
    assert "workers.oauth_clients" in text
    assert "authorizationEndpoint, tokenEndpoint and hosts" not in text
    assert "authorizationEndpoint, tokenEndpoint and hosts" in providers.unconfigured("corp\n\x1b")
    assert "\x1b" not in providers.unconfigured("corp\n\x1b")


def test_hosts_are_known_by_the_endpoint_of_tokens_too() -> None:
    mine = OAuth(type="user_managed", name="n", token_endpoint="https://github.com/login/oauth/access_token")
    assert "api.github.com" in providers.hosts(mine, {})
    for other in ("https://github.com.evil.test/login/oauth/access_token", "https://[", "", "https://id.corp.test/token"):
        assert providers.hosts(OAuth(type="user_managed", name="n", token_endpoint=other), {}) == ()
    client = providers.Client(client_id="a", client_secret="b", hosts=("api.corp.test",))
    assert providers.hosts(OAuth(type="notion_managed", name="n", provider="corp"), {"corp": client}) == ("api.corp.test",)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"{", "no JSON"),
        (b"\xff", "UTF-8"),
        (b" " * (providers.MAX_FILE_BYTES + 1), "bytes"),
        ({"github": {"clientId": "x"}}, "clientSecret"),
        ({"github": {**APP, "extra": 1}}, "unknown field"),
        ({"github": {**APP, "clientId": ""}}, "clientId"),
        ({"github": {**APP, "clientId": "a\nb"}}, "control characters"),
        ({"corp": APP}, "authorizationEndpoint"),
        ({"github": {**APP, "tokenEndpoint": "http://id.test/"}}, "tokenEndpoint"),
        ({"github": {**APP, "hosts": ["*.com"]}}, "hosts"),
    ],
)
def test_a_file_that_can_t_be_meant_is_refused_without_its_secrets(tmp_path: Path, content: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as error:
        providers.clients(written(tmp_path, content))
    assert CLIENT_SECRET not in str(error.value)
