"""Network policies over the API: every form, what is read back, generations, and updates that fail half way."""

from __future__ import annotations

import asyncio
import copy
import json
from typing import Any

import httpx
import pytest

from hutch.api.host_events import reconcile
from hutch.api.network_policy import _replaced
from hutch.control.records import NetworkPolicy, Unconfirmed
from hutch.errors import BadRequestError, UnavailableError
from hutch.host.protocol import SessionStatus
from tests.api.conftest import Api

pytestmark = pytest.mark.section("14")

SECRET = "CANARY-c2a1f09b77"
INJECTING = {"transform": [{"headers": {"authorization": f"Bearer {SECRET}"}}]}


def path(session_id: str) -> str:
    return f"/v2/sandboxes/sessions/{session_id}/network-policy"


async def session_of(api: Api, **body: Any) -> str:
    return str((await api.create(**body))["session"]["id"])


async def post(api: Api, session_id: str, policy: object, **headers: str) -> httpx.Response:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return await api.http.post(path(session_id), content=json.dumps(policy), headers=sent)


async def read(api: Api, session_id: str) -> dict[str, Any] | None:
    session = (await api.http.get(f"/v2/sandboxes/sessions/{session_id}")).json()["session"]
    policy: dict[str, Any] | None = session.get("networkPolicy")
    return policy


# -- forms -------------------------------------------------------------------------------------------

FORMS: list[tuple[Any, dict[str, Any]]] = [
    ("allow-all", {"mode": "allow-all"}),
    ("deny-all", {"mode": "deny-all"}),
    ({"mode": "allow-all"}, {"mode": "allow-all"}),
    ({}, {"mode": "custom"}),
    ({"allow": ["b.test", "*.a.test"]}, {"mode": "custom", "allowedDomains": ["b.test", "*.a.test"]}),
    (
        {"allow": {"b.test": [], "a.test": []}, "subnets": {"deny": ["203.0.113.0/24"]}},
        {"mode": "custom", "allowedDomains": ["b.test", "a.test"], "deniedCIDRs": ["203.0.113.0/24"]},
    ),
    (
        {"mode": "default-deny", "allowedDomains": ["a.test"], "allowedCIDRs": ["203.0.113.0/24"]},
        {"mode": "custom", "allowedDomains": ["a.test"], "allowedCIDRs": ["203.0.113.0/24"]},
    ),
]


@pytest.mark.section("6.1")
@pytest.mark.parametrize(("policy", "form"), FORMS)
async def test_every_form_is_taken_in_create_fork_patch_and_update(api: Api, policy: object, form: dict[str, Any]) -> None:
    first = {"hutch": {"generation": 1, "warnings": []}}
    created = await api.create(name="one", networkPolicy=policy)
    assert created["sandbox"]["networkPolicy"] == created["session"]["networkPolicy"] == form | first
    forked = (await api.http.post("/v2/sandboxes/one/fork", json={"networkPolicy": policy})).json()
    assert forked["sandbox"]["networkPolicy"] == form | first
    patched = (await api.http.patch("/v2/sandboxes/one", json={"networkPolicy": policy})).json()
    assert patched["sandbox"]["networkPolicy"] == form | {"hutch": {"generation": 2, "warnings": []}}
    updated = (await post(api, created["session"]["id"], policy)).json()
    own = {"generation": 3, "warnings": [], "closedFlows": 0, "keptFlows": 0}
    assert updated["session"]["networkPolicy"] == form | {"hutch": own}
    assert updated["hutch"] == own
    # How many flows were closed is of that answer, not of the policy.
    assert await read(api, created["session"]["id"]) == form | {"hutch": {"generation": 3, "warnings": []}}


@pytest.mark.section("5.1", "6.1")
async def test_without_a_policy_none_is_shown_and_the_host_is_told_allow_all(api: Api) -> None:
    created = await api.create(name="one", networkPolicy=None)
    assert "networkPolicy" not in created["sandbox"]
    assert "networkPolicy" not in created["session"]
    network = api.host.networks[created["session"]["id"]]
    assert (network.policy, network.generation, network.credentials, network.bounds) == (None, 1, {}, [])


