"""Automations and their buttons over a fake host."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import httpx
import pytest

from tests.api.conftest import Api
from tests.api.deployed import ProgramError, deploy, deployed
from tests.api.test_webhooks import later

OK = {"status": "success"}


async def trigger(api: Api, worker: str, key: str = "press", **body: Any) -> httpx.Response:
    headers = {"idempotency-key": body.pop("once")} if "once" in body else {}
    return await api.http.post(f"/hutch/v1/workers/{worker}/automations/{key}/trigger", json=body, headers=headers)


async def over(api: Api, worker: str, job: str, *statuses: str) -> dict[str, Any]:
    async with asyncio.timeout(15):
        while True:
            found: dict[str, Any] = (await api.http.get(f"/hutch/v1/workers/{worker}/triggers/{job}")).json()["job"]
            if found["status"] in (statuses or ("done", "dead")):
                return found
            await asyncio.sleep(0.02)


async def test_a_trigger_runs_the_automation_with_its_event(api: Api) -> None:
    worker = await deployed(api, lambda job: OK)
    queued = await trigger(api, worker)
    assert queued.status_code == 202
    done = await over(api, worker, queued.json()["job"]["id"])
    assert (done["status"], done["attempts"]) == ("done", 1)
    assert api.host.worker_jobs[-1] == {"key": "press", "context": {"actionType": "api"}}
    waited = await trigger(api, worker, wait=True, event={"actionType": "mine", "pageId": "p"})
    assert (waited.status_code, waited.json()["job"]["status"]) == (200, "done")
    assert api.host.worker_jobs[-1]["context"] == {"actionType": "mine", "pageId": "p"}
    for key, status in (("plain", 404), ("none", 404), ("ask", 404)):
        assert (await trigger(api, worker, key)).status_code == status
    stranger = (await api.tenant("strangers")).http
    assert (await stranger.post(f"/hutch/v1/workers/{worker}/automations/press/trigger", json={})).status_code == 404
    assert (await stranger.get(f"/hutch/v1/workers/{worker}/triggers/{done['id']}")).status_code == 404


async def test_the_same_idempotency_key_triggers_once(api: Api) -> None:
    worker = await deployed(api, lambda job: OK)
    many = await asyncio.gather(*(trigger(api, worker, once="k-1", wait=True) for _ in range(5)))
    assert len({answer.json()["job"]["id"] for answer in many}) == 1
    assert len(api.host.worker_jobs) == 1
    other = await trigger(api, worker, once="k-1", event={"actionType": "other"})
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_key_reused")
    for bad in ("", "x" * 101, "a b"):
        assert (await trigger(api, worker, once=bad)).status_code == 400
    assert len(api.host.worker_jobs) == 1


async def test_a_failure_is_repeated_only_when_asked(api: Api) -> None:
    def fails(job: dict[str, Any]) -> Any:
        raise ProgramError("ExecutionError", "Error during worker execution: Error: auto fail")

    worker = await deployed(api, fails)
    once = (await trigger(api, worker, wait=True)).json()["job"]
    assert (once["status"], once["attempts"], once["error"]["name"]) == ("dead", 1, "ExecutionError")
    asked = (await trigger(api, worker, retries=1)).json()["job"]["id"]
    waiting = await over(api, worker, asked, "queued")
    async with asyncio.timeout(10):
        while waiting["attempts"] != 1 or waiting["status"] != "queued":
            await asyncio.sleep(0.02)
            waiting = (await api.http.get(f"/hutch/v1/workers/{worker}/triggers/{asked}")).json()["job"]
    later(api, 10_000)
    dead = await over(api, worker, asked)
    assert (dead["status"], dead["attempts"]) == ("dead", 2)
    assert (await trigger(api, worker, retries=4)).status_code == 400


async def button(api: Api, worker: str, **body: Any) -> tuple[str, str]:
    """The path of a new button, and its id."""
    made = await api.http.post(f"/hutch/v1/workers/{worker}/automations/press/buttons", json=body)
    assert made.status_code == 201, made.text
    return httpx.URL(made.json()["url"]).path, made.json()["button"]["id"]


def press_of(page: str) -> str:
    found = re.search(r'name="press" value="([\w-]+)"', page)
    assert found is not None
    return found[1]


async def test_a_button_is_a_page_that_presses_once(api: Api) -> None:
    worker = await deployed(api, lambda job: OK)
    path, _ = await button(api, worker)
    person = api.client("")
    page = await person.get(path)
    assert page.status_code == 200
    assert "Press &lt;me&gt;" in page.text
    assert "Does &amp; shows." in page.text
    assert "<script" not in page.text
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    for part in ("form-action 'self'", "frame-ancestors 'none'", "base-uri 'none'"):
        assert part in policy
    assert "unsafe" not in policy
    assert (page.headers["cache-control"], page.headers["x-frame-options"]) == ("no-store", "DENY")
    assert api.host.worker_jobs == [], "looking does not press"
    press = press_of(page.text)
    clicks = await asyncio.gather(*(person.post(path, data={"press": press}) for _ in range(3)))
    assert {click.status_code for click in clicks} == {303}
    assert len({click.headers["location"] for click in clicks}) == 1
    result = await person.get(httpx.URL(path).join(clicks[0].headers["location"]).path)
    assert "Done." in result.text
    assert "http-equiv" not in result.text
    assert [job["context"] for job in api.host.worker_jobs] == [{"actionType": "button"}]
    again = await person.post(path, data={"press": press_of((await person.get(path)).text)})
    assert again.headers["location"] != clicks[0].headers["location"]
    assert len(api.host.worker_jobs) == 2


async def test_a_press_that_fails_or_goes_on_says_so(api: Api) -> None:
    gate = asyncio.Event()

    async def slow(job: dict[str, Any]) -> Any:
        await gate.wait()
        raise ProgramError("ExecutionError", "<b>no</b> luck")

    worker = await deployed(api, slow)
    path, _ = await button(api, worker)
    person = api.client("")
    click = await person.post(path, data={"press": press_of((await person.get(path)).text)})
    place = httpx.URL(path).join(click.headers["location"]).path
    going = await person.get(place)
    assert "Working" in going.text
    assert '<meta http-equiv="refresh" content="2">' in going.text
    gate.set()
    await over(api, worker, place.rpartition("/")[2])
    failed = await person.get(place)
    assert "It failed." in failed.text
    assert "&lt;b&gt;no&lt;/b&gt; luck" in failed.text


@pytest.mark.parametrize(
    ("headers", "data", "status"),
    [
        ({"sec-fetch-site": "cross-site"}, {}, 403),
        ({"sec-fetch-site": "same-site"}, {}, 403),
        ({"origin": "https://evil.example"}, {}, 403),
        ({"origin": "null"}, {}, 403),
        ({}, {"press": ""}, 400),
        ({}, {"press": "x" * 65}, 400),
        ({}, {"press": "a'; drop table--xxxxxxx"}, 400),
        ({}, {"other": "1"}, 400),
        ({}, {f"f{number}": "1" for number in range(50)}, 400),
        ({}, {"press": "x" * 5000}, 413),
    ],
    ids=range(10),
)
async def test_what_is_no_click_on_the_page_presses_nothing(
    api: Api, headers: dict[str, str], data: dict[str, str], status: int
) -> None:
    worker = await deployed(api, lambda job: OK)
    path, _ = await button(api, worker)
    answer = await api.client("").post(path, headers=headers, data=data or {"press": "a" * 20})
    assert answer.status_code == status
    assert api.host.worker_jobs == []


async def test_a_button_ends_when_it_is_over_revoked_or_its_automation_is_gone(api: Api) -> None:
    worker = await deployed(api, lambda job: OK)
    first, first_id = await button(api, worker)
    second, second_id = await button(api, worker, expires_in_s=60)
    listed = (await api.http.get(f"/hutch/v1/workers/{worker}/automations/press/buttons")).json()["buttons"]
    assert [one["id"] for one in listed] == [second_id, first_id]
    assert all(set(one) == {"id", "created_at", "expires_at"} for one in listed), "addresses are shown once"
    person = api.client("")
    press = await person.post(first, data={"press": "a" * 20})
    other = httpx.URL(second).join(press.headers["location"].replace(first.rpartition("/")[2], second.rpartition("/")[2])).path
    assert (await person.get(other)).status_code == 404, "a press is seen by its own button"
    assert (await person.get(second)).status_code == 200
    later(api, 61_000)
    assert (await person.get(second)).status_code == 404
    stranger = (await api.tenant("strangers")).http
    assert (await stranger.delete(f"/hutch/v1/workers/{worker}/buttons/{first_id}")).status_code == 404
    assert (await api.http.delete(f"/hutch/v1/workers/{worker}/buttons/{first_id}")).status_code == 204
    assert (await person.get(first)).status_code == 404
    assert (await person.post(first, data={"press": "b" * 20})).status_code == 404
    third, _ = await button(api, worker)
    await deploy(api, worker, [])
    assert (await person.get(third)).status_code == 404
    for forged in ("/buttons/x", "/buttons/%00", "/buttons/" + "a" * 3000, f"{third}/presses/x"):
        assert (await person.get(forged)).status_code == 404
    assert (await api.http.post(f"/hutch/v1/workers/{worker}/automations/press/buttons", json={})).status_code == 404
