"""Stored credentials: set, list, delete, and how the host hears of them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from hutch.api.host_events import reconcile
from hutch.control.permissions import TokenRole
from hutch.control.records import Scope
from hutch.errors import BadRequestError, UnavailableError
from hutch.host.protocol import CredentialChange
from hutch.storage import credentials as rows
from tests.api.conftest import Api

PATH = "/hutch/v1/credentials"
SECRET = "CANARY-77e0b1c5d2"
NAMING = {"allow": {"api.test": [{"transform": [{"headers": {"authorization": {"credential": "KEY", "format": "Bearer {}"}}}]}]}}


async def put(api: Api, name: str, value: Any, http: Any = None, **params: str) -> int:
    answer = await (http or api.http).put(f"{PATH}/{name}", json={"value": value}, params=params)
    if answer.status_code == 204:
        assert answer.content == b""
    else:
        assert answer.json()["error"]["message"].endswith(".")
    return int(answer.status_code)


async def names(api: Api, http: Any = None) -> list[str]:
    return [item["name"] for item in (await (http or api.http).get(PATH)).json()["credentials"]]


async def test_a_credential_is_set_listed_without_its_value_replaced_and_deleted(api: Api) -> None:
    assert await put(api, "KEY", SECRET) == 204
    assert await put(api, "a-b_C", "x") == 204
    listed = await api.http.get(f"/api{PATH}")
    first = listed.json()["credentials"]
    assert [set(item) for item in first] == [{"name", "created_at", "updated_at"}] * 2
    assert [item["name"] for item in first] == ["KEY", "a-b_C"]
    assert SECRET not in listed.text
    assert await put(api, "KEY", SECRET + "2") == 204
    second = (await api.http.get(PATH)).json()["credentials"]
    assert second[0]["created_at"] == first[0]["created_at"]
    assert second[0]["updated_at"] >= first[0]["updated_at"]
    assert (await api.http.delete(f"{PATH}/KEY")).status_code == 204
    gone = await api.http.delete(f"{PATH}/KEY")
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "not_found")
    assert await names(api) == ["a-b_C"]
    control = api.services.settings.control_dir
    assert not any(SECRET.encode() in file.read_bytes() for file in control.iterdir() if file.is_file())


@pytest.mark.parametrize("name", ["a.b", "a b", "%00", "a" * 65, "größe", "..", "%2e%2e", "a%0a", "a%2fb", "x" * 5000])
async def test_strange_names_are_refused(api: Api, name: str) -> None:
    assert await put(api, name, "value") in (400, 404, 405, 307)
    assert (await api.http.delete(f"{PATH}/{name}")).status_code in (404, 405)
    assert await names(api) == []


@pytest.mark.parametrize(
    "value",
    ["", " ", "a\r\nb", "a\nb", "a\0b", "a\tb", "größe", "a\x7f", " a", "a ", "x" * 8193, "\ud800", None, 5, ["a"], {}, True],
)
async def test_strange_values_are_refused_and_not_repeated(api: Api, value: Any) -> None:
    answer = await api.http.put(f"{PATH}/KEY", content=json.dumps({"value": value}))
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "bad_request")
    assert "xxxx" not in error["message"]
    assert await names(api) == []
    assert api.host.changes == []


@pytest.mark.parametrize("value", ["x", "user:pass word", "x" * 8192, "!~", '"quoted"'])
async def test_every_visible_character_is_taken(api: Api, value: str) -> None:
    assert await put(api, "KEY", value) == 204
    assert api.host.changes[-1].value == value


@pytest.mark.parametrize("raw", [b"", b"{}", b"{", b"[]", b'"x"', b'{"value": "a"', b"\xff"])
async def test_a_body_without_a_value_is_400(api: Api, raw: bytes) -> None:
    assert (await api.http.put(f"{PATH}/KEY", content=raw)).status_code == 400


async def test_credentials_belong_to_a_project(api: Api) -> None:
    mine, theirs = await api.tenant("mine"), await api.tenant("theirs")
    second = await api.tenant("mine", "second")
    assert await put(api, "KEY", "mine", mine.http) == 204
    assert await names(api, theirs.http) == await names(api, second.http) == await names(api) == []
    assert (await theirs.http.delete(f"{PATH}/KEY")).status_code == 404
    for http in (theirs.http, second.http):
        assert await put(api, "KEY", "stolen", http, projectId=mine.project_id) == 403
        assert (await http.get(PATH, params={"projectId": mine.project_id})).status_code == 403
    assert await names(api, mine.http) == ["KEY"]
    assert (await api.client("").get(PATH)).status_code == 401
    # A token for a whole team names the project.
    owner = await api.tenant("mine", None, TokenRole.OWNER)
    assert (await owner.http.get(PATH)).status_code == 400
    answer = await owner.http.get(PATH, params={"projectId": "main"})
    assert [item["name"] for item in answer.json()["credentials"]] == ["KEY"]


async def test_a_project_keeps_a_bounded_number(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hutch.storage.credentials.MAX_PER_PROJECT", 2)
    assert [await put(api, name, "x") for name in ("A", "B", "C")] == [204, 204, 400]
    assert await put(api, "A", "y") == 204
    assert (await api.http.delete(f"{PATH}/B")).status_code == 204
    assert await put(api, "C", "x") == 204


# -- the host ----------------------------------------------------------------------------------------


async def test_a_session_starts_with_the_values_that_its_policy_names(api: Api) -> None:
    await put(api, "KEY", SECRET)
    await put(api, "OTHER", "unused")
    session_id = (await api.create(name="one", networkPolicy=NAMING))["session"]["id"]
    assert api.host.specs[session_id].network.credentials == {"KEY": SECRET}
    for place in ("/v2/sandboxes/one", "/v2/sandboxes"):
        assert SECRET not in (await api.http.get(place)).text


async def test_a_credential_of_another_project_is_not_used(api: Api) -> None:
    await put(api, "KEY", SECRET)
    other = await api.tenant("other")
    session_id = (await api.create(other.http, networkPolicy=NAMING))["session"]["id"]
    assert api.host.specs[session_id].network.credentials == {}


async def test_live_sessions_get_new_values_and_lose_deleted_ones(api: Api) -> None:
    session_id = (await api.create(networkPolicy=NAMING))["session"]["id"]
    assert api.host.networks[session_id].credentials == {}
    for value in ("one", "two"):
        await put(api, "KEY", value)
        assert api.host.networks[session_id].credentials == {"KEY": value}
    await api.http.delete(f"{PATH}/KEY")
    assert api.host.networks[session_id].credentials == {}
    project = api.own.project_id
    assert api.host.changes == [CredentialChange(project_id=project, name="KEY", value=value) for value in ("one", "two", None)]


async def test_an_update_of_the_policy_brings_the_values_that_it_names(api: Api) -> None:
    await put(api, "KEY", SECRET)
    session_id = (await api.create())["session"]["id"]
    answer = await api.http.post(f"/v2/sandboxes/sessions/{session_id}/network-policy", json=NAMING)
    assert answer.status_code == 200
    assert api.host.networks[session_id].credentials == {"KEY": SECRET}
    assert SECRET not in answer.text


async def test_a_value_that_changes_while_a_session_starts_reaches_it(api: Api) -> None:
    await put(api, "KEY", "old")
    api.host.create_gate.clear()
    creating = asyncio.create_task(api.create(networkPolicy=NAMING))
    await api.host.creating.wait()
    # The host is told before it has the session, and so in vain.
    await put(api, "KEY", "new")
    api.host.create_gate.set()
    session_id = (await creating)["session"]["id"]
    assert api.host.specs[session_id].network.credentials == {"KEY": "old"}
    assert api.host.networks[session_id].credentials == {"KEY": "new"}


async def test_of_concurrent_changes_the_host_has_the_one_that_is_kept(api: Api) -> None:
    session_id = (await api.create(networkPolicy=NAMING))["session"]["id"]
    assert await asyncio.gather(*(put(api, "KEY", f"value-{number}") for number in range(12))) == [204] * 12
    scope = Scope(api.own.team_id, api.own.project_id)
    async with api.services.database.read() as connection:
        kept = await rows.values(connection, scope, ["KEY"], api.services.sealer)
    assert api.host.networks[session_id].credentials == kept


async def test_a_change_that_the_host_does_not_hear_is_kept_told_and_sent_later(api: Api) -> None:
    session_id = (await api.create(networkPolicy=NAMING))["session"]["id"]
    await put(api, "KEY", "old")
    await api.host.stop()
    answer = await api.http.put(f"{PATH}/KEY", json={"value": SECRET})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (503, "credential_not_announced")
    assert SECRET not in answer.text
    assert "retry-after" in answer.headers
    await api.host.start()
    async with asyncio.timeout(10):
        while api.host.networks[session_id].credentials != {"KEY": SECRET}:
            await asyncio.sleep(0.01)


async def test_a_host_that_refuses_a_credential_does_not_stop_its_events(api: Api) -> None:
    session_id = (await api.create(name="one", networkPolicy=NAMING))["session"]["id"]
    api.host.refuse_change = BadRequestError("bad_request", "No such thing.")
    await reconcile(api.services)
    api.host.refuse_change = UnavailableError("gateway_unavailable", "The gateway does not answer.")
    await reconcile(api.services)
    assert await put(api, "KEY", "x") == 503
    await api.host.end(session_id)
    async with asyncio.timeout(10):
        while (await api.http.get("/v2/sandboxes/one")).json()["sandbox"]["status"] != "stopped":
            await asyncio.sleep(0.01)
