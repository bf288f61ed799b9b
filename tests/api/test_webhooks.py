"""Webhooks over a fake host: every answer that a sender gets, what is delivered, and what strangers try."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest

from hutch.api.startup import Identity
from hutch.settings import WorkerSettings
from hutch.workers import webhooks as decisions
from tests.api.conftest import Api
from tests.api.deployed import ProgramError, deploy, deployed

OK = {"status": "success"}


async def addresses(api: Api, worker: str) -> dict[str, str]:
    listed = (await api.http.get(f"/hutch/v1/workers/{worker}/webhooks")).json()["webhooks"]
    whole = (await api.http.get(f"/hutch/v1/workers/{worker}")).json()["worker"]
    assert whole["webhook_urls"] == [{"key": one["key"], "url": one["url"]} for one in listed]
    return {one["key"]: httpx.URL(one["url"]).raw_path.decode() for one in listed}


async def deliveries(api: Api, worker: str, **query: Any) -> list[dict[str, Any]]:
    answer = await api.http.get(f"/hutch/v1/workers/{worker}/deliveries", params=query)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["deliveries"])


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(15):
        while not await condition():
            await asyncio.sleep(0.02)


async def over(api: Api, worker: str, delivery: str, *statuses: str) -> dict[str, Any]:
    """A delivery when it is in one of these states."""
    found: dict[str, Any] = {}

    async def reached() -> bool:
        found.update(next(one for one in await deliveries(api, worker) if one["id"] == delivery))
        return found["status"] in (statuses or ("done", "refused", "dead"))

    await until(reached)
    return found


def later(api: Api, ms: int) -> None:
    """Let time pass."""
    clock = api.services.clock
    api.services.clock = lambda: clock() + ms
    assert api.services.jobs is not None
    api.services.jobs.due.set()


async def test_an_event_is_accepted_at_once_and_delivered_as_it_came(api: Api) -> None:
    worker = await deployed(api, lambda job: OK)
    path = (await addresses(api, worker))["plain"]
    sender = api.client("")
    raw = b'{ "a":  1,\r\n"\xc3\xbc": "\\u00fc" }'
    answer = await sender.post(path, content=raw, headers={"X-Signature": "v1=Abc", "content-type": "application/json"})
    assert answer.status_code == 202
    assert answer.headers["content-type"].startswith("application/json")
    delivery = answer.json()["eventId"]
    done = await over(api, worker, delivery)
    assert (done["status"], done["attempts"], done["key"]) == ("done", 1, "plain")
    job = api.host.worker_jobs[-1]
    [event] = job["context"]
    assert (job["key"], event["deliveryId"], event["method"]) == ("plain", delivery, "POST")
    assert (event["rawBody"], event["body"]) == (raw.decode(), {"a": 1, "ü": "ü"})
    assert event["headers"]["x-signature"] == "v1=Abc"
    run = (await api.http.get(f"/hutch/v1/workers/{worker}/runs/{done['run_id']}")).json()["run"]
    assert (run["name"], run["exit_code"], run["job_id"], run["output"]) == (
        "webhook:plain",
        0,
        delivery,
        {"_tag": "success", "value": OK},
    )
    assert run["input"] == [event]
    assert set(run["phases"]) == {"queued_ms", "sandbox_ms", "program_ms"}
    assert b"v1=Abc" not in (api.services.settings.control_dir / "hutch.db").read_bytes(), "what came is sealed"


@pytest.mark.parametrize(
    ("raw", "text", "body"),
    [
        (b"", "", {}),
        (b"[1]", "[1]", {}),
        (b"7", "7", {}),
        (b"not JSON", "not JSON", {}),
        (b'{"a":NaN}', '{"a":NaN}', {}),
        (b"\xff\xfe\x00", "\ufffd\ufffd\0", {}),
        (b"[" * 50_000, "[" * 50_000, {}),
        (b'{"__proto__":{"x":1}}', '{"__proto__":{"x":1}}', {"__proto__": {"x": 1}}),
    ],
    ids=range(8),
)
async def test_whatever_the_body_is_it_is_handed_over(api: Api, raw: bytes, text: str, body: dict[str, Any]) -> None:
    worker = await deployed(api, lambda job: OK)
    path = (await addresses(api, worker))["plain"]
    answer = await api.client("").post(path, content=raw)
    assert answer.status_code == 202
    assert (await over(api, worker, answer.json()["eventId"]))["status"] == "done"
    [event] = api.host.worker_jobs[-1]["context"]
    assert (event["rawBody"], event["body"]) == (text, body)


async def test_only_what_is_an_address_is_one(api: Api) -> None:
    worker = await deployed(api, lambda job: OK)
    found = await addresses(api, worker)
    assert set(found) == {"plain", "signed", "odd/ключ ?#%"}
    sender = api.client("")
    for method in ("GET", "HEAD"):
        refused = await sender.request(method, found["plain"])
        assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
        assert (await sender.request(method, found["plain"])).status_code == 405
    assert (await sender.post(found["odd/ключ ?#%"])).status_code == 202
    good = found["plain"].split("/")
    forged = []
    for place, value in [
        (3, "prj_x"),
        (4, "0" * 8),
        (5, "A" * 16),
        (5, good[5][:-1]),
        (5, good[5] + "A"),
        (6, "press"),
        (6, "ask"),
    ]:
        parts = list(good)
        parts[place] = value
        forged.append("/".join(parts))
    signed = found["signed"].split("/")
    forged.append("/".join([*signed[:6], "plain"]))
    forged += [found["plain"] + "/", found["plain"] + "%00", "/webhooks/worker/%00/%00/%ff/%00"]
    forged.append("/webhooks/worker/a/b/c/" + "d" * 3000)
    for path in forged:
        refused = await sender.post(path, content=b"{}")
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "not_found"), path
    assert [job["key"] for job in api.host.worker_jobs if job["key"] == "plain"] == []


async def test_bodies_and_heads_have_bounds(api: Api) -> None:
    worker = await deployed(api, lambda job: OK)
    path = (await addresses(api, worker))["plain"]
    sender = api.client("")
    most = api.services.settings.workers.max_webhook_bytes
    assert (await sender.post(path, content=b"x" * most)).status_code == 202
    too_large = await sender.post(path, content=b"x" * (most + 1))
    assert (too_large.status_code, too_large.json()["error"]["code"]) == (413, "payload_too_large")
    flooded = await sender.post(path, headers=[(f"x-{number}", "y" * 100) for number in range(2000)])
    assert flooded.status_code == 431
    packed = await sender.post(path, content=b"\x1f\x8b", headers={"content-encoding": "gzip"})
    assert packed.status_code == 415


async def test_addresses_stay_when_it_is_deployed_again(api: Api) -> None:
    worker = await deployed(api, lambda job: OK)
    before = await addresses(api, worker)
    await deploy(api, worker, [{"_tag": "webhook", "key": "plain", "config": {"title": "Plain", "description": "-"}}])
    assert await addresses(api, worker) == {"plain": before["plain"]}
    assert (await api.client("").post(before["signed"])).status_code == 404
    await deploy(api, worker)
    assert await addresses(api, worker) == before
    listed = (await api.http.post("/v3/workersListCapabilities", json={"workerId": worker})).json()["capabilities"]
    shown = {one["key"]: httpx.URL(one["webhookUrl"]).raw_path.decode() for one in listed if "webhookUrl" in one}
    assert shown == before


async def test_what_fails_is_tried_again_with_the_same_id_and_is_dead_in_the_end(api: Api) -> None:
    def fails(job: dict[str, Any]) -> Any:
        raise ProgramError("ExecutionError")

    worker = await deployed(api, fails)
    path = (await addresses(api, worker))["plain"]
    delivery = (await api.client("").post(path, content=b"{}")).json()["eventId"]
    for attempt, delay_ms in enumerate(decisions.RETRY_DELAYS_MS, 1):

        async def waits(attempt: int = attempt) -> bool:
            [one] = await deliveries(api, worker)
            return bool(one["status"] == "queued" and one["attempts"] == attempt)

        await until(waits)
        [one] = await deliveries(api, worker)
        assert one["error"]["name"] == "ExecutionError"
        later(api, delay_ms)
    dead = await over(api, worker, delivery)
    assert (dead["status"], dead["attempts"], dead["error"]["message"]) == ("dead", 4, "no luck")
    assert {job["context"][0]["deliveryId"] for job in api.host.worker_jobs} == {delivery}
    assert len(api.host.worker_jobs) == 4

    async def works(job: dict[str, Any]) -> tuple[bytes, int]:
        return b'\n<__notion_output__>{"_tag":"success","value":{"status":"success"}}</__notion_output__>\n', 0

    api.host.worker = works
    again = await api.http.post(f"/hutch/v1/workers/{worker}/deliveries/{delivery}/redeliver")
    assert (again.status_code, again.json()["job"]["id"]) == (202, delivery)
    done = await over(api, worker, delivery)
    assert (done["status"], done["attempts"]) == ("done", 1)
    assert api.host.worker_jobs[-1]["context"][0]["deliveryId"] == delivery
    assert (await deliveries(api, worker, status="dead")) == []


async def test_forged_events_are_not_tried_again_and_block_after_five(api: Api) -> None:
    def refuses(job: dict[str, Any]) -> Any:
        raise ProgramError("WebhookVerificationError")

    worker = await deployed(api, refuses)
    path = (await addresses(api, worker))["plain"]
    sender = api.client("")
    for _ in range(5):
        answer = await sender.post(path, content=b"{}")
        refused = await over(api, worker, answer.json()["eventId"])
        assert (refused["status"], refused["attempts"]) == ("refused", 1)
    blocked = await sender.post(path, content=b"{}")
    assert (blocked.status_code, blocked.json()["error"]["code"]) == (403, "webhook_blocked")
    listed = {one["key"]: one for one in (await api.http.get(f"/hutch/v1/workers/{worker}/webhooks")).json()["webhooks"]}
    assert (listed["plain"]["blocked"], listed["plain"]["failures"], listed["signed"]["blocked"]) == (True, 5, False)
    switched = await api.http.patch(f"/hutch/v1/workers/{worker}/webhooks/plain", json={"verification": False})
    assert switched.json()["webhook"]["blocked"] is False
    assert (await sender.post(path, content=b"{}")).status_code == 202


Verify = dict[str, Any]


@pytest.mark.parametrize(
    ("said", "status", "text", "queued"),
    [
        ({"status": 200, "body": "hello"}, 200, "hello", True),
        ({"status": 200, "body": '{"a":1}', "contentType": "application/json"}, 200, '{"a":1}', True),
        ({"status": 200, "deliver": False}, 200, "", False),
        ({"status": 500}, 400, None, False),
        ({"status": 302}, 400, None, False),
        ({"status": "200"}, 400, None, False),
        ({"status": 200, "body": "x" * 8193}, 400, None, False),
        ({"status": 200, "contentType": "text/html", "body": "<script>"}, 400, None, False),
        ("nonsense", 400, None, False),
        (None, 400, None, False),
    ],
    ids=range(10),
)
async def test_what_verifies_says_what_the_sender_sees(api: Api, said: Any, status: int, text: str | None, queued: bool) -> None:
    worker = await deployed(api, lambda job: said if isinstance(job["context"], dict) else OK)
    path = (await addresses(api, worker))["signed"]
    answer = await api.client("").post(f"{path}?a=1&a=2&b=%C3%BC&c", content=b'{"x":1}', headers={"X-Sig": "s"})
    assert answer.status_code == status
    if text is not None:
        assert answer.text == text
        assert answer.headers["x-content-type-options"] == "nosniff"
    else:
        assert answer.json()["error"]["code"] == "webhook_unverified"
    request = api.host.worker_jobs[0]["context"]["request"]
    assert (request["method"], request["query"], request["rawBody"]) == ("POST", {"a": "2", "b": "ü", "c": ""}, '{"x":1}')
    assert request["url"].endswith("/signed?a=1&a=2&b=%C3%BC&c")
    assert request["headers"]["x-sig"] == "s"
    found = await deliveries(api, worker)
    assert len(found) == queued
    if queued:
        assert (await over(api, worker, found[0]["id"]))["status"] == "done"


async def test_questions_are_verified_and_failures_block(api: Api) -> None:
    answers: list[Any] = [{"status": 200, "body": "challenge", "deliver": False}] * 2 + [None] * 5
    worker = await deployed(api, lambda job: answers.pop(0))
    path = (await addresses(api, worker))["signed"]
    sender = api.client("")
    asked = await sender.get(f"{path}?challenge=x")
    assert (asked.status_code, asked.text) == (200, "challenge")
    assert api.host.worker_jobs[0]["context"]["request"]["rawBody"] == ""
    probed = await sender.head(path)
    assert (probed.status_code, probed.content) == (200, b"")
    for _ in range(5):
        assert (await sender.get(path)).status_code == 400
    assert (await sender.get(path)).status_code == 403
    assert (await sender.post(path)).status_code == 403
    assert answers == [], "no code runs for one that is blocked"
    await deploy(api, worker)
    answers.append({"status": 200, "deliver": False})
    assert (await sender.get(path)).status_code == 200
    off = await api.http.patch(f"/hutch/v1/workers/{worker}/webhooks/signed", json={"verification": False})
    assert (off.json()["webhook"]["verification"], off.json()["webhook"]["can_verify"]) == (False, True)
    assert (await sender.get(path)).status_code == 405
    assert (await sender.post(path)).status_code == 202


async def test_what_takes_too_long_to_verify_is_503_and_no_failure(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions, "VERIFY_MS", 300)

    async def never(job: dict[str, Any]) -> Any:
        await asyncio.Event().wait()

    worker = await deployed(api, never)
    path = (await addresses(api, worker))["signed"]
    late = await api.client("").post(path, content=b"{}")
    assert (late.status_code, late.headers["retry-after"], late.json()["error"]["code"]) == (503, "5", "webhook_busy")
    listed = {one["key"]: one for one in (await api.http.get(f"/hutch/v1/workers/{worker}/webhooks")).json()["webhooks"]}
    assert listed["signed"]["failures"] == 0
    assert await deliveries(api, worker) == []

    async def ended() -> bool:
        return not api.services.verifications

    await until(ended)
    [run] = (await api.http.get(f"/hutch/v1/workers/{worker}/runs")).json()["runs"]
    assert (run["name"], run["exit_code"] > 0) == ("webhook-verify:signed", True)


async def test_one_project_leaves_room_for_others_webhooks(api: Api) -> None:
    release = asyncio.Event()

    async def program(job: dict[str, Any]) -> Any:
        if job["context"]["request"]["rawBody"] == "slow":
            await release.wait()
        return {"status": 200, "deliver": False}

    settings = api.services.settings
    workers = settings.workers.model_copy(update={"run_concurrency": 4})
    api.services.settings = settings.model_copy(update={"workers": workers})
    path = (await addresses(api, await deployed(api, program)))["signed"]
    other = await api.tenant("others")
    others = replace(api, http=other.http, own=Identity(other.token, other.team_id, other.project_id))
    elsewhere = (await addresses(others, await deployed(others, program)))["signed"]
    sender = api.client("")
    slow = [asyncio.create_task(sender.post(path, content=b"slow")) for _ in range(2)]

    async def taken() -> bool:
        return len(api.services.verifications) == 2

    try:
        await until(taken)
        busy = await sender.post(path, content=b"quick")
        assert (busy.status_code, busy.json()["error"]["code"]) == (503, "webhook_busy")
        assert (await sender.post(elsewhere, content=b"quick")).status_code == 200
    finally:
        release.set()
    assert [answer.status_code for answer in await asyncio.gather(*slow)] == [200, 200]


async def test_strangers_see_and_change_nothing(api: Api) -> None:
    worker = await deployed(api, lambda job: OK)
    path = (await addresses(api, worker))["plain"]
    delivery = (await api.client("").post(path)).json()["eventId"]
    await over(api, worker, delivery)
    stranger = (await api.tenant("strangers")).http
    for method, rest, body in (
        ("GET", "webhooks", None),
        ("PATCH", "webhooks/plain", {"verification": False}),
        ("GET", "deliveries", None),
        ("POST", f"deliveries/{delivery}/redeliver", None),
        ("GET", "runs", None),
    ):
        assert (await stranger.request(method, f"/hutch/v1/workers/{worker}/{rest}", json=body)).status_code == 404, rest
        assert (await api.client("").request(method, f"/hutch/v1/workers/{worker}/{rest}", json=body)).status_code == 401
    mine = (await stranger.post("/v3/workersCreateWorker", json={"name": "x"})).json()["worker"]["workerId"]
    refused = await stranger.post(f"/hutch/v1/workers/{mine}/deliveries/{delivery}/redeliver")
    assert refused.status_code == 404


class TestLimits:
    @pytest.fixture
    def environment(self) -> dict[str, str]:
        return {
            "HUTCH_WORKERS__WEBHOOK_REQUESTS_PER_MINUTE": "6",
            "HUTCH_WORKERS__DELIVERIES_PER_MINUTE": "4",
            "HUTCH_WORKERS__QUEUED_RUNS_PER_MINUTE": "2",
            "HUTCH_LIMITS__UNAUTHORIZED_PER_MINUTE": "3",
        }

    async def test_too_many_are_429_as_the_vendor_says_it(self, api: Api) -> None:
        worker = await deployed(api, lambda job: OK)
        path = (await addresses(api, worker))["plain"]
        sender = api.client("")
        answers = [await sender.post(path) for _ in range(8)]
        assert [answer.status_code for answer in answers] == [202] * 4 + [429] * 4
        assert answers[-1].json() == {"error": "Rate limit exceeded"}
        assert {answer.headers.get("retry-after") for answer in answers} == {None, "60"}

        async def two_ran() -> bool:
            return [one["status"] for one in await deliveries(api, worker)].count("done") == 2

        await until(two_ran)
        assert [one["status"] for one in await deliveries(api, worker)] == ["queued", "queued", "done", "done"], "they wait"
        assert {one["attempts"] for one in await deliveries(api, worker, status="queued")} == {0}

    async def test_who_guesses_addresses_is_slowed_down(self, api: Api) -> None:
        worker = await deployed(api, lambda job: OK)
        path = (await addresses(api, worker))["plain"]
        sender = api.client("")
        wrong = [await sender.post(path.replace("/plain", f"x{number}/plain")) for number in range(4)]
        assert [answer.status_code for answer in wrong] == [404, 404, 404, 429]
        assert (await sender.post(path)).status_code == 202


class TestNameOfTheirOwn:
    @pytest.fixture
    def environment(self) -> dict[str, str]:
        return {"HUTCH_WORKERS__WEBHOOK_URL": "https://hooks.localhost/"}

    async def test_webhooks_are_there_and_nothing_else(self, api: Api) -> None:
        worker = await deployed(api, lambda job: OK)
        listed = (await api.http.get(f"/hutch/v1/workers/{worker}/webhooks")).json()["webhooks"]
        (url,) = [httpx.URL(one["url"]) for one in listed if one["key"] == "plain"]
        assert (url.scheme, url.netloc) == ("https", b"hooks.localhost")
        path = url.raw_path.decode()
        sender = api.client("")
        for host in ("hooks.localhost", "hooks.localhost:443", "HOOKS.localhost."):
            taken = await sender.post(f"{api.url}{path}", headers={"host": host})
            assert taken.status_code == 202, host
            for other in ("/healthz", "/api/hutch/v1/workers", "/webhooks", "/buttons/x", "/api/hutch/v1/worker-login", "/"):
                refused = await api.http.get(f"{api.url}{other}", headers={"host": host})
                assert (refused.status_code, refused.json()["error"]["code"]) == (421, "misdirected_request"), other
        elsewhere = await sender.post(f"{api.url}{path}", headers={"host": "other.localhost"})
        assert elsewhere.status_code == 421, "that is a sandbox's"
        assert (await sender.post(f"{api.url}{path}")).status_code == 202
        assert (await sender.get(f"{api.url}{path}", headers={"host": "hooks.localhost"})).status_code == 405


@pytest.mark.parametrize(
    "url", ["hooks.example.com", "ftp://hooks.example.com", "https://h.example/x", "https://h.example?x", "x"]
)
def test_a_name_that_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="must be an http"):
        WorkerSettings(webhook_url=url)
