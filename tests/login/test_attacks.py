"""Logins by those who should have none: other browsers, other sites, other programs of the machine, and a provider that lies."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import httpx
import pytest
from sqlalchemy import text

from hutch.api.login import LIFE_MS
from hutch.clock import now_ms
from hutch.login.provider import MAX_ANSWER_BYTES
from hutch.login.secrets import new_secret
from hutch.storage import logins as rows
from tests.api.conftest import Api, served
from tests.api.fake_host import FakeHost
from tests.login.conftest import LOGIN, Browser, begin, prepared, settings_for
from tests.login.hostile import OTHER_RSA, RSA, HostileProvider, answer, forged, hostile_provider, public_jwk, redirect, signed


@pytest.fixture
def provider() -> Iterator[HostileProvider]:
    with hostile_provider() as running:
        yield running


@pytest.fixture
async def api(
    tmp_path: Path, host: FakeHost, installed: Path, provider: HostileProvider, sso: dict[str, str]
) -> AsyncIterator[Api]:
    async with served(tmp_path, host, settings_for(provider.issuer, **sso), installed) as running:
        await prepared(running)
        yield running


def with_query(url: str, **changed: str | None) -> str:
    parts = urlsplit(url)
    query = {**dict(parse_qsl(parts.query)), **changed}
    return urlunsplit(parts._replace(query=urlencode({name: value for name, value in query.items() if value is not None})))


def forget_the_failure(api: Api) -> None:
    """As if it were a second later: a provider that failed is not asked again at once."""
    assert api.services.provider is not None
    api.services.provider._failed_at = None


async def nobody_came(api: Api) -> None:
    async with api.services.database.read() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM members"))).scalar_one() == 0
        assert (await connection.execute(text("SELECT count(*) FROM tokens WHERE name = 'hutch login'"))).scalar_one() == 0


# -- a provider that lies, or somebody who speaks in its name ---------------------------------------


async def test_what_this_provider_says_is_believed_when_it_is_right(api: Api, provider: HostileProvider) -> None:
    page = await Browser(api).open((await begin(api)).begun["url"])
    assert page.status == 200
    assert "Mallory" in page.text
    assert provider.forms[0]["redirect_uri"] == f"{api.url}{LOGIN}/callback"


LIES: dict[str, Callable[[HostileProvider], None]] = {
    "another issuer": lambda it: it.claims.update(iss="https://evil.example"),
    "another client": lambda it: it.claims.update(aud="other"),
    "several clients": lambda it: it.claims.update(aud=["hutch-tests", "other"]),
    "another party": lambda it: it.claims.update(azp="other"),
    "expired": lambda it: it.claims.update(exp=int(time.time()) - 120),
    "long ago": lambda it: it.claims.update(iat=int(time.time()) - 3600),
    "no nonce": lambda it: it.claims.update(nonce=None),
    "another nonce": lambda it: it.claims.update(nonce=new_secret()),
    "no signature": lambda it: setattr(it, "sign", lambda claims: forged(claims, {"alg": "none"})),
    "a key of somebody's own": lambda it: setattr(it, "sign", lambda claims: signed(claims, OTHER_RSA)),
    "a key in the header": lambda it: setattr(
        it, "sign", lambda claims: signed(claims, OTHER_RSA, jwk=public_jwk(OTHER_RSA, "one"))
    ),
    "no key": lambda it: setattr(it, "keys", []),
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_token_that_lies_logs_nobody_in(api: Api, provider: HostileProvider, lie: str) -> None:
    LIES[lie](provider)
    page = await Browser(api).open((await begin(api)).begun["url"])
    assert (page.status, "can&#x27;t be believed" in page.text) == (400, True)
    await nobody_came(api)


@pytest.mark.parametrize("sso", [{"email_domains": "example.com"}])
@pytest.mark.parametrize(
    "claims",
    [
        {"email_verified": False},
        {"email_verified": None},
        {"email_verified": "true"},
        {"email": "mallory@example.com.evil.example"},
        {"email": "mallory@sub.example.com"},
        {"email": "a@example.com@evil.example"},
        {"email": "mallory@evil.example\n@example.com"},
        {"email": ["mallory@example.com"]},
        {"email": "example.com"},
        {"email": "@example.com"},
        {"email": None},
    ],
)
async def test_an_address_that_is_not_verified_or_not_of_the_domain_is_not_enough(
    api: Api, provider: HostileProvider, claims: dict[str, Any]
) -> None:
    provider.claims = claims
    page = await Browser(api).open((await begin(api)).begun["url"])
    assert page.status == 403
    await nobody_came(api)


@pytest.mark.parametrize("sso", [{"email_domains": "example.com"}])
async def test_an_address_and_its_verification_are_of_one_place(api: Api, provider: HostileProvider) -> None:
    provider.said["userinfo_endpoint"] = f"{provider.issuer}/userinfo"
    provider.claims = {"email": "boss@example.com", "email_verified": None}
    provider.userinfo = {"sub": "mallory", "email": "mallory@evil.example", "email_verified": True}
    assert (await Browser(api).open((await begin(api)).begun["url"])).status == 403
    provider.claims = {"email": None, "email_verified": None}
    provider.userinfo = {"sub": "somebody-else", "email": "boss@example.com", "email_verified": True}
    page = await Browser(api).open((await begin(api)).begun["url"])
    assert (page.status, "somebody else" in page.text) == (400, True)
    await nobody_came(api)


@pytest.mark.parametrize("groups", ["leads", "eng,leads", {"eng": True}, [["eng"]], [None, 5], "ENG", ["en"], True])
async def test_claims_of_another_form_give_no_role_that_no_rule_names(api: Api, provider: HostileProvider, groups: Any) -> None:
    provider.claims = {"groups": groups}
    page = await Browser(api).open((await begin(api)).begun["url"])
    assert page.status == (200 if groups == "leads" else 403)


async def test_new_keys_are_fetched_for_a_new_name_but_not_again_and_again(api: Api, provider: HostileProvider) -> None:
    browser = Browser(api)
    assert (await browser.open((await begin(api)).begun["url"])).status == 200
    provider.sign = lambda claims: signed(claims, OTHER_RSA, kid="two")
    provider.keys = [public_jwk(OTHER_RSA, "two")]
    for _ in range(3):
        assert (await browser.open((await begin(api)).begun["url"])).status == 400, "the keys were fetched a moment ago"
    assert provider.asked.count("/keys") == 1
    known = api.services.provider
    assert known is not None
    start = known._monotonic()
    known._monotonic = lambda: start + 31
    assert (await browser.open((await begin(api)).begun["url"])).status == 200
    assert provider.asked.count("/keys") == 2
    provider.sign = lambda claims: signed(claims, RSA, kid="one")
    assert (await browser.open((await begin(api)).begun["url"])).status == 400, "a key that is gone signs nothing any more"


@pytest.mark.parametrize(
    "said",
    [
        {"issuer": "https://evil.example"},
        {"token_endpoint": "https://evil.example:99999999/token"},
        {"token_endpoint": "file:///etc/passwd"},
        {"token_endpoint": None},
        {"jwks_uri": 5},
        {"authorization_endpoint": "javascript:alert(1)"},
        {"authorization_endpoint": "https://"},
    ],
)
async def test_a_configuration_that_can_not_be_used_is_not(api: Api, provider: HostileProvider, said: dict[str, Any]) -> None:
    provider.said |= said
    page = await Browser(api).open((await begin(api)).begun["url"])
    assert page.status == 503
    assert "provider_unavailable" in page.text
    assert "evil.example" not in page.text
    await nobody_came(api)


def slow(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.end_headers()
    for _ in range(200):
        request.wfile.write(b" ")
        # It is the slowness that is tested.
        time.sleep(0.05)


def huge(request: BaseHTTPRequestHandler) -> None:
    answer(request, None, raw=b'{"a": "' + b"x" * (MAX_ANSWER_BYTES + 1) + b'"}')


FAULTS: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {
    "slow": slow,
    "huge": huge,
    "broken": lambda request: request.connection.shutdown(socket.SHUT_RDWR),
    "an error": lambda request: answer(request, {"error": "server_error"}, 500),
    "elsewhere": lambda request: redirect(request, "https://evil.example/"),
    "no JSON": lambda request: answer(request, None, raw=b"<html>"),
    "deep JSON": lambda request: answer(request, None, raw=b"[" * 100_000),
    "a list": lambda request: answer(request, []),
    "twice": lambda request: answer(request, None, raw=b'{"issuer": "a", "issuer": "b"}'),
    "no text": lambda request: answer(request, None, raw=b"\xff\xfe"),
}


@pytest.mark.parametrize("path", ["/.well-known/openid-configuration", "/keys", "/token", "/userinfo"])
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_provider_that_fails_fails_one_login_and_nothing_else(
    api: Api, provider: HostileProvider, path: str, fault: str
) -> None:
    provider.said["userinfo_endpoint"] = f"{provider.issuer}/userinfo"
    provider.claims = {"email": None}
    provider.userinfo = {"sub": "mallory"}
    provider.answers[path] = FAULTS[fault]
    known = api.services.provider
    assert known is not None
    patience_s = known._timeout_s
    if fault == "slow":
        known._timeout_s = 1.0
    opening = asyncio.create_task(Browser(api).open((await begin(api)).begun["url"]))
    assert (await api.http.get("/healthz")).status_code == 200
    page = await opening
    assert page.status in (400, 503), page.text
    assert "evil.example" not in page.text
    await nobody_came(api)
    del provider.answers[path]
    known._timeout_s = patience_s
    forget_the_failure(api)
    assert (await Browser(api).open((await begin(api)).begun["url"])).status == 200


async def test_a_provider_that_is_away_uses_up_no_login(api: Api, provider: HostileProvider) -> None:
    provider.answers["/.well-known/openid-configuration"] = FAULTS["broken"]
    cli, browser = await begin(api), Browser(api)
    page = await browser.open(cli.begun["url"])
    assert (page.status, page.headers["retry-after"]) == (503, "5")
    provider.answers.clear()
    forget_the_failure(api)
    assert (await browser.open(cli.begun["url"])).status == 200


# -- what the browser brings back -------------------------------------------------------------------


@pytest.mark.parametrize("state", [None, "", "x", "x" * 43, "x" * 10_000, "%00", "é"])
async def test_a_state_of_another_login_is_refused(api: Api, state: str | None) -> None:
    browser = Browser(api)
    back = await browser.stop_at_callback((await begin(api)).begun["url"])
    assert (await browser.open(with_query(back, state=state))).status == 400
    await nobody_came(api)
    assert (await browser.open(back)).status == 200, "nothing was used up"


async def test_the_way_back_of_one_browser_logs_no_other_in(api: Api) -> None:
    """Login CSRF: mallory sends somebody the end of his own login."""
    back = await Browser(api).stop_at_callback((await begin(api)).begun["url"])
    victim = Browser(api)
    assert (await victim.open(back)).status == 400
    await victim.stop_at_callback((await begin(api)).begun["url"])
    assert (await victim.open(back)).status == 400
    await nobody_came(api)


async def test_a_code_of_another_login_does_not_come_with_this_ones_nonce(api: Api, provider: HostileProvider) -> None:
    """Mix-up: the code of one login in the way back of another. The provider checks its PKCE, and the nonce is another's."""
    mine = Browser(api)
    back = await mine.stop_at_callback((await begin(api)).begun["url"])
    provider.nonce = new_secret()
    assert (await mine.open(with_query(back, code="stolen"))).status == 400
    await nobody_came(api)