async def test_the_host_gets_policy_generation_and_who_it_is_about(api: Api) -> None:
    created = await api.create(name="one", networkPolicy={"allow": {"a.test": [INJECTING]}})
    spec = api.host.specs[created["session"]["id"]]
    assert spec.team_id == api.own.team_id
    assert spec.sandbox_id.startswith("sb_") or spec.sandbox_id
    assert spec.network.policy is not None
    assert json.loads(spec.network.policy) == {"allow": {"a.test": [INJECTING]}}
    assert spec.network.generation == 1


async def test_warnings_are_told_and_kept(api: Api) -> None:
    session_id = await session_of(api, name="one", networkPolicy={"subnets": {"allow": ["0.0.0.0/0"]}})
    policy = await read(api, session_id)
    assert policy is not None
    assert [(item["pointer"], item["code"]) for item in policy["hutch"]["warnings"]] == [("/subnets/allow/0", "open_range")]


def injecting(end: str) -> bytes:
    """A policy that adds a short value and wants it masked."""
    return json.dumps(
        {"allow": {"a.test": [{"transform": [{"headers": {"authorization": "abc" + end}}], "scrub": True}]}}
    ).encode()


BAD: list[tuple[bytes, str | None]] = [
    (b'{"mode": "open"}', "/mode"),
    (b'{"allow": {"a.test": [{}]}}', "/allow/a.test/0"),
    (b'{"allow": ["api*.x"]}', "/allow/0"),
    (b'{"subnets": {"allow": ["10.0.0.0/8"]}}', "/subnets/allow/0"),
    (b'{"allow": {"a.test": [{"match": {"path": {"regex": "("}}, "response": {"statusCode": 403}}]}}', None),
    (b'{"unknown": 1}', "/unknown"),
    # A value that would end its line, or is too short to be told from other text (T84, T78).
    *[(injecting(end), "/allow/a.test/0/transform/0/headers/authorization") for end in ("\r\nx-more: 1", "\n", "\r", "\0")],
    (injecting(""), "/allow/a.test/0"),
    (b'"open"', ""),
    (b"5", ""),
    (b"[]", ""),
]


@pytest.mark.parametrize(("raw", "pointer"), BAD)
async def test_an_invalid_policy_is_refused_with_its_pointer_and_changes_nothing(
    api: Api, raw: bytes, pointer: str | None
) -> None:
    session_id = await session_of(api, name="one", networkPolicy="deny-all")
    body = b'{"name": "two", "networkPolicy": ' + raw + b"}"
    answers = [
        await api.http.post(path(session_id), content=raw),
        await api.http.post("/v3/sandboxes", content=body),
        await api.http.patch("/v2/sandboxes/one", content=b'{"networkPolicy": ' + raw + b', "timeout": 5000}'),
        await api.http.post("/v2/sandboxes/one/fork", content=body),
    ]
    for answer in answers:
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (400, "invalid_network_policy"), answer.text
        assert error["message"].startswith("Invalid request: the network policy")
        if pointer is not None:
            assert error["pointer"] == pointer
    assert await read(api, session_id) == {"mode": "deny-all", "hutch": {"generation": 1, "warnings": []}}
    assert (await api.http.get("/v2/sandboxes/one")).json()["sandbox"]["timeout"] == 300_000
    assert len(api.host.sessions) == 1
    assert api.host.calls.count("session.network") == 0


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"\xff",
        b'{"allow": NaN}',
        b"[" * 100_000,
        b'{"allow":' * 5000 + b"1" + b"}" * 5000,
        b'{"allow":' * 300 + b"1" + b"}" * 300,
        b'"\\ud800"',
        b"null",
    ],
)
async def test_what_is_no_json_is_400(api: Api, raw: bytes) -> None:
    session_id = await session_of(api, name="one")
    answer = await api.http.post(path(session_id), content=raw)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_network_policy")
    if raw != b"null":
        answer = await api.http.post("/v3/sandboxes", content=b'{"networkPolicy": ' + raw + b"}")
        assert answer.status_code == 400
    assert await read(api, session_id) is None


