"""Where workers may connect to: declared, set, learned, reviewed, and held within bounds; over a fake host."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import msgspec
import pytest

from hutch.control.permissions import TokenRole
from hutch.control.records import Scope
from hutch.errors import BadRequestError
from hutch.storage import sessions
from hutch.storage import workers as rows
from hutch.workers import network
from hutch.workers.destinations import Declared, Destinations
from tests.api.conftest import Api
from tests.api.deployed import deploy, deployed
from tests.api.serving import tool
from tests.workers.declared import credential, parsed

OK = {"status": "success"}
ASK = [tool("ask")]


async def declares(api: Api, worker: str, *names: str, serves: bool = True) -> str:
    """Have the newest deployment declare these names; its id."""
    scope = Scope(api.own.team_id, api.own.project_id)
    text = msgspec.json.encode(Declared(network=Destinations(allow=names))).decode()
    async with api.services.database.write() as connection:
        found = await rows.latest(connection, scope, worker, ("ready", "built"), api.services.sealer)
        assert found is not None
        status = "ready" if serves else "built"
        await rows.change_deployment(connection, scope, found.id, 1, status=status, before=("ready", "built"), network=text)
    return found.id


async def built(api: Api, worker: str, *names: str) -> str:
    """A newer deployment that is built, declares these names, and does not serve; its id."""
    scope = Scope(api.own.team_id, api.own.project_id)
    async with api.services.database.read() as connection:
        before = await rows.find(connection, scope, worker)
    assert before is not None
    await deploy(api, worker, ASK)
    async with api.services.database.write() as connection:
        await rows.touch(connection, scope, worker, 1, deployment_id=before.deployment_id)
    return await declares(api, worker, *names, serves=False)


def allow(api: Api) -> Any:
    """What the policy of the last session says."""
    session = next(reversed(api.host.networks))
    policy = api.host.networks[session].policy
    assert policy is not None
    return json.loads(policy).get("allow")


async def call(api: Api, worker: str) -> httpx.Response:
    return await api.http.post("/v3/workersRunCapability", json={"workerId": worker, "capabilityKey": "ask", "args": {}})


async def shown(api: Api, worker: str, http: httpx.AsyncClient | None = None) -> dict[str, Any]:
    answer = await (http or api.http).get(f"/hutch/v1/workers/{worker}/network")
    assert answer.status_code == 200, answer.text
    return dict(answer.json()["network"])


async def put(api: Api, worker: str, http: httpx.AsyncClient | None = None, **body: Any) -> httpx.Response:
    return await (http or api.http).put(f"/hutch/v1/workers/{worker}/network", json=body)


async def bound(api: Api, policy: Any) -> None:
    answer = await api.http.put(f"/hutch/v1/projects/{api.own.project_id}/network-policy", json=policy)
    assert answer.status_code == 200, answer.text


async def review(api: Api, *, on: bool = True) -> None:
    answer = await api.http.put(f"/hutch/v1/projects/{api.own.project_id}/worker-review", json={"review": on})
    assert answer.json() == {"review": on}


async def developer(api: Api) -> httpx.AsyncClient:
    body = {"team": api.own.team_id, "project": api.own.project_id, "role": "developer", "name": "dev"}
    made = await api.http.post("/hutch/v1/tokens", json=body)
    assert made.status_code < 300, made.text
    return api.client(made.json()["token"])


async def test_without_a_declaration_anything_is_reached(api: Api) -> None:
    worker = await deployed(api, lambda job: OK, ASK)
    await call(api, worker)
    assert allow(api) == {"*": []}
    found = await shown(api, worker)
    assert (found["mode"], found["allowed"]["allow"], found["review"]) == ("declared", ["*"], False)
    assert "declared" not in found


async def test_what_is_declared_is_the_policy_of_runs(api: Api) -> None:
    worker = await deployed(api, lambda job: OK, ASK)
    await declares(api, worker, "api.example.com")
    await call(api, worker)
    assert allow(api) == {"api.example.com": []}
    assert (await shown(api, worker))["declared"]["allow"] == ["api.example.com"]


async def test_a_set_holds_whatever_the_files_say_until_it_is_taken_back(api: Api) -> None:
    worker = await deployed(api, lambda job: OK, ASK)
    await declares(api, worker, "api.example.com")
    answer = await put(api, worker, mode="set", allow=["Other.Example.com."], subnets=["203.0.113.0/24"])
    assert answer.json()["network"]["allowed"] == {
        "allow": ["other.example.com"],
        "subnets": ["203.0.113.0/24"],
        "plaintextHttp": False,
    }
    await call(api, worker)
    assert allow(api) == {"other.example.com": []}
    await put(api, worker, mode="declared")
    await call(api, worker)
    assert allow(api) == {"api.example.com": []}


@pytest.mark.parametrize(
    "body",
    [
        {"mode": "all"},
        {"mode": "set", "allow": ["10.0.0.1"]},
        {"mode": "set", "allow": [""]},
        {"mode": "set", "allow": "*"},
        {"mode": "set", "subnets": ["10.0.0.0/8"]},
        {"mode": "set", "subnets": ["169.254.169.254/32"]},
        {"mode": "set", "allow": ["a\u0000b.test"]},
        {"mode": "set", "allow": ["a.test"] * 1001},
        {"mode": "learn", "allow": ["a.test"]},
        {"mode": "declared", "plaintextHttp": True},
        {},
        [],
    ],
)
async def test_hostile_sets_are_refused_and_change_nothing(api: Api, body: Any) -> None:
    worker = await deployed(api, lambda job: OK, ASK)
    await put(api, worker, mode="set", allow=["a.example.com"])
    answer = await api.http.put(f"/hutch/v1/workers/{worker}/network", json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["code"] in ("bad_request", "invalid_network_policy")
    assert (await shown(api, worker))["allowed"]["allow"] == ["a.example.com"]


async def test_nothing_exceeds_the_bounds_and_the_error_says_what_would(api: Api) -> None:
    worker = await deployed(api, lambda job: OK, ASK)
    await bound(api, {"allow": ["*.example.com"]})
    answer = await put(api, worker, mode="set", allow=["api.example.com", "evil.test"])
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["destinations"]) == (400, "network_outside_bounds", ["evil.test"])
    assert "evil.test" in error["message"]
    assert (await put(api, worker, mode="set", allow=["api.example.com"])).status_code == 200
    # Bounds that come later hold at the gateway, and are shown.
    await bound(api, {"allow": ["other.example.com"]})
    assert (await shown(api, worker))["outside"] == ["api.example.com"]
    await call(api, worker)
    assert json.loads(api.host.networks[next(reversed(api.host.networks))].bounds[-1])["allow"] == {"other.example.com": []}


async def test_a_credential_goes_only_where_the_worker_and_its_bounds_do(api: Api) -> None:
    worker = await deployed(api, lambda job: OK, ASK)
    services, scope = api.services, Scope(api.own.team_id, api.own.project_id)
    async with services.database.read() as connection:
        found = await rows.find(connection, scope, worker)
    assert found is not None
    manifest = parsed({"credentials": [credential("KEY", "*.example.com")]})
    narrow, wide = (Declared(network=Destinations(allow=(name,))) for name in ("api.example.com", "*.example.com"))
    await network.check(services, scope, network.Setting(), wide, manifest)
    with pytest.raises(BadRequestError, match=r"KEY is for \*.example.com") as error:
        await network.check(services, scope, network.Setting(), narrow, manifest)
    assert error.value.code == "network_not_declared"
    await bound(api, {"allow": ["api.example.com"]})
    for declared in (Declared(), narrow, wide):
        with pytest.raises(BadRequestError) as error:
            await network.check(services, scope, network.Setting(), declared, manifest)
        assert "*.example.com" in error.value.message


async def test_a_deployment_that_reaches_more_waits_until_somebody_agrees(api: Api) -> None:
    worker = await deployed(api, lambda job: OK, ASK)
    served = await declares(api, worker, "api.example.com")
    await review(api)
    newer = await built(api, worker, "api.example.com", "evil.test")
    dev = await developer(api)
    manifest = {"sdkVersion": "0.9.2", "capabilities": ASK}
    api.host.manifest = json.dumps(manifest).encode()
    answer = await dev.post("/v3/workersFetchAndSaveCapabilities", json={"workerId": worker})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "network_review_needed"), answer.text
    assert "evil.test" in answer.json()["message"]
    assert newer in answer.json()["message"]
    await call(api, worker)
    assert allow(api) == {"api.example.com": []}, "the one before goes on"
    assert (await shown(api, worker))["waiting"] == {"deployment": newer, "added": ["evil.test"], "removed": []}
    path = f"/hutch/v1/workers/{worker}/network/confirm"
    assert (await dev.post(path, json={"deployment": newer})).status_code == 403
    assert (await api.http.post(path, json={"deployment": served})).json()["error"]["code"] == "deployment_replaced"
    agreed = await api.http.post(path, json={"deployment": newer})
    assert (agreed.status_code, agreed.json()) == (200, {"deployment": newer, "added": ["evil.test"], "removed": []})
    await call(api, worker)
    assert allow(api) == {"api.example.com": [], "evil.test": []}
    assert "waiting" not in await shown(api, worker)
    # Less than before is nobody's business.
    await built(api, worker, "evil.test")
    answer = await dev.post("/v3/workersFetchAndSaveCapabilities", json={"workerId": worker})
    assert answer.json()["network"] == {"added": [], "removed": ["api.example.com"]}


async def test_a_deployment_does_not_overtake_one_that_was_built_meanwhile(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = await deployed(api, lambda job: OK, ASK)
    await built(api, worker, "old.example.com")
    api.host.manifest = json.dumps({"sdkVersion": "0.9.2", "capabilities": ASK}).encode()
    reading, newer_serves = asyncio.Event(), asyncio.Event()
    load = api.host._load_worker

    async def slow(*loaded: Any) -> None:
        if not reading.is_set():
            reading.set()
            await newer_serves.wait()
        await load(*loaded)

    monkeypatch.setattr(api.host, "_load_worker", slow)
    older = asyncio.create_task(api.http.post("/v3/workersFetchAndSaveCapabilities", json={"workerId": worker}))
    await reading.wait()
    newer = await built(api, worker, "new.example.com")
    answer = await api.http.post("/v3/workersFetchAndSaveCapabilities", json={"workerId": worker})
    assert answer.status_code == 200, answer.text
    newer_serves.set()
    refused = await older
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "deployment_replaced"), refused.text
    async with api.services.database.read() as connection:
        found = await rows.find(connection, Scope(api.own.team_id, api.own.project_id), worker)
    assert found is not None
    assert found.deployment_id == newer


async def test_in_a_project_that_reviews_developers_can_only_narrow(api: Api) -> None:
    worker = await deployed(api, lambda job: OK, ASK)
    await declares(api, worker, "api.example.com", "www.example.com")
    await review(api)
    dev = await developer(api)
    for body in ({"mode": "learn"}, {"mode": "set", "allow": ["api.example.com", "evil.test"]}, {"mode": "set", "allow": ["*"]}):
        answer = await put(api, worker, dev, **body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "network_review_needed"), answer.text
    assert (await put(api, worker, dev, mode="set", allow=["api.example.com"])).status_code == 200
    assert (await put(api, worker, dev, mode="declared")).status_code == 403
    assert (await put(api, worker, mode="declared")).status_code == 200
    changed = await dev.put(f"/hutch/v1/projects/{api.own.project_id}/worker-review", json={"review": False})
    assert changed.status_code == 403
    assert (await dev.get(f"/hutch/v1/projects/{api.own.project_id}/worker-review")).json() == {"review": True}


async def test_an_older_deployment_reaches_no_more_than_the_one_that_serves(api: Api) -> None:
    worker = await deployed(api, lambda job: OK, ASK)
    old = await declares(api, worker, "api.example.com", "old.example.com")
    await call(api, worker)
    [run] = (await api.http.get(f"/hutch/v1/workers/{worker}/runs")).json()["runs"]
    await deploy(api, worker, ASK)
    await declares(api, worker, "api.example.com")
    replayed = await api.http.post(f"/hutch/v1/workers/{worker}/runs/{run['id']}/replay", json={"deployment": old})
    assert replayed.status_code == 200, replayed.text
    assert allow(api) == {"api.example.com": []}


async def test_runs_say_what_they_used_and_what_was_refused_and_a_set_is_learned(api: Api) -> None:
    worker = await deployed(api, lambda job: OK, ASK)
    await put(api, worker, mode="learn")
    records = [
        {"seq": 1, "kind": "tls", "decision": "allow", "reason": "no_name", "name": "api.example.com", "mode": "splice"},
        {"seq": 2, "kind": "dns", "decision": "deny", "reason": "name_blocked", "name": "evil.test"},
    ]
    await call(api, worker)
    [run] = (await api.http.get(f"/hutch/v1/workers/{worker}/runs")).json()["runs"]
    async with api.services.database.read() as connection:
        session = await sessions.find_any(connection, run["session_id"], api.services.sealer)
    assert session is not None
    api.host.audits[session.sandbox_id] = [json.dumps(record) for record in records]
    scope = Scope(api.own.team_id, api.own.project_id)
    await network.record(api.services, scope, run["id"], run["session_id"])
    full = (await api.http.get(f"/hutch/v1/workers/{worker}/runs/{run['id']}")).json()["run"]
    assert full["network"] == {
        "used": {"allow": ["api.example.com"], "subnets": [], "plaintextHttp": False},
        "refused": [{"name": "evil.test", "reason": "name_blocked", "count": 1}],
        "partial": False,
    }
    found = await shown(api, worker)
    assert found["learned"]["network"]["allow"] == ["api.example.com"]
    assert found["learned"]["runs"] == 1
    assert [item["name"] for item in found["refused"]] == ["evil.test"]
    assert b"evil.test" not in (api.services.settings.control_dir / "hutch.db").read_bytes()
    # Learning begins anew, and what runs did before is no part of it.
    api.services.clock = lambda: run["started_at"] + 10_000
    again = (await put(api, worker, mode="learn")).json()["network"]
    assert again["learned"]["runs"] == 0
    assert again["used"]["allow"] == ["api.example.com"]


async def test_networks_of_others_are_not_there(api: Api) -> None:
    worker = await deployed(api, lambda job: OK, ASK)
    stranger = (await api.tenant("strangers", role=TokenRole.OWNER)).http
    assert (await stranger.get(f"/hutch/v1/workers/{worker}/network")).status_code == 404
    assert (await put(api, worker, stranger, mode="learn")).status_code == 404
    owner = (await api.tenant("strangers", None, role=TokenRole.OWNER)).http
    confirm = await owner.post(f"/hutch/v1/workers/{worker}/network/confirm", json={"deployment": "x"})
    assert confirm.status_code == 404
    assert (await stranger.get(f"/hutch/v1/projects/{api.own.project_id}/worker-review")).status_code in (403, 404)