async def test_a_way_back_holds_once(api: Api, provider: HostileProvider) -> None:
    browser = Browser(api)
    back = await browser.stop_at_callback((await begin(api)).begun["url"])
    first, second = await asyncio.gather(browser.open(back), browser.open(back))
    assert sorted((first.status, second.status)) == [200, 400]
    assert (await browser.open(back)).status == 400
    assert len(provider.forms) == 1


async def test_a_parameter_that_is_there_twice_is_refused(api: Api) -> None:
    browser = Browser(api)
    back = await browser.stop_at_callback((await begin(api)).begun["url"])
    for name in ("state", "code", "iss"):
        assert (await browser.open(f"{back}&{name}=a&{name}=b")).status == 400


async def test_another_provider_does_not_send_anybody_back(api: Api, provider: HostileProvider) -> None:
    provider.back = {"iss": "https://evil.example"}
    assert (await Browser(api).open((await begin(api)).begun["url"])).status == 400
    provider.back = {"iss": provider.issuer}
    assert (await Browser(api).open((await begin(api)).begun["url"])).status == 200


async def test_a_provider_that_names_itself_has_to(api: Api, provider: HostileProvider) -> None:
    provider.said["authorization_response_iss_parameter_supported"] = True
    assert (await Browser(api).open((await begin(api)).begun["url"])).status == 400