async def test_a_name_twice_in_a_policy_is_refused_wherever_the_policy_comes(api: Api) -> None:
    session_id = await session_of(api, name="one", networkPolicy="deny-all")
    twice = b'{"allow": ["a.test"], "allow": ["b.test"]}'
    alone = (await api.http.post(path(session_id), content=twice)).json()["error"]
    assert (alone["code"], alone["pointer"]) == ("invalid_network_policy", "/allow")
    for method, place in (("POST", "/v3/sandboxes"), ("PATCH", "/v2/sandboxes/one"), ("POST", "/v2/sandboxes/one/fork")):
        answer = await api.http.request(method, place, content=b'{"networkPolicy": ' + twice + b"}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_request")
    assert await read(api, session_id) == {"mode": "deny-all", "hutch": {"generation": 1, "warnings": []}}


async def test_of_two_policies_in_one_body_none_is_taken(api: Api) -> None:
    answer = await api.http.post("/v3/sandboxes", content=b'{"networkPolicy": "allow-all", "networkPolicy": "deny-all"}')
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_request")
    assert api.host.sessions == {}


async def test_a_policy_as_large_as_a_body_may_be_is_taken(api: Api) -> None:
    session_id = await session_of(api, name="one")
    policy = {"allow": [f"h{n}.test" for n in range(1000)]}
    assert (await post(api, session_id, policy)).status_code == 200
    answer = await post(api, session_id, {"allow": ["a" * 2**20]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "payload_too_large")


# -- secrets -----------------------------------------------------------------------------------------


async def test_secrets_of_a_policy_never_come_back(api: Api) -> None:
    policy = {"allow": {"api.test": [INJECTING], "b.test": []}}
    created = await api.create(name="one", networkPolicy=policy)
    session_id = created["session"]["id"]
    answers = [
        json.dumps(created),
        (await api.http.get("/v2/sandboxes/one")).text,
        (await api.http.get("/v2/sandboxes")).text,
        (await api.http.get("/v2/sandboxes/sessions")).text,
        (await post(api, session_id, policy)).text,
        (await api.http.patch("/v2/sandboxes/one", json={"networkPolicy": policy})).text,
    ]
    assert not any(SECRET in answer for answer in answers)
    shown = created["sandbox"]["networkPolicy"]
    assert shown["injectionRules"] == [{"domain": "api.test", "headerNames": ["authorization"]}]
    control = api.services.settings.control_dir
    assert not any(SECRET.encode() in file.read_bytes() for file in control.iterdir() if file.is_file())


async def test_what_was_read_can_be_sent_again_and_keeps_its_values(api: Api) -> None:
    session_id = await session_of(api, name="one", networkPolicy={"allow": {"api.test": [INJECTING], "b.test": []}})
    policy = await read(api, session_id)
    assert policy is not None
    answer = await post(api, session_id, policy)
    assert answer.status_code == 200, answer.text
    assert SECRET in str(api.host.networks[session_id].policy)
    exact = copy.deepcopy(policy["hutch"]["policy"])
    exact["allow"]["c.test"] = []
    answer = await post(api, session_id, exact)
    assert answer.json()["session"]["networkPolicy"]["allowedDomains"] == ["api.test", "b.test", "c.test"]
    assert SECRET in str(api.host.networks[session_id].policy)
    # Moved to another name, the value would be readable there.
    moved = {"allow": {"evil.test": exact["allow"]["api.test"]}}
    answer = await post(api, session_id, moved)
    assert (answer.status_code, answer.json()["error"]["pointer"]) == (400, "/allow/evil.test/0")
    forked = (await api.http.post("/v2/sandboxes/one/fork", json={"networkPolicy": policy})).json()
    assert SECRET in str(api.host.networks[forked["session"]["id"]].policy)
    patched = await api.http.patch("/v2/sandboxes/one", json={"networkPolicy": policy})
    assert patched.status_code == 200


@pytest.mark.section("6.6")
async def test_a_fork_copies_the_policy_with_its_values_as_its_own_first_one(api: Api) -> None:
    await api.create(name="one", networkPolicy={"allow": {"api.test": [INJECTING]}})
    await api.http.patch("/v2/sandboxes/one", json={"networkPolicy": {"allow": {"api.test": [INJECTING], "b.test": []}}})
    forked = (await api.http.post("/v2/sandboxes/one/fork", json={"name": "two"})).json()
    assert forked["sandbox"]["networkPolicy"]["allowedDomains"] == ["api.test", "b.test"]
    network = api.host.networks[forked["session"]["id"]]
    assert network.generation == forked["sandbox"]["networkPolicy"]["hutch"]["generation"] == 1
    assert SECRET in str(network.policy)


# -- record and session ------------------------------------------------------------------------------


@pytest.mark.section("6.4")
async def test_a_patch_is_for_the_next_session_and_an_update_for_this_one(api: Api) -> None:
    created = await api.create(name="one", networkPolicy="allow-all")
    session_id = created["session"]["id"]
    await api.http.patch("/v2/sandboxes/one", json={"networkPolicy": "deny-all"})
    assert "session.network" not in api.host.calls
    assert (await read(api, session_id) or {})["mode"] == "allow-all"
    await post(api, session_id, {"allow": ["a.test"]})
    whole = (await api.http.get("/v2/sandboxes/one")).json()
    assert (whole["sandbox"]["networkPolicy"]["mode"], whole["session"]["networkPolicy"]["mode"]) == ("deny-all", "custom")


async def test_generations_of_a_sandbox_and_its_sessions_never_repeat(api: Api) -> None:
    created = await api.create(name="one")
    session_id = created["session"]["id"]
    seen = []
    for number in range(3):
        answer = await post(api, session_id, {"allow": [f"s{number}.test"]})
        seen.append(answer.json()["hutch"]["generation"])
        patched = await api.http.patch("/v2/sandboxes/one", json={"networkPolicy": {"allow": [f"r{number}.test"]}})
        seen.append(patched.json()["sandbox"]["networkPolicy"]["hutch"]["generation"])
        await api.http.patch("/v2/sandboxes/one", json={"timeout": 5000 + number})
    assert seen == [2, 3, 4, 5, 6, 7]
    assert api.host.networks[session_id].generation == 6


async def test_an_update_says_what_became_of_open_flows(api: Api) -> None:
    session_id = await session_of(api, name="one")
    api.host.flows = (3, 14)
    own = (await post(api, session_id, "deny-all")).json()["session"]["networkPolicy"]["hutch"]
    assert (own["closedFlows"], own["keptFlows"]) == (3, 14)


# -- If-Match ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", ["1", '"1"', 'W/"1"', "*", '"7", "1"'])
async def test_if_match_lets_through_who_knows_the_generation(api: Api, header: str) -> None:
    session_id = await session_of(api, name="one")
    assert (await post(api, session_id, "deny-all", if_match=header)).status_code == 200
    answer = await api.http.patch("/v2/sandboxes/one", json={"networkPolicy": "deny-all"}, headers={"if-match": header})
    assert answer.status_code == 200


@pytest.mark.parametrize("header", ["0", "2", "", "x", '"', "1.0", "-1", "9" * 5000, "01"])
async def test_if_match_with_anything_else_is_412_and_changes_nothing(api: Api, header: str) -> None:
    session_id = await session_of(api, name="one", networkPolicy="allow-all")
    answers = [
        await post(api, session_id, "deny-all", if_match=header),
        await api.http.patch("/v2/sandboxes/one", json={"networkPolicy": "deny-all"}, headers={"if-match": header}),
    ]
    for answer in answers:
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["generation"]) == (412, "generation_mismatch", 1)
    assert (await read(api, session_id) or {})["mode"] == "allow-all"


