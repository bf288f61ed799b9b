"""Logins of workers with other services: the provider is a small strict one, and sometimes a hostile one."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import httpx
import pytest
from sqlalchemy import update

from hutch.control.records import Scope
from hutch.egress.policy import check
from hutch.errors import UnavailableError
from hutch.host.protocol import NetworkSpec, SessionStatus
from hutch.storage import worker_oauth, workers
from hutch.storage.models import DeploymentModel
from hutch.storage.workers import Worker
from hutch.workers import connections, oauth
from hutch.workers.manifest import OAuth
from tests.api.conftest import Api
from tests.api.serving import deployed, tool
from tests.workers.declared import oauth as declared

SECRET = "client-secret-CANARY"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


PORT = free_port()


@pytest.fixture
def environment() -> dict[str, str]:
    return {"HUTCH_WORKERS__OAUTH_HOSTS": json.dumps([f"127.0.0.1:{PORT}"])}


@dataclass
class Provider:
    """Codes and refresh tokens are good for one use, and a code for its verifier only."""

    basic: bool = False
    lives_s: int = 3600
    answer: Callable[[dict[str, str]], tuple[int, bytes]] | None = None
    codes: dict[str, str] = field(default_factory=dict)
    refresh_tokens: set[str] = field(default_factory=set)
    asked: list[dict[str, str]] = field(default_factory=list)

    def agree(self, url: str) -> str:
        """A person agrees; the code."""
        asked = dict(parse_qsl(urlsplit(url).query))
        code = f"code-{len(self.codes)}"
        self.codes[code] = asked["code_challenge"]
        return code

    def token(self, form: dict[str, str], authorization: str) -> tuple[int, bytes]:
        self.asked.append(form)
        if self.answer is not None:
            return self.answer(form)
        expected = "Basic " + base64.b64encode(f"client-1:{SECRET}".encode()).decode()
        known = authorization == expected if self.basic else form.get("client_secret") == SECRET
        if not known:
            return 401, b'{"error": "invalid_client"}'
        if form["grant_type"] == "authorization_code":
            challenge = self.codes.pop(form["code"], None)
            digest = hashlib.sha256(form["code_verifier"].encode()).digest()
            if challenge != base64.urlsafe_b64encode(digest).rstrip(b"=").decode():
                return 400, b'{"error": "invalid_grant"}'
        elif form["refresh_token"] not in self.refresh_tokens:
            return 400, b'{"error": "invalid_grant"}'
        self.refresh_tokens.discard(form.get("refresh_token", ""))
        number = len(self.asked)
        self.refresh_tokens.add(f"refresh-{number}")
        found = {"access_token": f"access-{number}", "refresh_token": f"refresh-{number}", "expires_in": self.lives_s}
        return 200, json.dumps(found).encode()


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    found = Provider()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
            form = dict(parse_qsl((await reader.readexactly(int(headers["content-length"]))).decode()))
            status, body = found.token(form, headers.get("authorization", ""))
            location = b"location: http://127.0.0.1:1/\r\n" if 300 <= status < 400 else b""
            writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n".encode() + location + b"\r\n" + body)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", PORT)
    yield found
    server.close()


def capability(**changes: Any) -> dict[str, Any]:
    config = {
        "clientSecret": SECRET,
        "tokenEndpoint": f"http://127.0.0.1:{PORT}/token",
        "authorizationParams": {"prompt": "consent"},
    }
    return {"_tag": "oauth", "key": "github", "config": declared(**{**config, **changes})}


async def call(api: Api, name: str, worker: str, http: httpx.AsyncClient | None = None) -> httpx.Response:
    return await (http or api.http).post(f"/v3/workers{name}", json={"workerId": worker, "oauthCapabilityKey": "github"})


async def started(api: Api, worker: str) -> tuple[str, str]:
    answer = await call(api, "StartOauth", worker)
    assert answer.status_code == 200, answer.text
    return answer.json()["authorizationUrl"], answer.json()["state"]


async def returned(api: Api, **query: str) -> httpx.Response:
    return await api.client("").get("/workers/oauth/callback", params=query)


async def connected(api: Api, provider: Provider, worker: str) -> None:
    url, state = await started(api, worker)
    page = await returned(api, state=state, code=provider.agree(url))
    assert (page.status_code, "Connected" in page.text) == (200, True), page.text


async def token(api: Api, worker: str) -> str:
    return str((await call(api, "GetOauthToken", worker)).json()["accessToken"])


async def test_a_person_agrees_and_runs_have_the_token(api: Api, provider: Provider) -> None:
    worker = await deployed(api, capability(), tool("greet"))
    assert (await call(api, "GetOauthToken", worker)).json()["error"]["code"] == "oauth_not_connected"
    url, state = await started(api, worker)
    query = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
    assert query["state"] == state
    assert query["redirect_uri"] == f"{api.services.issuer}/workers/oauth/callback"
    assert (query["client_id"], query["scope"], query["prompt"]) == ("client-1", "repo user", "consent")
    assert query["code_challenge_method"] == "S256"
    assert SECRET not in url
    page = await returned(api, state=state, code=provider.agree(url))
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    shown = (await call(api, "GetOauthToken", worker)).json()
    assert shown["accessToken"] == "access-1"
    assert shown["expiresAt"].endswith("Z")
    pulled = (await api.http.post("/v3/workersPullEnv", json={"workerId": worker})).json()["env"]
    assert pulled == [{"key": oauth.variable("github-oauth"), "value": "access-1"}]
    run = {"workerId": worker, "capabilityKey": "greet", "args": "environment"}
    assert (await api.http.post("/v3/workersRunCapability", json=run)).json()["result"] == {
        oauth.variable("github-oauth"): "access-1"
    }
    assert len(provider.asked) == 1
    database = (api.services.settings.control_dir / "hutch.db").read_bytes()
    assert b"access-1" not in database
    assert b"refresh-1" not in database
    assert state.encode() not in database
    assert (await api.http.post("/v3/workersDeleteWorker", json={"workerId": worker})).status_code == 200


async def test_a_state_is_good_for_one_use_and_a_while(api: Api, provider: Provider) -> None:
    worker = await deployed(api, capability())
    url, state = await started(api, worker)
    code = provider.agree(url)
    pages = await asyncio.gather(*(returned(api, state=state, code=code) for _ in range(5)))
    assert sorted(page.status_code for page in pages) == [200, 400, 400, 400, 400]
    # A new start ends the one before.
    _, former = await started(api, worker)
    url, state = await started(api, worker)
    assert (await returned(api, state=former, code=provider.agree(url))).status_code == 400
    # Nobody agreed: it is used up all the same.
    assert (await returned(api, state=state, error="access_denied")).status_code == 400
    assert (await returned(api, state=state, code=provider.agree(url))).status_code == 400
    url, state = await started(api, worker)
    now = api.services.clock
    api.services.clock = lambda: now() + oauth.STATE_LIFE_MS + 1000
    assert (await returned(api, state=state, code=provider.agree(url))).status_code == 400
    api.services.clock = now


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"state": ""},
        {"state": "x" * 8000, "code": "a code of nobody"},
        {"state": "\0", "code": "\0"},
        {"state": "<script>alert(1)</script>", "code": "<b>", "error": "<img src=x>"},
    ],
)
async def test_whoever_comes_without_a_login_gets_a_page_without_their_words(api: Api, query: dict[str, str]) -> None:
    page = await returned(api, **query)
    assert (page.status_code, page.headers["cache-control"]) == (400, "no-store")
    assert page.headers["content-security-policy"] == "default-src 'none'"
    assert not any(value in page.text for value in query.values() if value)


async def test_a_token_that_ends_is_refreshed_once_for_all_who_wait(api: Api, provider: Provider) -> None:
    worker = await deployed(api, capability())
    provider.lives_s = 30
    await connected(api, provider, worker)
    provider.lives_s = 3600
    tokens = await asyncio.gather(*(token(api, worker) for _ in range(8)))
    assert set(tokens) == {"access-2"}, "it had less than a minute"
    assert [form["grant_type"] for form in provider.asked] == ["authorization_code", "refresh_token"]
    assert await token(api, worker) == "access-2"


async def test_a_refresh_goes_on_when_nobody_waits_for_it(api: Api, provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    scope, worker, found = await connection_of(api, provider)
    asking = asyncio.create_task(connections.current(api.services, scope, worker, found))
    put, failed = worker_oauth.put_token, False

    def goes_away(form: dict[str, str]) -> tuple[int, bytes]:
        asking.cancel()
        provider.answer = None
        provider.lives_s = 3600
        return provider.token(form, "")

    async def fails_once(*given: Any) -> None:
        nonlocal failed
        if not failed:
            failed = True
            raise UnavailableError("database_unavailable", "The database does not answer. Try again.")
        await put(*given)

    provider.answer = goes_away
    monkeypatch.setattr(worker_oauth, "put_token", fails_once)
    with pytest.raises(asyncio.CancelledError):
        await asking
    refreshed = await token(api, worker.id)
    assert (failed, refreshed) == (True, f"access-{len(provider.asked)}")
    assert [form["refresh_token"] for form in provider.asked[1:]] == ["refresh-1", "refresh-1"], "asked once, and counted twice"


async def test_a_login_that_is_another_by_now_is_not_given_up(
    api: Api, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    scope, worker, found = await connection_of(api, provider)
    services = api.services
    newer = oauth.Token(access_token="newer", refresh_token="another", expires_at_ms=services.clock() + 3_600_000)

    async def overtaken(answer: oauth.Token | oauth.Refused) -> oauth.Token | None:
        """What is answered when another process has stored a token by the time the provider answers."""

        async def asked(*_: Any) -> Any:
            async with services.database.write() as connection:
                await worker_oauth.put_token(connection, scope, worker.id, found.name, newer, services.sealer, 1)
            return answer

        async with services.database.write() as connection:
            over = oauth.Token(access_token="over", refresh_token="used up", expires_at_ms=1)
            await worker_oauth.put_token(connection, scope, worker.id, found.name, over, services.sealer, 1)
        with monkeypatch.context() as patched:
            patched.setattr(connections, "_asked", asked)
            return await connections.current(services, scope, worker, found)

    assert await overtaken(oauth.Refused("invalid_grant", final=True)) == newer
    assert await token(api, worker.id) == "newer"
    late = oauth.Token(access_token="late", refresh_token="late", expires_at_ms=services.clock() + 3_600_000)
    assert await overtaken(late) == late
    assert await token(api, worker.id) == "newer"


async def connection_of(api: Api, provider: Provider) -> tuple[Scope, Worker, OAuth]:
    """A worker with a token that ends soon."""
    worker_id = await deployed(api, capability())
    provider.lives_s = 30
    await connected(api, provider, worker_id)
    scope = Scope(api.own.team_id, api.own.project_id)
    async with api.services.database.read() as connection:
        worker = await workers.find(connection, scope, worker_id)
    assert worker is not None
    return scope, worker, await connections.config(api.services, scope, worker, "github")


async def test_a_login_that_the_provider_ended_is_over_and_one_that_it_did_not_answer_is_not(
    api: Api, provider: Provider
) -> None:
    worker = await deployed(api, capability(), tool("greet"))
    provider.lives_s = 30
    await connected(api, provider, worker)
    provider.answer = lambda form: (503, b"away")
    assert await token(api, worker) == "access-1", "what still lives is used"
    now = api.services.clock
    api.services.clock = lambda: now() + 31_000
    assert (await call(api, "GetOauthToken", worker)).json()["error"]["code"] == "oauth_not_connected"
    run = {"workerId": worker, "capabilityKey": "greet", "args": {"a": 1}}
    assert (await api.http.post("/v3/workersRunCapability", json=run)).json() == {"result": {"a": 1}}
    provider.answer = None
    assert (await token(api, worker)).startswith("access-")
    provider.refresh_tokens.clear()
    api.services.clock = lambda: now() + 100_000
    assert (await call(api, "GetOauthToken", worker)).json()["error"]["code"] == "oauth_not_connected"
    before = len(provider.asked)
    assert (await call(api, "GetOauthToken", worker)).status_code == 404
    assert len(provider.asked) == before, "a login that is over is asked about no more"
    api.services.clock = now


async def test_a_provider_that_wants_the_secret_in_a_header_gets_it_there(api: Api, provider: Provider) -> None:
    provider.basic = True
    worker = await deployed(api, capability())
    await connected(api, provider, worker)
    assert await token(api, worker) == "access-2"


@pytest.mark.parametrize(
    "answer",
    [
        (200, b""),
        (200, b"{}"),
        (200, b'{"access_token": 7}'),
        (200, b'{"access_token": "a\\nb"}'),
        (200, b'{"access_token": "' + b"x" * 1_000_000 + b'"}'),
        (200, b"[" * 50_000),
        (302, b""),
        (500, b"<script>alert(1)</script>"),
        (400, b'{"error": "<script>alert(1)</script>"}'),
    ],
    ids=range(9),
)
async def test_answers_of_a_hostile_provider_connect_nothing(api: Api, provider: Provider, answer: tuple[int, bytes]) -> None:
    worker = await deployed(api, capability())
    url, state = await started(api, worker)
    code = provider.agree(url)
    provider.answer = lambda form: answer
    page = await returned(api, state=state, code=code)
    assert page.status_code == 400
    assert "<script>" not in page.text
    assert (await call(api, "GetOauthToken", worker)).status_code == 404


@pytest.mark.parametrize(
    ("endpoint", "code"),
    [
        ("http://127.0.0.1:1/token", "oauth_not_allowed"),
        ("http://localhost:1/token", "oauth_not_allowed"),
        ("https://169.254.169.254/token", "oauth_not_allowed"),
        ("https://10.0.0.1/token", "oauth_not_allowed"),
        ("https://[::ffff:127.0.0.1]/token", "oauth_not_allowed"),
        ("https://no-such-name.invalid/token", "oauth_unreachable"),
    ],
)
async def test_no_token_endpoint_is_within_our_walls(api: Api, provider: Provider, endpoint: str, code: str) -> None:
    worker = await deployed(api, capability(tokenEndpoint=endpoint))
    url, state = await started(api, worker)
    refused = await returned(api, state=state, code=provider.agree(url))
    assert refused.json()["error"]["code"] == code
    assert provider.asked == []


async def test_what_can_t_be_a_login_is_refused_at_its_start(api: Api) -> None:
    managed = await deployed(
        api, {"_tag": "oauth", "key": "github", "config": {"type": "notion_managed", "name": "n", "provider": "google"}}
    )
    assert (await call(api, "StartOauth", managed)).json()["error"]["code"] == "oauth_unusable"
    without = await deployed(api, capability(clientId=""))
    refused = (await call(api, "StartOauth", without)).json()["error"]
    assert (refused["code"], "set it as a secret" in refused["message"]) == ("oauth_unusable", True)
    other = await deployed(api, tool("github"))
    assert (await call(api, "StartOauth", other)).status_code == 404
    stranger = await api.tenant("strangers")
    worker = await deployed(api, capability())
    for name in ("StartOauth", "GetOauthToken"):
        assert (await call(api, name, worker, stranger.http)).status_code == 404


# -- tokens that stay at the gateway -----------------------------------------------------------------


async def declares(api: Api, worker: str, *hosts: str) -> None:
    """Have the deployment that serves say which hosts take the token."""
    text = json.dumps({"network": None, "oauth": {"github": hosts}})
    async with api.services.database.write() as connection:
        await connection.execute(update(DeploymentModel).where(DeploymentModel.worker_id == worker).values(network=text))


async def ran(api: Api, worker: str) -> tuple[Any, NetworkSpec]:
    """What a run found in its environment, and the network that it had."""
    run = {"workerId": worker, "capabilityKey": "greet", "args": "environment"}
    answer = await api.http.post("/v3/workersRunCapability", json=run)
    assert answer.status_code == 200, answer.text
    [last, *_] = (await api.http.get(f"/hutch/v1/workers/{worker}/runs")).json()["runs"]
    return answer.json()["result"], api.host.networks[last["session_id"]]


async def test_a_token_whose_hosts_are_known_is_told_to_the_gateway_alone(api: Api, provider: Provider) -> None:
    worker = await deployed(api, capability(), tool("greet"))
    await declares(api, worker, "api.example.com")
    await connected(api, provider, worker)
    found, network = await ran(api, worker)
    assert found == {}
    assert list(network.credentials.values()) == ["access-1"]
    policy = check(network.policy or "")
    assert policy.placeholders == ((oauth.variable("github-oauth"), next(iter(network.credentials))),)
    assert "access-1" not in policy.text
    # Whoever changes the bounds of what waits for the next call does not take the token from it.
    bounds = {"mode": "allow-all", "block": ["evil.test"]}
    assert (await api.http.put(f"/hutch/v1/projects/{api.own.project_id}/network-policy", json=bounds)).status_code == 200
    for session, spec in api.host.networks.items():
        if api.host.sessions[session].status is SessionStatus.RUNNING and spec.policy and "placeholder" in spec.policy:
            assert list(spec.credentials.values()) == ["access-1"]
    (name,) = network.credentials
    assert (await api.http.put(f"/hutch/v1/credentials/{name}", json={"value": "mine"})).status_code == 400
    pulled = (await api.http.post("/v3/workersPullEnv", json={"workerId": worker})).json()["env"]
    assert pulled == [{"key": oauth.variable("github-oauth"), "value": "access-1"}]
    # An empty list wants the token itself.
    await declares(api, worker)
    found, network = await ran(api, worker)
    assert found == {oauth.variable("github-oauth"): "access-1"}
    assert network.credentials == {}


async def test_a_refreshed_token_is_in_the_next_run_and_what_waited_with_the_old_one_is_ended(
    api: Api, provider: Provider
) -> None:
    provider.lives_s = 30
    worker = await deployed(api, capability(), tool("greet"))
    await declares(api, worker, "api.example.com")
    await connected(api, provider, worker)
    for number in (2, 3, 4):
        _, network = await ran(api, worker)
        assert list(network.credentials.values()) == [f"access-{number}"], "refreshed before the run"

    def old() -> list[str]:
        return [
            session
            for session, spec in api.host.networks.items()
            if api.host.sessions[session].status is SessionStatus.RUNNING
            and set(spec.credentials.values()) & {"access-1", "access-2", "access-3"}
        ]

    async with asyncio.timeout(10):
        while old():
            await asyncio.sleep(0.02)


async def test_a_provider_of_the_operator_s_is_used_without_an_app_of_ones_own(
    api: Api, provider: Provider, tmp_path: Path
) -> None:
    path = tmp_path / "clients.json"
    settings = api.services.settings
    changed = settings.workers.model_copy(update={"oauth_clients": path})
    config = {"type": "notion_managed", "name": "n", "provider": "corp"}
    worker = await deployed(api, {"_tag": "oauth", "key": "github", "config": config}, tool("greet"))

    async def refused() -> str:
        answer = await call(api, "StartOauth", worker)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "oauth_unusable"), answer.text
        assert SECRET not in answer.text
        return str(answer.json()["message"])

    assert "workers.oauth_clients" in await refused()
    api.services.settings = settings.model_copy(update={"workers": changed})
    assert "can't be read" in await refused()
    path.write_text('{"corp": {"clientSecret": "' + SECRET + '"}}')
    assert "can't be read" in await refused()
    app = {"clientId": "client-1", "clientSecret": SECRET, "hosts": ["api.corp.test"], "scope": "read"}
    endpoints = {"authorizationEndpoint": "https://id.corp.test/go", "tokenEndpoint": f"http://127.0.0.1:{PORT}/token"}
    path.write_text(json.dumps({"corp": app | endpoints}))
    provider.lives_s = 30
    await connected(api, provider, worker)
    found, network = await ran(api, worker)
    assert (found, list(network.credentials.values())) == ({}, ["access-2"])
    assert [form["grant_type"] for form in provider.asked] == ["authorization_code", "refresh_token"]
    assert "api.corp.test" in (network.policy or "")
    assert SECRET not in (network.policy or "")
    path.write_text("{}")
    found, network = await ran(api, worker)
    assert "access-2" in [*found.values(), *network.credentials.values()], (
        "a token that lives is used while it can't be refreshed"
    )
