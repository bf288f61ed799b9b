"""The history of runs, and runs that are repeated, over a fake host."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from hutch.errors import UnavailableError
from hutch.host.protocol import SessionStatus
from hutch.metering.budgets import Limits
from hutch.storage import workers as rows
from hutch.workers import runs as executions
from tests.api.conftest import Api
from tests.api.deployed import ProgramError, deploy, deployed

OK = {"status": "success"}


async def ask(api: Api, worker: str, **arguments: Any) -> Any:
    body = {"workerId": worker, "capabilityKey": "ask", "args": arguments}
    return await api.http.post("/v3/workersRunCapability", json=body)


async def runs(api: Api, worker: str, **query: Any) -> dict[str, Any]:
    answer = await api.http.get(f"/hutch/v1/workers/{worker}/runs", params=query)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def run(api: Api, worker: str, run_id: str) -> dict[str, Any]:
    answer = await api.http.get(f"/hutch/v1/workers/{worker}/runs/{run_id}")
    assert answer.status_code == 200, answer.text
    return dict(answer.json()["run"])


async def test_a_run_is_shown_with_all_that_it_was(api: Api) -> None:
    worker = await deployed(api, lambda job: {"heard": job["context"]["text"]})
    assert (await ask(api, worker, text="secret words")).json() == {"result": {"heard": "secret words"}}
    [entry] = (await runs(api, worker))["runs"]
    assert (entry["name"], entry["exit_code"]) == ("tool:ask", 0)
    full = await run(api, worker, entry["id"])
    assert full["input"] == {"text": "secret words"}
    assert full["output"] == {"_tag": "success", "value": {"heard": "secret words"}}
    assert "__notion_output__" in full["logs"]
    assert set(full["phases"]) == {"sandbox_ms", "program_ms"}
    assert full["cost"]["receipt"] == f"/api/hutch/v1/sessions/{entry['session_id']}/receipt"
    receipt = await api.http.get(full["cost"]["receipt"])
    assert receipt.json()["subject"]["session_id"] == entry["session_id"]
    assert b"secret words" not in (api.services.settings.control_dir / "hutch.db").read_bytes()


async def test_runs_are_paged_and_found_by_name(api: Api) -> None:
    worker = await deployed(api, lambda job: OK)
    for number in range(5):
        await ask(api, worker, number=number)
    await api.http.post(f"/hutch/v1/workers/{worker}/automations/press/trigger", json={"wait": True})
    first = await runs(api, worker, limit=4)
    rest = await runs(api, worker, limit=4, cursor=first["next"])
    assert rest["next"] is None
    names = [one["name"] for one in first["runs"] + rest["runs"]]
    assert names == ["automation:press"] + ["tool:ask"] * 5
    assert len((await runs(api, worker, name="tool:ask"))["runs"]) == 5
    for query in ({"cursor": "nonsense"}, {"cursor": first["next"], "name": "tool:ask"}, {"limit": "x"}):
        refused = await api.http.get(f"/hutch/v1/workers/{worker}/runs", params=query)
        assert refused.status_code == 400, query


async def test_a_run_is_repeated_with_its_input(api: Api) -> None:
    worker = await deployed(api, lambda job: {"heard": job["context"]})
    await ask(api, worker, text="a")
    [first] = (await runs(api, worker))["runs"]
    replayed = await api.http.post(f"/hutch/v1/workers/{worker}/runs/{first['id']}/replay", json={"network": "deny-all"})
    assert replayed.status_code == 200, replayed.text
    again = replayed.json()["run"]
    assert again["id"] != first["id"]
    assert (again["input"], again["output"]["value"]) == ({"text": "a"}, {"heard": {"text": "a"}})
    assert again["deployment_id"] == first["deployment_id"]
    networks = [api.host.networks[one["session_id"]] for one in (again, first)]
    assert networks[0] != networks[1]
    await deploy(api, worker)
    newer = (await api.http.post(f"/hutch/v1/workers/{worker}/runs/{first['id']}/replay", json={})).json()["run"]
    assert newer["deployment_id"] != first["deployment_id"]
    body = {"deployment": first["deployment_id"]}
    older = (await api.http.post(f"/hutch/v1/workers/{worker}/runs/{first['id']}/replay", json=body)).json()["run"]
    assert older["deployment_id"] == first["deployment_id"]
    for wrong, status in (
        ({"deployment": "none"}, 404),
        ({"deployment": ""}, 400),
        ({"network": "allow-all"}, 400),
    ):
        refused = await api.http.post(f"/hutch/v1/workers/{worker}/runs/{first['id']}/replay", json=wrong)
        assert refused.status_code == status, wrong


async def test_a_repeated_run_that_fails_is_an_answer(api: Api) -> None:
    def fails(job: dict[str, Any]) -> Any:
        raise ProgramError("ToolExecutionError", "no luck")

    worker = await deployed(api, fails)
    assert (await ask(api, worker)).status_code == 422
    [first] = (await runs(api, worker))["runs"]
    replayed = await api.http.post(f"/hutch/v1/workers/{worker}/runs/{first['id']}/replay")
    assert replayed.json()["run"]["output"]["error"]["message"] == "no luck"


async def test_runs_of_others_are_not_there(api: Api) -> None:
    worker = await deployed(api, lambda job: OK)
    await ask(api, worker)
    [first] = (await runs(api, worker))["runs"]
    mine = (await api.http.post("/v3/workersCreateWorker", json={"name": "other"})).json()["worker"]["workerId"]
    stranger = (await api.tenant("strangers")).http
    for http, owner in ((stranger, worker), (api.http, mine)):
        for rest in (first["id"], f"{first['id']}/replay"):
            method = "POST" if rest.endswith("replay") else "GET"
            assert (await http.request(method, f"/hutch/v1/workers/{owner}/runs/{rest}")).status_code == 404
    for odd in ("%00", "..%2F", "x" * 2000):
        assert (await api.http.get(f"/hutch/v1/workers/{worker}/runs/{odd}")).status_code == 404


async def test_a_sandbox_that_is_lost_before_the_result_is_a_lost_attempt(api: Api) -> None:
    worker = await deployed(api, lambda job: OK)

    async def gone(job: Any) -> tuple[bytes, int]:
        session = next(iter(reversed(api.host.sessions)))
        await api.host.end(session, SessionStatus.FAILED, "died")
        return b"", -1

    api.host.worker = gone
    answer = await api.http.post(f"/hutch/v1/workers/{worker}/automations/press/trigger", json={"wait": True})
    job = answer.json()["job"]
    assert (job["status"], job["attempts"], job["error"]["name"]) == ("dead", 1, "RunLostError")


async def test_what_came_of_a_run_outlives_an_outage_of_the_database(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = await deployed(api, lambda job: {"heard": job["context"]["text"]})
    end, is_away, tried = rows.end_run, True, asyncio.Event()

    async def end_run(*given: Any, **named: Any) -> None:
        tried.set()
        if is_away:
            raise UnavailableError("database_unavailable", "The database does not answer. Try again.")
        await end(*given, **named)

    monkeypatch.setattr(rows, "end_run", end_run)
    waiting = asyncio.create_task(ask(api, worker, text="short"))
    await tried.wait()
    is_away = False
    assert (await waiting).json() == {"result": {"heard": "short"}}
    is_away = True
    monkeypatch.setattr(executions, "WRITE_S", 0.05)
    assert (await ask(api, worker, text="long")).json() == {"result": {"heard": "long"}}
    [late, written] = (await runs(api, worker))["runs"]
    assert (written["exit_code"], late.get("ended_at")) == (0, None)
    is_away = False
    async with asyncio.timeout(20):
        while (full := await run(api, worker, late["id"])).get("ended_at") is None:
            await asyncio.sleep(0.05)
    assert (full["exit_code"], full["output"]) == (0, {"_tag": "success", "value": {"heard": "long"}})


async def test_a_run_has_a_budget_and_says_when_that_is_used_up(api: Api) -> None:
    worker = await deployed(api, lambda job: OK)
    settings = api.services.settings
    limited = settings.workers.model_copy(update={"run_cpu_s": 2, "run_money_nano": 5})
    api.services.settings = settings.model_copy(update={"workers": limited})

    async def spends(job: Any) -> tuple[bytes, int]:
        session = next(iter(reversed(api.host.sessions)))
        assert api.host.specs[session].budget == Limits(active_cpu_us=2_000_000, money_nano=5)
        await api.host.end(session, SessionStatus.STOPPED, "budget_exceeded")
        return b"", -1

    api.host.worker = spends
    answer = await api.http.post(f"/hutch/v1/workers/{worker}/automations/press/trigger", json={"wait": True})
    job = answer.json()["job"]
    assert (job["status"], job["error"]["name"]) == ("dead", "RunBudgetExceededError")
    called = await api.http.post("/v3/workersRunCapability", json={"workerId": worker, "capabilityKey": "ask", "args": {}})
    assert (called.status_code, called.json()["name"]) == (422, "RunBudgetExceededError")


async def test_a_run_is_canceled_and_not_repeated(api: Api) -> None:
    worker = await deployed(api, lambda job: OK)

    async def waits(job: Any) -> tuple[bytes, int]:
        session = next(iter(reversed(api.host.sessions)))
        while api.host.sessions[session].status is SessionStatus.RUNNING:
            await asyncio.sleep(0.01)
        return b"", -1

    api.host.worker = waits
    body = {"event": {}, "retries": 3, "wait": True}
    waiting = asyncio.create_task(api.http.post(f"/hutch/v1/workers/{worker}/automations/press/trigger", json=body))
    while not (found := (await runs(api, worker))["runs"]) or "session_id" not in found[0]:
        await asyncio.sleep(0.02)
    canceled = await api.http.post(f"/hutch/v1/workers/{worker}/runs/{found[0]['id']}/cancel")
    assert canceled.status_code == 200, canceled.text
    job = (await waiting).json()["job"]
    assert (job["status"], job["error"]["name"]) == ("dead", "RunCanceledError")
    [only] = (await runs(api, worker))["runs"]
    full = await run(api, worker, only["id"])
    assert full["output"]["error"]["name"] == "RunCanceledError"
    again = await api.http.post(f"/hutch/v1/workers/{worker}/runs/{only['id']}/cancel")
    assert (again.status_code, again.json()["error"]["code"]) == (409, "run_not_cancelable")
    for unknown in ("none", "%00", "x" * 300):
        assert (await api.http.post(f"/hutch/v1/workers/{worker}/runs/{unknown}/cancel")).status_code == 404


async def test_a_worker_is_renamed_and_its_addresses_stay(api: Api) -> None:
    worker = await deployed(api, lambda job: OK)
    before = (await api.http.get(f"/hutch/v1/workers/{worker}/webhooks")).json()
    renamed = await api.http.patch(f"/hutch/v1/workers/{worker}", json={"name": "other"})
    assert (renamed.status_code, renamed.json()["worker"]["name"]) == (200, "other")
    assert (await api.http.post("/v3/workersGetWorker", json={"workerId": worker})).json()["worker"]["name"] == "other"
    assert (await api.http.get(f"/hutch/v1/workers/{worker}/webhooks")).json() == before
    for name in ("", "x" * 129, "a\0b", 7, None):
        assert (await api.http.patch(f"/hutch/v1/workers/{worker}", json={"name": name})).status_code == 400
