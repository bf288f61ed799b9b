"""A real OpenID provider (the npm package oidc-provider), a hostile one that says whatever a test wants, and a browser's part."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from hutch.clock import now_ms
from hutch.login.secrets import challenge_of, new_secret
from hutch.storage import tenants
from tests.api.conftest import Api, host, installed, served
from tests.api.fake_host import FakeHost
from tests.clients.conftest import installed_from_npm, node_tool

__all__ = ["host", "installed"]
PROVIDER = Path(__file__).parent / "provider"
CLIENT_ID = "hutch-tests"
CLIENT_SECRET = "secret/with+odd=characters"
LOGIN = "/api/hutch/v1/login"
RULES = [
    {"claim": "groups", "value": "eng", "team": "acme", "role": "developer"},
    {"claim": "groups", "value": "leads", "team": "acme", "role": "owner"},
    {"claim": "groups", "value": "money", "team": "books", "role": "billing"},
    {"claim": "groups", "value": "lost", "team": "nowhere", "role": "owner"},
]
ACCOUNTS: dict[str, dict[str, Any]] = {
    "ada": {"email": "ada@example.com", "email_verified": True, "name": "Ada <Lovelace>", "groups": ["eng", "other"]},
    "bob": {"email": "bob@example.com", "email_verified": True, "name": "Bob", "groups": ["eng", "leads", "money"]},
    "eve": {"email": "ada@example.com", "email_verified": False, "name": "Eve", "groups": ["eng"]},
    "joe": {"email": "joe@elsewhere.example", "email_verified": True, "name": "Joe", "groups": ["eng"]},
    "sam": {"email": "sam@example.com", "email_verified": True, "name": "Sam", "groups": []},
    "una": {"email": "una@example.com", "email_verified": True, "name": "Una", "groups": ["lost"]},
}


class RealProvider:
    """The process of `provider.mjs`."""

    def __init__(self, process: subprocess.Popen[str], issuer: str) -> None:
        self._process = process
        self.issuer = issuer

    def tell(self, **command: Any) -> None:
        """Have it do something, and wait until it has."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        assert json.loads(self._process.stdout.readline()) == {"done": True}


