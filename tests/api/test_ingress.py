"""Exposed ports as the API sees them: what the host is told, links, defaults of projects, resuming."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from hutch.control.permissions import TokenRole
from hutch.errors import InternalError
from tests.api.conftest import Api

OWN = "/hutch/v1"


async def told(api: Api, name: str) -> Any:
    """What the host knows of a sandbox's names."""
    routes = (await api.http.get(f"/v2/sandboxes/{name}")).json()["routes"]
    found = [
        known for known in api.host.routes.values() if {route["subdomain"] for route in routes} == {s for s, _ in known.routes}
    ]
    assert len(found) == 1
    return found[0]


async def test_the_host_is_told_of_names_before_the_answer(api: Api) -> None:
    await api.create(name="web", ports=[3000, 8080])
    known = await told(api, "web")
    assert [port for _, port in known.routes] == [3000, 8080]
    assert (known.private, known.wake, known.epoch) == (False, False, 0)
    await api.http.patch("/v2/sandboxes/web", json={"ports": [8080], "portsPrivate": True, "wakeOnRequest": True})
    changed = await told(api, "web")
    assert changed.routes == known.routes[1:]
    assert (changed.private, changed.wake, changed.epoch) == (True, True, 1)
    shown = (await api.http.get("/v2/sandboxes/web")).json()["sandbox"]
    assert (shown["portsPrivate"], shown["wakeOnRequest"]) == (True, True)
    await api.http.patch("/v2/sandboxes/web", json={"portsPrivate": None})
    assert (await told(api, "web")).private is False
    await api.http.delete("/v2/sandboxes/web")
    assert api.host.routes[known.sandbox_id].routes == []


async def test_a_fork_has_names_of_its_own_and_the_source_its_wishes(api: Api) -> None:
    made = await api.create(name="web", ports=[3000], portsPrivate=True)
    fork = (await api.http.post("/v2/sandboxes/web/fork", json={"name": "other"})).json()
    assert fork["routes"][0]["subdomain"] != made["routes"][0]["subdomain"]
    assert (await told(api, "other")).private is True


async def test_a_change_that_the_host_did_not_hear_of_says_so_and_is_told_again(api: Api) -> None:
    await api.create(name="web", ports=[3000])
    api.host.refuse_routes = InternalError("ingress_refused", "no")
    response = await api.http.patch("/v2/sandboxes/web", json={"portsPrivate": True})
    assert (response.status_code, response.json()["error"]["code"]) == (503, "ingress_not_announced")
    api.host.refuse_routes = None
    async with asyncio.timeout(10):
        while not (await told(api, "web")).private:
            await asyncio.sleep(0.05)


async def test_links_are_signed_for_one_name_and_a_time(api: Api) -> None:
    made = await api.create(name="web", ports=[3000])
    subdomain = made["routes"][0]["subdomain"]
    link = (await api.http.post(f"{OWN}/sandboxes/web/links", json={"port": 3000, "ttl_s": 60})).json()
    signed, _, signature = link["token"].rpartition(".")
    assert signed == f"v1.{subdomain}.{link['expiresAt'] // 1000}.0"
    assert link["url"].endswith(f"/?hutch_token={link['token']}")
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(api.host.ingress_key))
    key.verify(bytes.fromhex(signature), f"hutch-ingress:{signed}".encode())
    with pytest.raises(InvalidSignature):
        key.verify(bytes.fromhex(signature), signed.encode())
    assert (await api.http.delete(f"{OWN}/sandboxes/web/links")).status_code == 204
    assert (await told(api, "web")).epoch == 1


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"port": 3001}, 404, "port_not_exposed"),
        ({"port": 3000, "ttl_s": 0}, 400, "bad_request"),
        ({"port": 3000, "ttl_s": 10**9}, 400, "bad_request"),
        ({"port": "3000"}, 400, "bad_request"),
        ({"port": 10**30}, 400, "bad_request"),
        ({}, 400, "bad_request"),
        ([], 400, "bad_request"),
    ],
)
async def test_links_that_can_not_be_meant_are_refused(api: Api, body: Any, status: int, code: str) -> None:
    await api.create(name="web", ports=[3000])
    response = await api.http.post(f"{OWN}/sandboxes/web/links", json=body)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


