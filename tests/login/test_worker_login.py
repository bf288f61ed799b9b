"""Logins of `ntn` by device flow: confirmed with a token or at a real provider, and by nobody who may not."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from hutch.api.auth import new_token
from hutch.api.worker_tokens import OF_WORKERS
from hutch.clock import now_ms
from hutch.control.permissions import Permission, TokenRole
from hutch.login.secrets import new_secret
from hutch.storage import tenants
from tests.api.conftest import DAY_MS, Api, served
from tests.api.fake_host import FakeHost
from tests.login.chromium import browser
from tests.login.conftest import LOGIN, Browser, RealProvider, begin, prepared, settings_for

PAGE = "/hutch/v1/worker-login"


async def init(api: Api) -> dict[str, str]:
    response = await api.client("").post("/v3/workersCliLoginInit", json={})
    assert response.status_code == 200, response.text
    found: dict[str, str] = response.json()
    return found


async def redeem(api: Api, session: str) -> dict[str, Any]:
    response = await api.client("").post("/v3/workersCliLoginRedeem", json={"sessionId": session})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def confirm(api: Api, code: str, token: str, *, answer: str = "yes", **fields: str) -> httpx.Response:
    form = {"user_code": code, "token": token, "answer": answer, **fields}
    return await api.client("").post(PAGE, data=form)


async def owner(api: Api, project: str | None = "web", *, role: TokenRole = TokenRole.OWNER, ttl_ms: int = DAY_MS) -> str:
    async with api.services.database.read() as connection:
        team = await tenants.find_team(connection, "acme")
        assert team is not None
        found = await tenants.find_project(connection, team.id, project) if project is not None else None
    bound = found.id if found is not None else None
    return await api.services.auth.issue(new_token(team.id, bound, role, now=now_ms(), ttl_ms=ttl_ms))


async def test_a_token_confirms_a_code_and_a_smaller_token_comes_of_it_once(api: Api) -> None:
    begun, giver = await init(api), await owner(api, ttl_ms=3_600_000)
    assert begun["browserUrl"] == f"{api.url}/api{PAGE}?user_code={begun['verificationCode']}"
    assert (await redeem(api, begun["sessionId"])) == {"status": "pending"}
    page = await api.client("").get(PAGE, params={"user_code": begun["verificationCode"].lower()})
    assert f'value="{begun["verificationCode"]}"' in page.text
    assert (await redeem(api, begun["sessionId"])) == {"status": "pending"}, "a page that is shown confirms nothing"
    done = await confirm(api, begun["verificationCode"], giver)
    assert (done.status_code, giver in done.text) == (200, False)
    assert (await confirm(api, begun["verificationCode"], giver)).status_code == 400, "it was confirmed"
    answers = await asyncio.gather(*(redeem(api, begun["sessionId"]) for _ in range(5)))
    assert sorted(answer["status"] for answer in answers) == ["confirmed", *["expired"] * 4]
    (got,) = [answer for answer in answers if answer["status"] == "confirmed"]
    assert got["spaceName"] == "acme/web"
    who = (await api.client(got["token"]).get("/hutch/v1/whoami")).json()
    assert who["project"]["id"] == got["spaceId"]
    assert {*who["permissions"]} - {Permission.SELF} <= OF_WORKERS
    assert (await api.client(got["token"]).post("/v3/workersListWorkers", json={})).json() == {"workers": []}
    assert (await api.client(got["token"]).post("/v3/workersCreateToken", json={"name": "x"})).status_code == 403
    listed = (await api.client(giver).post("/v3/workersListTokens", json={})).json()["tokens"]
    assert [one["name"] for one in listed] == ["ntn login"]
    record = (await api.client(giver).get("/hutch/v1/tokens")).json()["tokens"]
    assert len({one["expires_at"] // 60_000 for one in record}) == 1, "it ends with the token that it came of"


async def test_who_cancels_or_is_revoked_gives_nothing(api: Api) -> None:
    begun, giver = await init(api), await owner(api)
    assert (await confirm(api, begun["verificationCode"], giver, answer="no")).status_code == 200
    assert await redeem(api, begun["sessionId"]) == {"status": "expired"}
    begun = await init(api)
    await confirm(api, begun["verificationCode"], giver)
    (mine,) = (await api.client(giver).get("/hutch/v1/tokens")).json()["tokens"]
    await api.client(giver).delete(f"/hutch/v1/tokens/{mine['id']}")
    assert await redeem(api, begun["sessionId"]) == {"status": "expired"}
    assert (await confirm(api, (await init(api))["verificationCode"], giver)).status_code == 403


async def test_a_login_is_over_after_ten_minutes(api: Api) -> None:
    begun, giver, clock = await init(api), await owner(api), api.services.clock
    api.services.clock = lambda: clock() + 10 * 60_000
    assert (await confirm(api, begun["verificationCode"], giver)).status_code == 400
    assert await redeem(api, begun["sessionId"]) == {"status": "expired"}


async def test_a_project_is_the_tokens_or_one_that_it_may_name(api: Api) -> None:
    async with api.services.database.write() as connection:
        team = await tenants.find_team(connection, "acme")
        assert team is not None
        await tenants.ensure_project(connection, team.id, "shop", now_ms())
    whole, bound = await owner(api, None), await owner(api, "web")
    code = (begun := await init(api))["verificationCode"]
    assert "several projects" in (await confirm(api, code, whole)).text
    assert (await confirm(api, code, bound, project="shop")).status_code == 403
    assert (await confirm(api, code, whole, project="nowhere")).status_code == 403
    assert (await confirm(api, code, whole, project="a\0b")).status_code == 403
    assert (await confirm(api, code, whole, project="shop")).status_code == 200
    assert (await redeem(api, begun["sessionId"]))["spaceName"] == "acme/shop"


async def test_what_is_no_token_or_no_code_confirms_nothing(api: Api) -> None:
    begun, giver = await init(api), await owner(api)
    code = begun["verificationCode"]
    weak = await owner(api, role=TokenRole.DEVELOPER)
    for token in ("", "x", "a" * 20_000, "\0", "ü", weak, begun["sessionId"]):
        assert (await confirm(api, code, token)).status_code in (403, 413), token[:20]
    for wrong in ("", "AAAA-AAAA", "BCDF", "BCDF-GHJK' OR 1=1", "\0" * 8, "<b>", "ü" * 8):
        assert (await confirm(api, wrong, giver)).status_code == 400
    page = await api.client("").get(PAGE, params={"user_code": '"><script>alert(1)</script>'})
    assert (page.status_code, "<script" in page.text) == (200, False)
    crossed = await api.client("").post(
        PAGE, data={"user_code": code, "token": giver, "answer": "yes"}, headers={"origin": "https://elsewhere.example"}
    )
    assert crossed.status_code == 403
    assert (await api.client("").post(PAGE, json={"user_code": code, "token": giver})).status_code == 400
    assert await redeem(api, begun["sessionId"]) == {"status": "pending"}


async def test_sessions_are_no_codes_of_other_logins(api: Api) -> None:
    cli = await begin(api, port=None)
    assert await redeem(api, cli.begun["code"]) == {"status": "expired"}
    giver = await owner(api)
    assert (await confirm(api, cli.begun["user_code"], giver)).status_code == 400, "`hutch login` is the provider's"
    begun = await init(api)
    refused = await api.client("").post(f"{LOGIN[4:]}/token", json={"code": begun["sessionId"], "verifier": new_secret()})
    assert refused.status_code == 400
    for session in ("x", "é" * 100):
        assert await redeem(api, session) == {"status": "expired"}
    for body in ({}, {"sessionId": ""}, {"sessionId": 7}, {"sessionId": "\0"}, {"sessionId": "x" * 129}):
        assert (await api.client("").post("/v3/workersCliLoginRedeem", json=body)).status_code == 400


async def test_a_person_of_the_provider_confirms_for_one_of_their_projects(api: Api) -> None:
    begun, ada = await init(api), Browser(api, "ada")
    page = await api.client("").get(PAGE, params={"user_code": begun["verificationCode"]})
    assert f'href="{LOGIN}?user_code={begun["verificationCode"]}"' in page.text
    asked = await ada.open(f"{api.url}{LOGIN}?user_code={begun['verificationCode']}")
    assert 'acme/web <span class="soft">as developer' in asked.text
    (choice,) = asked.choices()
    assert (await ada.submit(asked, member=f"{choice.split()[0]} prj_other")).status == 403
    assert (await ada.submit(asked)).status == 200
    got = await redeem(api, begun["sessionId"])
    assert (got["status"], got["spaceName"]) == ("confirmed", "acme/web")
    who = (await api.client(got["token"]).get("/hutch/v1/whoami")).json()
    assert who["member"]["name"] == "Ada <Lovelace>"
    assert Permission.WORKER_WRITE in who["permissions"]
    assert Permission.SANDBOX_WRITE not in who["permissions"]


@pytest.mark.timeout(120)
async def test_a_person_confirms_in_a_browser(api: Api, tmp_path: Path) -> None:
    begun, giver = await init(api), await owner(api)
    async with browser(tmp_path / "profile") as tab:
        await tab.goto(begun["browserUrl"])
        await tab.until("document.querySelector('input[name=user_code]')?.value === " + repr(begun["verificationCode"]))
        assert await tab.run("getComputedStyle(document.querySelector('input[type=password]')).textTransform") == "none"
        await tab.run(f"document.querySelector('input[name=token]').value = {giver!r}")
        await tab.run("document.querySelector('button.main').click()")
        await tab.until("document.body.textContent.includes('You are logged in')")
    assert (await redeem(api, begun["sessionId"]))["status"] == "confirmed"


async def test_steps_count_for_their_address(
    tmp_path: Path, host: FakeHost, installed: Path, provider_process: RealProvider
) -> None:
    environment = settings_for(provider_process.issuer) | {"HUTCH_LIMITS__LOGINS_PER_MINUTE": "5"}
    data_dir = tmp_path / "counted"
    (data_dir / "run").mkdir(parents=True)
    async with served(data_dir, host, environment, installed) as running:
        await prepared(running)
        begun, giver = await init(running), await owner(running)
        for guess in ("BBBB-BBBB", "CCCC-CCCC", "DDDD-DDDD"):
            assert (await confirm(running, guess, giver)).status_code == 400
        await running.client("").get(PAGE)
        refused = await confirm(running, begun["verificationCode"], giver)
        assert (refused.status_code, "rate_limited" in refused.text) == (429, True)
        assert (await running.client("").get(PAGE)).status_code == 429
        no_more = await running.client("").post("/v3/workersCliLoginInit", json={})
        assert (no_more.status_code, no_more.json()["name"]) == (429, "RateLimitedError")
        assert await redeem(running, begun["sessionId"]) == {"status": "pending"}, "asking is not a step"