async def test_an_error_of_the_provider_is_a_page_without_its_words(api: Api, provider: HostileProvider) -> None:
    provider.back = {"code": "", "error": "<script>alert(1)</script>", "error_description": "<b>x</b>"}
    page = await Browser(api).open((await begin(api)).begun["url"])
    assert page.status == 403
    assert "alert" not in page.text
    assert "<b>x" not in page.text


async def test_what_a_provider_says_of_a_person_is_text_and_nothing_else(api: Api, provider: HostileProvider) -> None:
    provider.claims = {"name": '"><script>alert(1)</script>\x1b[2J\u202e' + "x" * 500}
    page = await Browser(api).open((await begin(api)).begun["url"])
    assert page.status == 200
    assert "<script" not in page.text
    assert "\x1b" not in page.text
    assert "\u202e" not in page.text


# -- the page that asks -----------------------------------------------------------------------------


async def test_another_site_can_not_say_yes(api: Api) -> None:
    cli, browser = await begin(api), Browser(api)
    page = await browser.open(cli.begun["url"])
    place = f"{api.url}{LOGIN}/confirm"
    form = {**page.fields(), "answer": "yes"}
    for headers in ({"origin": "https://evil.example"}, {"origin": "null"}, {"origin": f"{api.url}.evil.example"}):
        assert (await browser.http.post(place, data=form, headers=headers)).status_code == 403
    for wrong in ({"form": ""}, {"form": "x" * 43}, {"form": "é"}):
        assert (await browser.http.post(place, data={**form, **wrong})).status_code == 403
    stranger = Browser(api)
    assert (await stranger.http.post(place, data=form)).status_code == 400
    for raw in (b"", b"\xff", b"a" * 9000, b"&".join(b"a=b" for _ in range(20)), b"form=a&form=b"):
        headers = {"content-type": "application/x-www-form-urlencoded"}
        assert (await browser.http.post(place, content=raw, headers=headers)).status_code in (400, 403, 413)
    assert (await browser.http.post(place, json=form)).status_code == 400
    assert (await browser.submit(page)).query["state"] == cli.state, "all of that used nothing up"