@pytest.fixture(scope="session")
def provider_process() -> Iterator[RealProvider]:
    directory = installed_from_npm(PROVIDER)
    with subprocess.Popen(
        [node_tool("node"), str(directory / "provider.mjs")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield RealProvider(process, json.loads(process.stdout.readline())["issuer"])
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(10) == 0


def settings_for(issuer: str, **more: str) -> dict[str, str]:
    found = {
        "HUTCH_SSO__ISSUER": issuer,
        "HUTCH_SSO__CLIENT_ID": CLIENT_ID,
        "HUTCH_SSO__CLIENT_SECRET": CLIENT_SECRET,
        "HUTCH_SSO__SCOPES": "openid,email,profile,groups",
        "HUTCH_SSO__ROLES": json.dumps(RULES),
        "HUTCH_LIMITS__LOGINS_PER_MINUTE": "0",
    }
    found |= {f"HUTCH_SSO__{name.upper()}": value for name, value in more.items()}
    return {name: value for name, value in found.items() if value}


@pytest.fixture
def sso() -> dict[str, str]:
    """More settings of `sso`, by name; override it in a test's parameters."""
    return {}


@pytest.fixture
async def api(
    tmp_path: Path, host: FakeHost, installed: Path, provider_process: RealProvider, sso: dict[str, str]
) -> AsyncIterator[Api]:
    """A server whose people the real provider knows, with the teams `acme` and `books`."""
    environment = settings_for(provider_process.issuer, **sso)
    async with served(tmp_path, host, environment, installed) as running:
        await prepared(running)
        client: dict[str, Any] = {"client_id": CLIENT_ID, "redirect_uris": [f"{running.url}{LOGIN}/callback"]}
        if running.services.settings.sso.client_secret:
            client["client_secret"] = CLIENT_SECRET
        provider_process.tell(start={"clients": [client], "accounts": ACCOUNTS})
        yield running


async def prepared(running: Api) -> None:
    running.services.issuer = running.url
    async with running.services.database.write() as connection:
        for slug in ("acme", "books"):
            team = await tenants.ensure_team(connection, slug, now_ms())
            await tenants.ensure_project(connection, team.id, "web", now_ms())


# -- a command line's part --------------------------------------------------------------------------


@dataclass
class Cli:
    """A login as a command line has it."""

    api: Api
    verifier: str
    state: str
    begun: dict[str, Any]

    async def end(self, code: str, verifier: str | None = None) -> httpx.Response:
        body = {"code": code, "verifier": verifier or self.verifier}
        return await self.api.client("").post(f"{LOGIN}/token", json=body)


async def begin(api: Api, *, port: int | None = 45678, **more: Any) -> Cli:
    verifier, state = new_secret(), new_secret()
    body = {"challenge": challenge_of(verifier), **({"port": port, "state": state} if port is not None else {}), **more}
    response = await api.client("").post(LOGIN, json=body)
    assert response.status_code == 201, response.text
    return Cli(api, verifier, state, response.json())


# -- a browser's part -------------------------------------------------------------------------------


@dataclass
class Page:
    """What a browser shows, or where it is sent that is no server's of ours."""

    status: int
    url: str
    text: str
    headers: httpx.Headers = field(default_factory=httpx.Headers)

    @property
    def query(self) -> dict[str, str]:
        return {name: values[0] for name, values in parse_qs(urlsplit(self.url).query).items()}

    def fields(self) -> dict[str, str]:
        """The hidden fields of its form, and the first of its choices."""
        inputs = re.findall(r'<input type="(?:hidden|radio)" name="([^"]+)" value="([^"]*)"', self.text)
        return {name: unescape(value) for name, value in reversed(inputs)}

    def choices(self) -> list[str]:
        return re.findall(r'name="member" value="([^"]+)"', self.text)


class Browser:
    """Cookies, redirects and forms, followed until there is a page of ours or a loopback port."""

    def __init__(self, api: Api, account: str = "ada", password: str = "any") -> None:
        self.api = api
        self._account, self._password = account, password
        self.http = httpx.AsyncClient(timeout=20, follow_redirects=False)
        api._clients.append(self.http)

    async def open(self, url: str) -> Page:
        """Go there, and log in at the provider if it asks."""
        return await self._follow(await self.http.get(url))

    async def stop_at_callback(self, url: str) -> str:
        """The same, but the last step, to this server's callback, is not taken; its URL."""
        return (await self._follow(await self.http.get(url), stop=f"{LOGIN}/callback")).url

    async def submit(self, page: Page, answer: str = "yes", **fields: str) -> Page:
        """Press a button of the page that asks."""
        form = {**page.fields(), "answer": answer, **fields}
        response = await self.http.post(f"{self.api.url}{LOGIN}/confirm", data=form, headers={"origin": self.api.url})
        return await self._follow(response)

    async def _follow(self, response: httpx.Response, stop: str = "") -> Page:
        for _ in range(20):
            if response.is_redirect:
                url = str(response.url.join(response.headers["location"]))
                port = urlsplit(url).port
                if (stop and urlsplit(url).path == stop) or port == 45678:
                    return Page(response.status_code, url, "", response.headers)
                response = await self.http.get(url)
            elif "/interaction/" in response.url.path:
                # The pages of the provider: a name and any password, then a yes to what is asked for.
                prompt = re.search(r'name="prompt" value="(\w+)"', response.text)
                assert prompt is not None, response.text
                form = {"prompt": prompt[1], "login": self._account, "password": self._password}
                response = await self.http.post(str(response.url), data=form)
            elif (onward := re.search(r'http-equiv="refresh" content="0; url=([^"]+)"', response.text)) is not None:
                response = await self.http.get(unescape(onward[1]))
            else:
                return Page(response.status_code, str(response.url), response.text, response.headers)
        raise AssertionError("redirected for ever")


async def logged_in(api: Api, account: str, **more: Any) -> dict[str, Any]:
    """The whole way; what a command line gets in the end."""
    cli, browser = await begin(api, **more), Browser(api, account)
    page = await browser.open(cli.begun["url"])
    assert page.status == 200, page.text
    back = await browser.submit(page)
    response = await cli.end(back.query["code"])
    assert response.status_code == 200, response.text
    return dict(response.json())


async def audit(api: Api, team: str) -> list[dict[str, Any]]:
    response = await api.http.get(f"/hutch/v1/teams/{team}/audit-log")
    assert response.status_code == 200, response.text
    return list(response.json()["entries"])


async def until_over(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not await condition():
            await asyncio.sleep(0.02)
