"""Policies of operator, team and project: who may set them, what the host is told, and what happens when it does not listen."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from hutch.api import network_bounds
from hutch.api.host_events import reconcile
from hutch.control.permissions import TokenRole
from hutch.egress.policy import MAX_OUTSIDE_WARNINGS
from hutch.errors import UnavailableError
from tests.api.conftest import Api

BLOCK = {"mode": "allow-all", "block": ["evil.test", "*.evil.test"]}
ONLY = {"allow": ["a.test", "*.b.test"]}


def team(reference: str) -> str:
    return f"/hutch/v1/teams/{reference}/network-policy"


def project(reference: str) -> str:
    return f"/hutch/v1/projects/{reference}/network-policy"


async def put(http: httpx.AsyncClient, path: str, policy: Any, **params: str) -> httpx.Response:
    return await http.put(path, content=json.dumps(policy), params=params)


async def session_of(api: Api, http: httpx.AsyncClient | None = None, **body: Any) -> str:
    return str((await api.create(http, **body))["session"]["id"])


def bounds(api: Api, session_id: str) -> list[Any]:
    return [json.loads(text) for text in api.host.networks[session_id].bounds]


async def read(http: httpx.AsyncClient, session_id: str) -> dict[str, Any]:
    return dict((await http.get(f"/v2/sandboxes/sessions/{session_id}")).json()["session"])


# -- who may ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["id", "slug"])
async def test_a_policy_is_set_read_replaced_and_removed(api: Api, by: str) -> None:
    own = await api.tenant("acme", None, TokenRole.OWNER)
    member = await api.tenant("acme", "web")
    places = {
        "id": (team(member.team_id), project(member.project_id)),
        "slug": (team("acme"), project("web")),
    }[by]
    for path in places:
        assert (await member.http.get(path)).json() == {"networkPolicy": None}
        answer = await put(own.http, path, BLOCK)
        nothing = {"warnings": [], "sessions": 0, "closedFlows": 0, "keptFlows": 0}
        assert (answer.status_code, answer.json()) == (200, {"networkPolicy": BLOCK, "hutch": nothing})
        # What is read can be sent again.
        found = (await member.http.get(f"/api{path}")).json()["networkPolicy"]
        assert (await put(own.http, path, found)).json()["networkPolicy"] == BLOCK
        assert (await put(own.http, path, "deny-all")).json()["networkPolicy"] == {"mode": "deny-all"}
        for _ in range(2):
            gone = await own.http.delete(path)
            assert (gone.status_code, gone.content) == (204, b"")
        assert (await member.http.get(path)).json() == {"networkPolicy": None}


async def test_members_read_and_may_not_change(api: Api) -> None:
    one_project = await api.tenant("acme", "web")
    whole_team = await api.tenant("acme", None)
    # An owner of one project only is among those whom bounds are for.
    bound_owner = await api.tenant("acme", "web", TokenRole.OWNER)
    paths = (team("acme"), project("web"))
    for path in paths:
        assert (await put(api.http, path, ONLY, teamId="acme")).status_code == 200
    for caller in (one_project, whole_team, bound_owner):
        for path in paths:
            for answer in (await put(caller.http, path, "allow-all"), await caller.http.delete(path)):
                assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")
            assert "a.test" in (await caller.http.get(path)).text


async def test_others_do_not_exist(api: Api) -> None:
    theirs = await api.tenant("theirs", "web")
    hidden = await api.tenant("acme", "hidden")
    for caller in (await api.tenant("acme", "web", TokenRole.OWNER), await api.tenant("acme", "web")):
        for path in (
            team(theirs.team_id),
            team("theirs"),
            team("nobody"),
            project(theirs.project_id),
            project("nothing"),
            # Its token is for another project of the same team.
            project(hidden.project_id),
            project("hidden"),
        ):
            for answer in (await put(caller.http, path, BLOCK), await caller.http.get(path), await caller.http.delete(path)):
                # Tokens of one project are refused a change before anybody looks what it is about.
                expected = (404, "not_found") if answer.request.method == "GET" else (403, "forbidden")
                assert (answer.status_code, answer.json()["error"]["code"]) == expected, path
        for path in (team(theirs.team_id), project("web")):
            assert (await caller.http.get(path, params={"teamId": theirs.team_id})).status_code == 403
    owner = await api.tenant("acme", None, TokenRole.OWNER)
    assert (await put(owner.http, team("theirs"), BLOCK)).status_code == 404
    assert (await put(owner.http, project("hidden"), BLOCK)).status_code == 200
    for path in (team("acme"), project("web")):
        assert (await api.client("").get(path)).status_code == 401
        assert (await api.client("").put(path, json=BLOCK)).status_code == 401
        assert (await api.client("").delete(path)).status_code == 401


async def test_an_administrator_reaches_every_team(api: Api) -> None:
    theirs = await api.tenant("theirs", "web")
    assert (await put(api.http, team("theirs"), BLOCK)).status_code == 200
    assert (await put(api.http, project(theirs.project_id), BLOCK)).status_code == 200
    assert (await put(api.http, project("web"), BLOCK)).status_code == 404
    assert (await put(api.http, project("web"), ONLY, teamId="theirs")).status_code == 200
    assert (await theirs.http.get(project("web"))).json()["networkPolicy"]["allow"] == {"a.test": [], "*.b.test": []}


HOSTILE = ["%00", "a%00b", "..", "%2e%2e", "a%2fb", "größe", "a" * 65, "x" * 5000, "a b", "'; drop table teams; --", "%", "*"]


@pytest.mark.parametrize("reference", HOSTILE)
async def test_strange_references_are_404(api: Api, reference: str) -> None:
    for path in (team(reference), project(reference)):
        for answer in (await put(api.http, path, BLOCK), await api.http.get(path), await api.http.delete(path)):
            assert answer.status_code in (404, 405), path


BAD: list[tuple[bytes, str]] = [
    (b"", ""),
    (b"{", ""),
    (b"null", ""),
    (b"[]", ""),
    (b'"open"', ""),
    (b"\xff\xfe", ""),
    (b'{"block": "evil.test"}', "/block"),
    (b'{"block": ["api*.x"]}', "/block/0"),
    (b'{"block": ["a.test"], "block": []}', "/block"),
    (b'{"allow": {"a.test": [{"transform": [{"headers": {"authorization": "x"}}]}]}}', ""),
    (b'{"allow": {"a.test": [{"forwardURL": "https://p.test"}]}}', ""),
    (b'{"subnets": {"allow": ["127.0.0.0/8"]}}', "/subnets/allow/0"),
    (b"[" * 100_000, ""),
]


@pytest.mark.parametrize(("raw", "pointer"), BAD)
async def test_what_is_no_policy_of_bounds_changes_nothing(api: Api, raw: bytes, pointer: str) -> None:
    session_id = await session_of(api)
    for path in (team("default"), project("default")):
        await put(api.http, path, ONLY)
        answer = await api.http.put(path, content=raw)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (400, "invalid_network_policy")
        assert error["pointer"].startswith(pointer)
        assert "a.test" in (await api.http.get(path)).text
    assert len(bounds(api, session_id)) == 2


async def test_a_body_that_is_too_large_is_413(api: Api) -> None:
    answer = await api.http.put(team("default"), content=b" " * 2_000_000)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "payload_too_large")


# -- what the host is told --------------------------------------------------------------------------


async def test_a_change_reaches_every_live_session_that_it_concerns_before_it_is_answered(api: Api) -> None:
    web, shop, theirs = await api.tenant("acme", "web"), await api.tenant("acme", "shop"), await api.tenant("theirs")
    one = await session_of(api, web.http, networkPolicy={"allow": ["a.test"]})
    two = await session_of(api, web.http)
    three = await session_of(api, shop.http)
    four = await session_of(api, theirs.http)
    ended = await session_of(api, web.http)
    await web.http.post(f"/v2/sandboxes/sessions/{ended}/stop")
    api.host.flows = (2, 3)
    calls = api.host.calls.count("session.network")
    answer = await put(api.http, team("acme"), BLOCK)
    assert answer.json()["hutch"] == {"warnings": [], "sessions": 3, "closedFlows": 6, "keptFlows": 9}
    assert [bounds(api, session_id) for session_id in (one, two, three, four)] == [[BLOCK], [BLOCK], [BLOCK], []]
    assert api.host.calls.count("session.network") == calls + 3
    await put(api.http, project(web.project_id), "deny-all")
    assert [bounds(api, session_id) for session_id in (one, three)] == [[BLOCK, {"mode": "deny-all"}], [BLOCK]]
    # Neither the policy nor its generation is another one.
    network = api.host.networks[one]
    assert (network.generation, json.loads(network.policy or "")) == (1, {"allow": {"a.test": []}})
    assert api.host.networks[two].policy is None
    await api.http.delete(team("acme"))
    await api.http.delete(project(web.project_id))
    assert [bounds(api, session_id) for session_id in (one, two, three, four)] == [[], [], [], []]


async def test_every_way_to_a_session_has_the_bounds(api: Api) -> None:
    await put(api.http, team("default"), BLOCK)
    await put(api.http, project("default"), ONLY)
    both = [BLOCK, {"allow": {"a.test": [], "*.b.test": []}}]
    created = await session_of(api, name="one", networkPolicy="deny-all")
    forked = (await api.http.post("/v2/sandboxes/one/fork", json={})).json()["session"]["id"]
    assert bounds(api, created) == bounds(api, forked) == both
    await api.http.post(f"/v2/sandboxes/sessions/{created}/network-policy", content=b'"allow-all"')
    assert bounds(api, created) == both


async def test_bounds_that_change_while_a_session_starts_hold_when_it_is_there(api: Api) -> None:
    api.host.create_gate.clear()
    creating = asyncio.create_task(api.create(name="one"))
    await api.host.creating.wait()
    # The host is told before it has the session, and so in vain.
    assert (await put(api.http, team("default"), BLOCK)).json()["hutch"]["sessions"] == 0
    api.host.create_gate.set()
    session_id = (await creating)["session"]["id"]
    assert api.host.specs[session_id].network.bounds == []
    assert bounds(api, session_id) == [BLOCK]


async def test_a_session_that_can_not_be_held_to_new_bounds_does_not_start(api: Api) -> None:
    api.host.create_gate.clear()
    creating = asyncio.create_task(api.http.post("/v3/sandboxes", json={"name": "one"}))
    await api.host.creating.wait()
    await put(api.http, team("default"), BLOCK)
    api.host.refuse_network = UnavailableError("gateway_unavailable", "The gateway does not answer.")
    api.host.create_gate.set()
    assert (await creating).status_code == 503
    assert [str(record.status) for record in api.host.sessions.values()] == ["stopped"]
    assert (await api.http.get("/v2/sandboxes/one")).status_code == 404


async def test_policies_and_bounds_larger_than_a_frame_reach_the_host(api: Api) -> None:
    def names(count: int, letter: str) -> list[str]:
        return [f"{letter * 60}.{letter * 60}.{letter * 60}.x{number}.test" for number in range(count)]

    await put(api.http, team("default"), {"mode": "allow-all", "block": names(1000, "b")})
    await put(api.http, project("default"), {"allow": names(1000, "p")})
    session_id = await session_of(api, networkPolicy={"allow": names(1000, "t")})
    network = api.host.networks[session_id]
    assert sum(map(len, [network.policy or "", *network.bounds])) > 600_000 - 50_000
    wide = {
        "allow": {
            name: [{"response": {"statusCode": 403, "body": "x" * 200, "contentType": "text/plain"}}] for name in names(900, "w")
        }
    }
    answer = await api.http.post(f"/v2/sandboxes/sessions/{session_id}/network-policy", json=wide)
    assert answer.status_code == 200, answer.text
    # Of a thousand names outside, some are told.
    warnings = answer.json()["hutch"]["warnings"]
    assert len(warnings) == MAX_OUTSIDE_WARNINGS + 1
    assert "more names" in warnings[-1]["message"]


# -- what is read back ------------------------------------------------------------------------------


async def test_a_policy_says_that_it_is_bounded_and_what_lies_outside(api: Api) -> None:
    tenant = await api.tenant("acme", "web")
    session_id = await session_of(api, tenant.http, name="one", networkPolicy={"allow": ["a.test", "c.test"]})
    assert "bounded" not in (await read(tenant.http, session_id))["networkPolicy"]["hutch"]
    await put(api.http, team("acme"), ONLY)
    for path in (f"/v2/sandboxes/sessions/{session_id}", "/v2/sandboxes/one"):
        answer = (await tenant.http.get(path)).json()
        assert all(item["networkPolicy"]["hutch"]["bounded"] for key, item in answer.items() if key in ("session", "sandbox"))
    for key in ("sandboxes", "sessions"):
        path = "/v2/sandboxes" + ("/sessions" if key == "sessions" else "")
        assert [item["networkPolicy"]["hutch"]["bounded"] for item in (await tenant.http.get(path)).json()[key]] == [True]
    policy = {"allow": {"x.b.test": [], "C.test": []}, "subnets": {"allow": ["203.0.113.0/24", "203.0.113.9"]}}
    answer = await tenant.http.post(f"/v2/sandboxes/sessions/{session_id}/network-policy", json=policy)
    own = answer.json()["hutch"]
    assert (own["bounded"], own["generation"]) == (True, 2)
    assert [(item["pointer"], item["code"]) for item in own["warnings"]] == [
        ("/allow/C.test", "outside_bounds"),
        ("/subnets/allow/0", "outside_bounds"),
        ("/subnets/allow/1", "outside_bounds"),
    ]
    assert own["warnings"] == (await read(tenant.http, session_id))["networkPolicy"]["hutch"]["warnings"]
    # What was read can be sent again, and its pointers are into what was sent.
    again = await tenant.http.post(
        f"/v2/sandboxes/sessions/{session_id}/network-policy", json=(await read(tenant.http, session_id))["networkPolicy"]
    )
    assert next(item["pointer"] for item in again.json()["hutch"]["warnings"]) == "/allowedDomains/1"


async def test_without_a_policy_a_bounded_sandbox_says_what_it_has(api: Api) -> None:
    created = await api.create(name="one")
    assert "networkPolicy" not in created["session"]
    await put(api.http, project("default"), ONLY)
    shown = {"mode": "allow-all", "hutch": {"generation": 1, "warnings": [], "bounded": True}}
    assert (await read(api.http, created["session"]["id"]))["networkPolicy"] == shown
    other = await api.create(name="two")
    assert other["sandbox"]["networkPolicy"] == other["session"]["networkPolicy"] == shown
    stopped = (await api.http.post(f"/v2/sandboxes/sessions/{created['session']['id']}/stop")).json()
    assert stopped["sandbox"]["networkPolicy"] == shown


async def test_bounds_of_another_project_are_not_shown(api: Api) -> None:
    web, shop = await api.tenant("acme", "web"), await api.tenant("acme", "shop")
    owner = await api.tenant("acme", None, TokenRole.OWNER)
    await put(owner.http, project("web"), ONLY)
    await api.create(web.http, name="one", networkPolicy="deny-all")
    await api.create(shop.http, name="two", networkPolicy="deny-all")
    listed = (await owner.http.get("/v2/sandboxes")).json()["sandboxes"]
    assert {item["name"]: item["networkPolicy"]["hutch"].get("bounded") for item in listed} == {"one": True, "two": None}


async def test_a_projects_policy_is_warned_of_its_teams(api: Api) -> None:
    await put(api.http, team("default"), ONLY)
    warnings = (await put(api.http, project("default"), {"allow": ["a.test", "z.test"]})).json()["hutch"]["warnings"]
    assert [(item["pointer"], item["code"]) for item in warnings] == [("/allow/1", "outside_bounds")]


async def test_a_block_list_that_allows_nothing_is_remarked(api: Api) -> None:
    for policy, codes in (({"block": ["a.test"]}, ["allows_nothing"]), ({}, ["allows_nothing"]), (BLOCK, []), ("deny-all", [])):
        answer = await put(api.http, team("default"), policy)
        assert [item["code"] for item in answer.json()["hutch"]["warnings"]] == codes


async def test_a_member_narrows_and_does_not_widen(api: Api) -> None:
    owner, member = await api.tenant("acme", None, TokenRole.OWNER), await api.tenant("acme", "web")
    await put(owner.http, project("web"), ONLY)
    session_id = await session_of(api, member.http, networkPolicy={"allow": ["a.test"]})
    for policy in ("allow-all", "deny-all", {"allow": ["a.test", "evil.test"]}):
        answer = await member.http.post(f"/v2/sandboxes/sessions/{session_id}/network-policy", json=policy)
        assert answer.status_code == 200
        assert bounds(api, session_id) == [{"allow": {"a.test": [], "*.b.test": []}}]


# -- a host that does not listen --------------------------------------------------------------------


async def until_bounded(api: Api, session_id: str, expected: list[Any]) -> None:
    async with asyncio.timeout(20):
        while bounds(api, session_id) != expected:
            await asyncio.sleep(0.01)


async def test_a_change_that_the_host_does_not_hear_is_kept_and_told_later(api: Api) -> None:
    session_id = await session_of(api, name="one")
    await api.host.stop()
    answer = await put(api.http, team("default"), BLOCK)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "bounds_not_announced")
    assert "retry-after" in answer.headers
    assert (await api.http.get(team("default"))).json()["networkPolicy"] == BLOCK
    await api.host.start()
    await until_bounded(api, session_id, [BLOCK])
    assert (await put(api.http, team("default"), BLOCK)).status_code == 200


async def test_a_change_that_the_host_refuses_is_told_again_and_again(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_bounds, "RETRY_S", 0.01)
    session_id = await session_of(api, name="one")
    api.host.refuse_network = UnavailableError("gateway_unavailable", "The gateway does not answer.")
    assert (await put(api.http, team("default"), BLOCK)).status_code == 503
    async with asyncio.timeout(10):
        while api.host.calls.count("session.network") < 4:
            await asyncio.sleep(0.01)
    assert bounds(api, session_id) == []
    api.host.refuse_network = None
    await until_bounded(api, session_id, [BLOCK])


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_change_whose_answer_was_lost_holds_when_the_host_answers_again(api: Api, when: str) -> None:
    session_id = await session_of(api, name="one")
    api.host.break_network = when
    assert (await put(api.http, team("default"), BLOCK)).status_code == 503
    await until_bounded(api, session_id, [BLOCK])


async def test_a_new_control_plane_tells_what_it_has_once(api: Api) -> None:
    session_id = await session_of(api, name="one")
    services = api.services
    calls = api.host.calls.count("session.network")
    await reconcile(services)
    assert api.host.calls.count("session.network") == calls
    # As a process that has just started, with another policy of the operator.
    services.operator_policy = json.dumps(BLOCK)
    await reconcile(services)
    assert bounds(api, session_id) == [BLOCK]
    calls = api.host.calls.count("session.network")
    await reconcile(services)
    assert api.host.calls.count("session.network") == calls


async def test_bounds_hold_for_the_old_policy_where_the_host_refuses_the_new_one(api: Api) -> None:
    session_id = await session_of(api, name="one", networkPolicy={"allow": ["a.test"]})
    api.host.break_network = "before"
    await api.http.post(f"/v2/sandboxes/sessions/{session_id}/network-policy", content=b'"allow-all"')
    assert (await put(api.http, team("default"), BLOCK)).status_code in (200, 503)
    await until_bounded(api, session_id, [BLOCK])
    assert json.loads(api.host.networks[session_id].policy or "") in ({"mode": "allow-all"}, {"allow": {"a.test": []}})


async def test_of_concurrent_changes_the_host_has_the_one_that_is_kept(api: Api) -> None:
    sessions = [await session_of(api) for _ in range(3)]
    policies = [{"allow": [f"h{number}.test"]} for number in range(8)]
    answers = await asyncio.gather(*(put(api.http, team("default"), policy) for policy in policies))
    assert {answer.status_code for answer in answers} == {200}
    kept = (await api.http.get(team("default"))).json()["networkPolicy"]
    assert [bounds(api, session_id) for session_id in sessions] == [[kept]] * 3


# -- the operator -----------------------------------------------------------------------------------


class TestOperator:
    @pytest.fixture
    def environment(self, tmp_path: Path) -> dict[str, str]:
        file = tmp_path / "policy.json"
        file.write_text(json.dumps(BLOCK))
        return {"HUTCH_EGRESS__POLICY": str(file)}

    async def test_its_policy_bounds_everybody_first(self, api: Api) -> None:
        tenant = await api.tenant("acme", "web")
        warnings = (await put(api.http, team("acme"), {"allow": ["a.test", "evil.test"]})).json()["hutch"]["warnings"]
        assert [item["pointer"] for item in warnings] == ["/allow/1"]
        await put(api.http, project(tenant.project_id), "allow-all")
        created = await api.create(tenant.http, networkPolicy="deny-all")
        assert created["session"]["networkPolicy"]["hutch"]["bounded"]
        found = bounds(api, created["session"]["id"])
        assert found == [BLOCK, {"allow": {"a.test": [], "evil.test": []}}, {"mode": "allow-all"}]
        # It is nobody's to read or change over the API.
        assert (await tenant.http.get(team("acme"))).json()["networkPolicy"]["allow"] == {"a.test": [], "evil.test": []}