async def test_a_yes_holds_once_and_only_for_a_membership_of_ones_own(api: Api) -> None:
    cli, browser = await begin(api), Browser(api)
    page = await browser.open(cli.begun["url"])
    other = await api.http.post("/hutch/v1/teams/acme/members", json={"identity": "boss@example.com", "role": "owner"})
    for member in (other.json()["id"], "mem_none", ""):
        assert (await browser.submit(page, member=member)).status == 403
    assert (await browser.submit(page)).query["code"]
    assert (await browser.submit(page)).status == 400


async def test_a_yes_before_the_provider_was_asked_is_none(api: Api) -> None:
    browser = Browser(api)
    await browser.stop_at_callback((await begin(api)).begun["url"])
    secret = browser.http.cookies.get("hutch-login")
    from hutch.login.secrets import BrowserSecrets

    form = {"form": BrowserSecrets.of(secret or "").form, "answer": "yes", "member": "mem_x"}
    assert (await browser.http.post(f"{api.url}{LOGIN}/confirm", data=form)).status_code == 400


# -- the command line's end of it -------------------------------------------------------------------


async def test_a_code_is_nothing_without_what_its_challenge_was_made_of_and_is_gone_then(api: Api) -> None:
    """Another program of the machine reads the browser's last address, or takes the port."""
    cli, browser = await begin(api), Browser(api)
    code = (await browser.submit(await browser.open(cli.begun["url"]))).query["code"]
    refused = await cli.end(code, new_secret())
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "login_not_valid")
    assert (await cli.end(code)).status_code == 400
    async with api.services.database.read() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM tokens WHERE name = 'hutch login'"))).scalar_one() == 0


async def test_a_code_becomes_one_token_also_when_asked_twice_at_once(api: Api) -> None:
    cli, browser = await begin(api), Browser(api)
    code = (await browser.submit(await browser.open(cli.begun["url"]))).query["code"]
    answers = await asyncio.gather(*(cli.end(code) for _ in range(8)))
    assert sorted(one.status_code for one in answers) == [200, *[400] * 7]


async def test_a_login_that_is_open_in_one_browser_is_taken_over_only_as_a_whole(api: Api) -> None:
    cli, first, second = await begin(api), Browser(api), Browser(api)
    page = await first.open(cli.begun["url"])
    other = await second.open(cli.begun["url"])
    assert (await first.submit(page)).status == 400, "it is the other browser's now"
    assert (await second.submit(other)).query["code"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"challenge": ""},
        {"challenge": "x" * 42},
        {"challenge": "x" * 44},
        {"challenge": "é" * 43},
        {"challenge": "x" * 42 + "\n"},
        {"challenge": "x" * 43 + "\n"},
        {"challenge": "x" * 43, "port": 45678},
        {"challenge": "x" * 43, "state": "x" * 43},
        {"challenge": "x" * 43, "port": 80, "state": "x" * 43},
        {"challenge": "x" * 43, "port": 65536, "state": "x" * 43},
        {"challenge": "x" * 43, "port": "45678@evil.example", "state": "x" * 43},
        {"challenge": "x" * 43, "port": 45678, "state": "a&code=b" * 4},
        {"challenge": "x" * 43, "port": 45678, "state": "x" * 129},
        {"challenge": "x" * 43, "team": "../x"},
        {"challenge": "x" * 43, "project": "x" * 65},
        {"challenge": ["x" * 43]},
    ],
)
async def test_a_login_that_can_not_be_meant_does_not_begin(api: Api, body: dict[str, Any]) -> None:
    response = await api.client("").post(LOGIN, json=body)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "bad_request")