async def test_of_concurrent_writers_with_one_generation_one_wins(api: Api) -> None:
    session_id = await session_of(api, name="one")
    answers = await asyncio.gather(*(post(api, session_id, {"allow": [f"a{n}.test"]}, if_match="1") for n in range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] + [412] * 7
    bodies = [{"networkPolicy": {"allow": [f"a{n}.test"]}} for n in range(8)]
    answers = await asyncio.gather(
        *(api.http.patch("/v2/sandboxes/one", json=body, headers={"if-match": "1"}) for body in bodies)
    )
    assert sorted(answer.status_code for answer in answers) == [200] + [412] * 7


async def test_concurrent_updates_end_with_host_and_database_at_the_same_policy(api: Api) -> None:
    session_id = await session_of(api, name="one")
    answers = await asyncio.gather(*(post(api, session_id, {"allow": [f"a{n}.test"]}) for n in range(12)))
    assert {answer.status_code for answer in answers} == {200}
    generations = sorted(answer.json()["hutch"]["generation"] for answer in answers)
    assert generations == list(range(2, 14))
    policy = await read(api, session_id)
    assert policy is not None
    network = api.host.networks[session_id]
    assert policy["hutch"]["generation"] == network.generation == 13
    assert policy["allowedDomains"] == list(json.loads(str(network.policy))["allow"])


# -- what goes wrong ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UnavailableError("gateway_unavailable", "The gateway does not answer."), 503),
        (BadRequestError("invalid_network_policy", "The host knows better.", details={"pointer": "/allow"}), 400),
    ],
)
async def test_a_policy_that_the_host_refuses_is_taken_back(api: Api, error: Any, status: int) -> None:
    session_id = await session_of(api, name="one", networkPolicy="allow-all")
    await post(api, session_id, {"allow": ["a.test"]})
    api.host.refuse_network = error
    answer = await post(api, session_id, "deny-all")
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, error.code)
    policy = await read(api, session_id)
    assert policy is not None
    assert (policy["allowedDomains"], policy["hutch"]["generation"]) == (["a.test"], 2)
    api.host.refuse_network = None
    # The number of the refused one is not used again.
    assert (await post(api, session_id, "deny-all", if_match="2")).json()["hutch"]["generation"] == 4


