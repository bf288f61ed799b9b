"""Logins at a real provider, from the command line's first request to its token."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import text

from hutch.clock import now_ms
from tests.api.conftest import Api
from tests.login.conftest import ACCOUNTS, LOGIN, Browser, RealProvider, audit, begin, logged_in


async def whoami(api: Api, token: str) -> Any:
    return await api.client(token).get("/hutch/v1/whoami")


async def test_a_login_ends_with_a_token_of_the_member_with_their_role(api: Api, provider_process: RealProvider) -> None:
    cli, browser = await begin(api), Browser(api, "ada")
    page = await browser.open(cli.begun["url"])
    assert page.status == 200
    assert "Ada &lt;Lovelace&gt; · ada@example.com" in page.text
    assert 'acme <span class="soft">as developer' in page.text
    back = await browser.submit(page)
    assert back.url.startswith("http://127.0.0.1:45678/?code=")
    assert back.query["state"] == cli.state
    response = await cli.end(back.query["code"])
    ended = response.json()
    assert response.status_code == 200
    assert ended["team"]["slug"] == "acme"
    assert ended["project"]["slug"] == "web"
    assert (ended["role"], ended["email"]) == ("developer", "ada@example.com")
    assert ended["identity"] == f"{provider_process.issuer}#ada"
    assert 0 < ended["expires_at"] - now_ms() <= api.services.settings.sso.session_ttl_s * 1000
    who = (await whoami(api, ended["token"])).json()
    assert who["member"] == {
        "id": ended["member_id"],
        "identity": ended["identity"],
        "name": "Ada <Lovelace>",
        "email": "ada@example.com",
    }
    assert (await api.client(ended["token"]).post("/hutch/v1/teams", json={"slug": "x"})).status_code == 403
    entries = (await audit(api, "acme"))[:3]
    assert [(entry["action"], entry["member_id"]) for entry in entries] == [
        ("member.added", ended["member_id"]),
        ("token.created", ended["member_id"]),
        ("member.logged_in", ended["member_id"]),
    ]
    assert entries[0]["detail"] == {"identity": ended["identity"], "by": "provider", "role": "developer"}
    assert ended["token"] not in str(entries)


@pytest.mark.parametrize("sso", [{"client_secret": ""}])
async def test_a_public_client_logs_in_with_pkce_alone(api: Api, sso: dict[str, str]) -> None:
    assert (await logged_in(api, "ada"))["role"] == "developer"


async def test_the_second_login_finds_the_same_member(api: Api) -> None:
    first, second = await logged_in(api, "ada"), await logged_in(api, "ada")
    assert first["member_id"] == second["member_id"]
    assert first["id"] != second["id"]


async def test_nobody_becomes_a_member_by_an_address_that_another_has(api: Api) -> None:
    team = (await api.http.get("/hutch/v1/teams/acme")).json()["id"]
    invited = await api.http.post(f"/hutch/v1/teams/{team}/members", json={"identity": "ada@example.com", "role": "owner"})
    ada, eve = await logged_in(api, "ada"), await logged_in(api, "eve")
    assert len({invited.json()["id"], ada["member_id"], eve["member_id"]}) == 3
    assert ada["role"] == eve["role"] == "developer"
    assert "email" not in eve, "it was not verified"


async def test_the_strongest_rule_of_a_team_counts_and_a_choice_of_teams_is_asked_for(api: Api) -> None:
    cli, browser = await begin(api), Browser(api, "bob")
    page = await browser.open(cli.begun["url"])
    assert len(page.choices()) == 2
    back = await browser.submit(page, member=page.choices()[1])
    ended = (await cli.end(back.query["code"])).json()
    assert (ended["team"]["slug"], ended["role"]) == ("books", "billing")
    assert (await logged_in(api, "bob", team="acme"))["role"] == "owner"


async def test_a_login_for_a_project_holds_for_that_one_only(api: Api) -> None:
    ended = await logged_in(api, "bob", team="acme", project="web")
    assert ended["project_id"] == ended["project"]["id"]
    refused = await api.client(ended["token"]).patch(f"/hutch/v1/teams/{ended['team_id']}", json={"slug": "more"})
    assert refused.status_code == 403


async def test_a_project_that_the_team_does_not_have_is_refused(api: Api) -> None:
    cli, browser = await begin(api, project="none"), Browser(api, "ada")
    back = await browser.submit(await browser.open(cli.begun["url"]))
    response = await cli.end(back.query["code"])
    assert (response.status_code, response.json()["error"]["code"]) == (403, "forbidden")
    assert (await cli.end(back.query["code"])).status_code == 400, "the code is used up"


async def test_roles_follow_the_claims_of_the_next_login_also_for_tokens_of_before(
    api: Api, provider_process: RealProvider
) -> None:
    bob = await logged_in(api, "bob", team="acme")
    assert "member.write" in (await whoami(api, bob["token"])).json()["permissions"]
    provider_process.tell(accounts={**ACCOUNTS, "bob": {**ACCOUNTS["bob"], "groups": ["eng"]}})
    again = await logged_in(api, "bob")
    assert (again["team"]["slug"], again["role"]) == ("acme", "developer"), "even the last owner: the provider decides"
    assert "member.write" not in (await whoami(api, bob["token"])).json()["permissions"]
    actions = [entry["action"] for entry in await audit(api, "books")]
    assert actions[-1] == "member.removed", "no rule gives them a role there any more"
    provider_process.tell(accounts={**ACCOUNTS, "bob": {**ACCOUNTS["bob"], "groups": []}})
    page = await Browser(api, "bob").open((await begin(api)).begun["url"])
    assert page.status == 403
    assert (await whoami(api, again["token"])).status_code == 401


async def test_an_owner_adds_somebody_by_issuer_and_subject_and_their_role_stays(
    api: Api, provider_process: RealProvider
) -> None:
    identity = f"{provider_process.issuer}#sam"
    added = await api.http.post("/hutch/v1/teams/acme/members", json={"identity": identity, "role": "viewer"})
    for _ in range(2):
        ended = await logged_in(api, "sam")
        assert (ended["member_id"], ended["role"]) == (added.json()["id"], "viewer")
    shown = (await api.http.get(f"/hutch/v1/teams/acme/members/{ended['member_id']}")).json()
    assert (shown["by_provider"], shown["email"], shown["disabled"]) == (False, "sam@example.com", False)


@pytest.mark.parametrize("account", ["sam", "una"])
async def test_who_is_in_no_team_is_told_so_and_gets_nothing(api: Api, account: str) -> None:
    cli, browser = await begin(api), Browser(api, account)
    page = await browser.open(cli.begun["url"])
    assert page.status == 403
    assert "a member of no team here" in page.text
    async with api.services.database.read() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM members"))).scalar_one() == 0


@pytest.mark.parametrize("sso", [{"email_domains": "example.com"}])
@pytest.mark.parametrize(("account", "status"), [("ada", 200), ("eve", 403), ("joe", 403)])
async def test_only_verified_addresses_of_the_domains_are_admitted(
    api: Api, sso: dict[str, str], account: str, status: int
) -> None:
    page = await Browser(api, account).open((await begin(api)).begun["url"])
    assert page.status == status, page.text


async def test_a_disabled_member_loses_every_token_and_can_not_log_in(api: Api) -> None:
    ada = await logged_in(api, "ada")
    place = f"/hutch/v1/teams/{ada['team_id']}/members/{ada['member_id']}"
    other = await api.http.post("/hutch/v1/tokens", json={"team": "acme", "member": ada["member_id"]})
    waiting, browser = await begin(api), Browser(api, "ada")
    page = await browser.open(waiting.begun["url"])
    back = await browser.submit(page)
    disabled = await api.http.patch(place, json={"disabled": True})
    assert disabled.json()["disabled"] is True
    for token in (ada["token"], other.json()["token"]):
        assert (await whoami(api, token)).status_code == 401
    late = await waiting.end(back.query["code"])
    assert (late.status_code, late.json()["error"]["code"]) == (403, "login_refused")
    page = await Browser(api, "ada").open((await begin(api)).begun["url"])
    assert page.status == 403
    assert "You were disabled here" in page.text
    last = (await audit(api, "acme"))[-1]
    assert (last["action"], last["outcome"], last["member_id"]) == ("member.logged_in", "refused", ada["member_id"])
    asked = await api.http.post("/hutch/v1/tokens", json={"team": "acme", "member": ada["member_id"]})
    assert (asked.status_code, asked.json()["error"]["code"]) == (409, "member_disabled")
    assert (await api.http.patch(place, json={"disabled": False})).json()["disabled"] is False
    assert (await whoami(api, ada["token"])).status_code == 401, "those of before do not come back"
    assert (await logged_in(api, "ada"))["member_id"] == ada["member_id"]


async def test_a_removed_member_loses_every_token(api: Api) -> None:
    ada = await logged_in(api, "ada")
    assert (await api.http.delete(f"/hutch/v1/teams/{ada['team_id']}/members/{ada['member_id']}")).status_code == 204
    assert (await whoami(api, ada["token"])).status_code == 401


# -- without a browser on the machine ---------------------------------------------------------------


async def test_a_code_that_is_read_and_typed_logs_in_another_machine(api: Api) -> None:
    cli, browser = await begin(api, port=None), Browser(api, "ada")
    code = cli.begun["code"]
    pending = await cli.end(code)
    assert (pending.status_code, pending.json()) == (202, {"status": "pending", "interval_s": cli.begun["interval_s"]})
    asking = await browser.open(cli.begun["url"])
    assert "Type the code" in asking.text
    page = await browser.open(f"{cli.begun['url']}?user_code={cli.begun['user_code'].lower().replace('-', ' ')}")
    assert f'<p class="code">{cli.begun["user_code"]}</p>' in page.text
    assert (await cli.end(code)).status_code == 202
    done = await browser.submit(page)
    assert "You are logged in" in done.text
    ended = await cli.end(code)
    assert ended.status_code == 200
    assert (await whoami(api, ended.json()["token"])).status_code == 200
    assert (await cli.end(code)).json()["error"]["code"] == "login_not_valid"


@pytest.mark.parametrize("port", [45678, None])
async def test_a_login_that_is_cancelled_gives_nobody_a_token(api: Api, port: int | None) -> None:
    cli, browser = await begin(api, port=port), Browser(api, "ada")
    query = "" if port is not None else f"?user_code={cli.begun['user_code']}"
    page = await browser.open(cli.begun["url"] + query)
    left = await browser.submit(page, "no")
    if port is not None:
        assert left.query == {"error": "login_denied", "state": cli.state}
    else:
        assert "was cancelled" in left.text
        refused = await cli.end(cli.begun["code"])
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "login_denied")


async def test_new_keys_of_the_provider_are_fetched_when_a_token_names_one(api: Api, provider_process: RealProvider) -> None:
    await logged_in(api, "ada")
    provider = api.services.provider
    assert provider is not None
    now = provider._monotonic()
    provider._monotonic = lambda: now + 31
    provider_process.tell(rotate=True)
    assert (await logged_in(api, "ada"))["role"] == "developer"


async def test_every_page_forbids_scripts_frames_and_all_that_is_elsewhere(api: Api) -> None:
    cli, browser = await begin(api), Browser(api, "ada")
    confirm = await browser.open(cli.begun["url"])
    for page in (confirm, await browser.open(f"{api.url}{LOGIN}"), await browser.open(f"{api.url}{LOGIN}/done")):
        policy = page.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; style-src 'sha256-")
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert page.headers["cache-control"] == "no-store"
        assert page.headers["referrer-policy"] == "same-origin"
        assert "<script" not in page.text
        assert "http://" not in page.text
        assert "https://" not in page.text
    assert "form-action 'self' http://127.0.0.1:45678;" in confirm.headers["content-security-policy"]