async def test_nobody_is_sent_to_another_machine_or_site(api: Api) -> None:
    """Open redirects: whatever is asked for, the browser goes to the provider, or to a port of its own machine."""
    client = httpx.AsyncClient(base_url=api.url, follow_redirects=False)
    cli = await begin(api)
    login = urlsplit(cli.begun["url"]).query
    for more in ("", "&redirect_uri=https://evil.example", "&next=//evil.example", "&port=1", "&return_to=https:evil.example"):
        for headers in ({}, {"host": "evil.example"}, {"x-forwarded-host": "evil.example"}, {"forwarded": "host=evil.example"}):
            response = await client.get(f"{LOGIN}?{login}{more}", headers=headers)
            if response.status_code == 421:
                continue
            assert response.status_code == 303
            place = urlsplit(response.headers["location"])
            assert f"{place.scheme}://{place.netloc}" == api.services.settings.sso.issuer
            assert dict(parse_qsl(place.query))["redirect_uri"] == f"{api.url}{LOGIN}/callback"
            assert "evil" not in response.headers["location"]
    await client.aclose()


async def test_guesses_of_codes_lead_nowhere_and_are_counted(api: Api) -> None:
    browser = Browser(api)
    for typed in ("BCDFGHJK", "bcdf-ghjk", "AAAAAAAA", "x", "%00", "B" * 5000):
        assert (await browser.open(f"{api.url}{LOGIN}?user_code={typed}")).status == 400
    assert (await browser.open(f"{api.url}{LOGIN}?login=login_none")).status == 400


async def test_a_login_is_over_after_a_while(api: Api) -> None:
    cli, browser = await begin(api, port=None), Browser(api)
    api.services.clock = lambda: now_ms() + LIFE_MS
    page = await browser.open(f"{cli.begun['url']}?user_code={cli.begun['user_code']}")
    assert page.status == 400
    assert (await cli.end(cli.begun["code"])).status_code == 400
    await begin(api)
    async with api.services.database.read() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM logins"))).scalar_one() == 1


async def test_only_so_many_logins_go_on_at_once(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows.begin, "__kwdefaults__", {"most": 3})
    for _ in range(3):
        await begin(api)
    response = await api.client("").post(LOGIN, json={"challenge": "x" * 43})
    assert (response.status_code, response.json()["error"]["code"]) == (503, "too_many_logins")


async def test_the_database_has_no_secret_of_a_login(api: Api) -> None:
    cli, browser = await begin(api, port=None), Browser(api)
    await browser.open(f"{cli.begun['url']}?user_code={cli.begun['user_code']}")
    secret = browser.http.cookies.get("hutch-login")
    async with api.services.database.read() as connection:
        row = str((await connection.execute(text("SELECT * FROM logins"))).one())
    assert secret
    for value in (secret, cli.begun["code"], cli.verifier):
        assert value not in row


async def test_secrets_and_tokens_of_a_login_are_in_no_log(
    api: Api, provider: HostileProvider, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    cli, browser = await begin(api), Browser(api)
    back = await browser.submit(await browser.open(cli.begun["url"]))
    token = (await cli.end(back.query["code"])).json()["token"]
    provider.claims = {"nonce": "x"}
    await Browser(api).open((await begin(api)).begun["url"])
    said = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("hutch"))
    assert "can't be believed" in said
    for value in (token, back.query["code"], cli.verifier, "code-1", "secret/with", provider.forms[0]["code_verifier"]):
        assert value not in said


# -- how much ---------------------------------------------------------------------------------------


async def test_logins_of_an_address_are_counted(
    tmp_path: Path, host: FakeHost, installed: Path, provider: HostileProvider
) -> None:
    environment = settings_for(provider.issuer) | {"HUTCH_LIMITS__LOGINS_PER_MINUTE": "3"}
    data_dir = tmp_path / "counted"
    (data_dir / "run").mkdir(parents=True)
    async with served(data_dir, host, environment, installed) as running:
        await prepared(running)
        for _ in range(3):
            await begin(running)
        refused = await running.client("").post(LOGIN, json={"challenge": "x" * 43})
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limited")
        page = await Browser(running).open(f"{running.url}{LOGIN}?user_code=BCDFGHJK")
        assert (page.status, "rate_limited" in page.text, page.headers["retry-after"].isdecimal()) == (429, True, True)
        assert (await running.http.get("/hutch/v1/whoami")).status_code == 200