async def test_a_first_policy_that_the_host_refuses_leaves_none(api: Api) -> None:
    session_id = await session_of(api, name="one")
    api.host.refuse_network = UnavailableError("gateway_unavailable", "The gateway does not answer.")
    assert (await post(api, session_id, "deny-all")).status_code == 503
    assert await read(api, session_id) is None


async def test_a_policy_is_written_before_the_host_enforces_it(api: Api) -> None:
    session_id = await session_of(api, name="one")
    api.host.network_gate.clear()
    request = asyncio.create_task(post(api, session_id, "deny-all"))
    async with asyncio.timeout(10):
        while "session.network" not in api.host.calls:
            await asyncio.sleep(0.005)
    # As a killed server would find it.
    assert (await read(api, session_id) or {})["mode"] == "deny-all"
    assert not request.done()
    api.host.network_gate.set()
    assert (await request).status_code == 200


@pytest.mark.parametrize("when", ["before", "after"])
async def test_an_update_whose_answer_was_lost_is_enforced_when_the_host_answers_again(api: Api, when: str) -> None:
    session_id = await session_of(api, name="one")
    api.host.break_network = when
    answer = await post(api, session_id, "deny-all")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "peer_unreachable")
    async with asyncio.timeout(10):
        while api.host.calls.count("session.network") < 2:
            await asyncio.sleep(0.01)
    async with api.services.turn(session_id):
        pass
    assert api.host.networks[session_id].generation == 2
    policy = await read(api, session_id)
    assert policy == {"mode": "deny-all", "hutch": {"generation": 2, "warnings": []}}
    # And once it is confirmed, it is not sent for ever.
    calls = api.host.calls.count("session.network")
    await reconcile(api.services)
    assert api.host.calls.count("session.network") == calls