async def test_ports_and_defaults_of_others_do_not_exist(api: Api) -> None:
    await api.create(name="web", ports=[3000])
    other = await api.tenant("other")
    assert (await other.http.post(f"{OWN}/sandboxes/web/links", json={"port": 3000})).status_code == 404
    assert (await other.http.delete(f"{OWN}/sandboxes/web/links")).status_code == 404
    project = api.services.default_project_id
    for method, body in (("GET", None), ("PUT", {"private": True}), ("DELETE", None)):
        response = await other.http.request(method, f"{OWN}/projects/{project}/ingress", json=body)
        assert response.status_code in (403, 404), method


async def test_a_project_decides_for_those_that_say_nothing(api: Api) -> None:
    owner = await api.tenant("team", "main", TokenRole.OWNER)
    await api.create(owner.http, name="silent", ports=[3000])
    await api.create(owner.http, name="public", ports=[3000], portsPrivate=False)
    before = {known.sandbox_id: known for known in api.host.routes.values() if known.routes}
    path = f"{OWN}/projects/{owner.project_id}/ingress"
    assert (await owner.http.put(path, json={"private": True})).json() == {"private": True}
    assert (await owner.http.get(path)).json() == {"private": True}
    after = [known for known in api.host.routes.values() if known.sandbox_id in before]
    assert sorted(known.private for known in after) == [False, True]
    assert all(known.epoch == before[known.sandbox_id].epoch + 1 for known in after)
    assert (await owner.http.put(path, json={"private": 3})).status_code == 400
    assert (await owner.http.delete(path)).status_code == 204
    assert (await owner.http.get(path)).json() == {"private": False}


async def test_what_can_not_be_resumed_for_a_request_is_said_to_be(api: Api) -> None:
    made = await api.create(name="web", ports=[3000], persistent=False, wakeOnRequest=True)
    await api.http.post(f"/v2/sandboxes/sessions/{made['session']['id']}/stop", json={})
    known = await told(api, "web")
    for sandbox_id in (known.sandbox_id, "sand_nobody"):
        api.host.wakes.put_nowait(sandbox_id)
        assert await asyncio.wait_for(api.host.not_waked.get(), 10) == sandbox_id


@pytest.mark.parametrize("host", ["sb-anything.localhost", "sb-anything.localhost:7070", "A.B.LOCALHOST.", "localhost.localhost"])
async def test_the_api_is_not_at_names_of_sandboxes(api: Api, host: str) -> None:
    response = await api.http.get("/healthz", headers={"host": host})
    assert (response.status_code, response.json()["error"]["code"]) == (421, "misdirected_request")
    assert (await api.http.get("/healthz", headers={"host": "localhost:7070"})).status_code == 200


@pytest.mark.section("15", "18.3")
async def test_a_sandbox_has_up_to_15_ports_above_1023(api: Api) -> None:
    most = [1024, 65535, *range(3000, 3013)]
    made = await api.create(name="web", ports=most)
    assert [route["port"] for route in made["routes"]] == most
    assert len({route["subdomain"] for route in made["routes"]}) == 15
    assert all(re.fullmatch(r"sb-[0-9a-z]{12}", route["subdomain"]) for route in made["routes"])
    for wrong in ([1023], [0], [-1], [65536], list(range(3000, 3016)), [3000.5], ["3000"], 3000):
        for method, path in (("POST", "/v3/sandboxes"), ("PATCH", "/v2/sandboxes/web")):
            response = await api.http.request(method, path, json={"ports": wrong})
            assert (response.status_code, response.json()["error"]["code"]) == (400, "bad_request"), wrong
    assert (await api.http.get("/v2/sandboxes/web")).json()["routes"] == made["routes"]
    changed = (await api.http.patch("/v2/sandboxes/web", json={"ports": [4000, 1024]})).json()["routes"]
    assert [route["port"] for route in changed] == [4000, 1024]
    assert changed[1] == made["routes"][0]
    assert (await api.http.patch("/v2/sandboxes/web", json={"ports": []})).json()["routes"] == []
