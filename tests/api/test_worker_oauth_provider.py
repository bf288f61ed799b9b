"""A worker's login with a real provider (the npm package oidc-provider), which insists on PKCE and on the secret in a header."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from hutch.workers import oauth
from tests.api.conftest import Api
from tests.api.serving import deployed, tool
from tests.clients.conftest import installed_from_npm, node_tool
from tests.workers.declared import oauth as declared

PROVIDER = Path(__file__).parents[1] / "login" / "provider"
SECRET = "secret/with+odd=characters"


@pytest.fixture(scope="module")
def provider() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process of the provider, and where it is."""
    directory = installed_from_npm(PROVIDER)
    command = [node_tool("node"), str(directory / "provider.mjs")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        yield process, json.loads(process.stdout.readline())["issuer"]
        process.stdin.close()
        assert process.wait(10) == 0


@pytest.fixture
def environment(provider: tuple[subprocess.Popen[str], str]) -> dict[str, str]:
    return {"HUTCH_WORKERS__OAUTH_HOSTS": json.dumps([urlsplit(provider[1]).netloc])}


def begin(process: subprocess.Popen[str], redirect_uri: str) -> None:
    client = {"client_id": "worker", "client_secret": SECRET, "redirect_uris": [redirect_uri]}
    command = {"start": {"clients": [client], "accounts": {"ada": {"email": "ada@example.com"}}}}
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(command) + "\n")
    process.stdin.flush()
    assert json.loads(process.stdout.readline()) == {"done": True}


async def agreed(url: str, stop: str) -> str:
    """A browser's way through the provider's pages: a name and any password, then a yes. Where it is sent back to."""
    async with httpx.AsyncClient(timeout=20) as http:
        response = await http.get(url)
        for _ in range(20):
            if response.is_redirect:
                onward = str(response.url.join(response.headers["location"]))
                if onward.startswith(stop):
                    return onward
                response = await http.get(onward)
            elif "/interaction/" in response.url.path:
                prompt = re.search(r'name="prompt" value="(\w+)"', response.text)
                assert prompt is not None, response.text
                form = {"prompt": prompt[1], "login": "ada", "password": "any"}
                response = await http.post(str(response.url), data=form)
            else:
                next_page = re.search(r'http-equiv="refresh" content="0; url=([^"]+)"', response.text)
                assert next_page is not None, response.text
                response = await http.get(unescape(next_page[1]))
    raise AssertionError("redirected for ever")


async def test_a_real_provider_s_token_is_good_where_the_worker_uses_it(
    api: Api, provider: tuple[subprocess.Popen[str], str]
) -> None:
    process, issuer = provider
    api.services.issuer = api.url
    begin(process, f"{api.url}/workers/oauth/callback")
    config: dict[str, Any] = declared(
        authorizationEndpoint=f"{issuer}/auth",
        tokenEndpoint=f"{issuer}/token",
        scope="openid email",
        clientId="worker",
        clientSecret=SECRET,
    )
    worker = await deployed(api, {"_tag": "oauth", "key": "login", "config": config}, tool("greet"))
    asked = {"workerId": worker, "oauthCapabilityKey": "login"}
    url = (await api.http.post("/v3/workersStartOauth", json=asked)).json()["authorizationUrl"]
    back = await agreed(url, api.url)
    page = await api.client("").get(back)
    assert (page.status_code, "Connected" in page.text) == (200, True), page.text
    run = {"workerId": worker, "capabilityKey": "greet", "args": "environment"}
    environment = (await api.http.post("/v3/workersRunCapability", json=run)).json()["result"]
    token = environment[oauth.variable("github-oauth")]
    shown = (await api.http.post("/v3/workersGetOauthToken", json=asked)).json()
    assert shown["accessToken"] == token
    assert shown["expiresAt"] is not None
    async with httpx.AsyncClient() as http:
        told = await http.get(f"{issuer}/me", headers={"authorization": f"Bearer {token}"})
    assert told.json()["sub"] == "ada"
    assert (await api.client("").get(back)).status_code == 400, "the address of the way back is good once"