async def test_an_update_whose_answer_was_lost_and_that_is_refused_later_is_taken_back(api: Api) -> None:
    session_id = await session_of(api, name="one", networkPolicy="allow-all")
    api.host.break_network = "before"
    api.host.network_gate.clear()
    request = asyncio.create_task(post(api, session_id, "deny-all"))
    async with asyncio.timeout(10):
        while "session.network" not in api.host.calls:
            await asyncio.sleep(0.005)
    api.host.network_gate.set()
    # The first call breaks the connection; every later one is refused.
    async with asyncio.timeout(10):
        while api.host.break_network:
            await asyncio.sleep(0)
    api.host.refuse_network = UnavailableError("gateway_unavailable", "The gateway does not answer.")
    assert (await request).status_code == 503
    async with asyncio.timeout(10):
        while (await read(api, session_id) or {})["mode"] != "allow-all":
            await asyncio.sleep(0.01)


def test_policies_in_doubt_do_not_pile_up() -> None:
    confirmed = NetworkPolicy("1", {}, 1)
    policy = confirmed
    for generation in range(2, 50):
        policy = NetworkPolicy(str(generation), {}, generation, unconfirmed=Unconfirmed(_replaced(policy)))
    assert policy.unconfirmed is not None
    last = policy.unconfirmed.replaces
    assert last is not None
    assert last.generation == 48
    assert last.unconfirmed == Unconfirmed(confirmed)
    assert _replaced(confirmed) is confirmed
    assert _replaced(None) is None


async def test_while_the_host_is_away_nothing_changes(api: Api) -> None:
    session_id = await session_of(api, name="one", networkPolicy="allow-all")
    await api.host.stop()
    for _ in range(3):
        answer = await post(api, session_id, "deny-all")
        assert answer.status_code == 503
        assert (await read(api, session_id) or {})["mode"] == "allow-all"
    await api.host.start()
    async with asyncio.timeout(10):
        while (await post(api, session_id, "deny-all")).status_code != 200:
            await asyncio.sleep(0.01)


async def test_a_session_that_ends_meanwhile_is_410(api: Api) -> None:
    session_id = await session_of(api, name="one", networkPolicy="allow-all")
    api.host.forget(session_id)
    assert (await post(api, session_id, "deny-all")).status_code == 410
    await api.http.post(f"/v2/sandboxes/sessions/{session_id}/stop")
    assert (await post(api, session_id, "deny-all")).status_code == 410
    # Its last policy is still there to be read.
    assert (await read(api, session_id) or {})["mode"] == "allow-all"


async def test_a_session_of_a_deleted_sandbox_has_no_policy_to_change(api: Api) -> None:
    session_id = await session_of(api, name="one")
    await api.http.delete("/v2/sandboxes/one")
    assert (await post(api, session_id, "deny-all")).status_code == 404


async def test_a_policy_that_the_host_refuses_at_create_starts_nothing(api: Api) -> None:
    api.host.refuse_create = BadRequestError("invalid_network_policy", "Own address.", details={"pointer": "/subnets"})
    answer = await api.http.post("/v3/sandboxes", json={"name": "one", "networkPolicy": {"subnets": {"allow": ["192.0.2.1/32"]}}})
    assert (answer.status_code, answer.json()["error"]["pointer"]) == (400, "/subnets")
    api.host.refuse_create = None
    await api.create(name="one")


async def test_a_stopping_session_is_left_to_the_host(api: Api) -> None:
    session_id = await session_of(api, name="one")
    await api.host.end(session_id, SessionStatus.STOPPED)
    assert (await post(api, session_id, "deny-all")).status_code == 410
