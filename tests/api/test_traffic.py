"""What passed for a sandbox, as the host says it."""

from __future__ import annotations

import pytest

from hutch.host.protocol import Tally, Traffic
from tests.api.conftest import Api

PATH = "/api/hutch/v1/sandboxes/one/traffic"
RULE = "00112233445566ff"
HOSTILE = ('"}], "rules": [', "a\nb\x1b[31m.test", "\u202e.test", "x" * 253, "<script>", "")


def traffic(**tallies: Tally) -> Traffic:
    return Traffic(up_bytes=30, down_bytes=4, flows=2, egress_bytes=50, ingress_bytes=9, tallies=tallies)


async def test_bytes_come_by_name_and_by_rule_the_most_first(api: Api) -> None:
    created = await api.create(name="one")
    api.host.traffic = traffic(
        **{
            "a.test": Tally(connections=1, up_bytes=10),
            "b.test": Tally(requests=3, injected=2, up_bytes=15, down_bytes=4),
            "*": Tally(denied=7, up_bytes=5),
            f"rule:{RULE}": Tally(requests=3, up_bytes=15, down_bytes=4),
            "rule:*": Tally(requests=1),
        }
    )
    body = (await api.http.get(PATH)).json()
    assert body["sessionId"] == created["session"]["id"]
    assert body["payload"] == {"up": 30, "down": 4}
    assert body["interface"] == {"egress": 50, "ingress": 9}
    assert body["flows"] == 2
    assert [name["name"] for name in body["names"]] == ["b.test", "a.test", "*"]
    assert body["names"][0] == {
        "name": "b.test",
        "connections": 0,
        "requests": 3,
        "denied": 0,
        "injected": 2,
        "up": 15,
        "down": 4,
    }
    assert [rule["rule"] for rule in body["rules"]] == [RULE, "*"]


async def test_a_stopped_sandbox_has_its_final_traffic(api: Api) -> None:
    await api.create(name="one")
    api.host.traffic = traffic(**{"a.test": Tally(up_bytes=30)})
    stopped = await api.http.post(f"/v2/sandboxes/sessions/{(await api.http.get(PATH)).json()['sessionId']}/stop")
    assert stopped.status_code == 200
    body = (await api.http.get(PATH)).json()
    assert body["names"][0]["up"] == 30


@pytest.mark.parametrize("name", HOSTILE)
async def test_names_that_a_guest_made_up_are_only_names(api: Api, name: str) -> None:
    await api.create(name="one")
    api.host.traffic = traffic(**{name: Tally(denied=1)})
    answer = await api.http.get(PATH)
    assert answer.headers["content-type"].startswith("application/json")
    assert [entry["name"] for entry in answer.json()["names"]] == [name]
    assert answer.json()["rules"] == []


@pytest.mark.parametrize("name", ["none", "..", "%2e%2e%2fone", "one%00", "o" * 5000, "%ff"])
async def test_no_such_sandbox(api: Api, name: str) -> None:
    await api.create(name="one")
    answer = await api.http.get(f"/api/hutch/v1/sandboxes/{name}/traffic")
    assert answer.status_code in (400, 404), answer.text
    assert "names" not in answer.json()


async def test_another_team_s_sandbox_is_not_found(api: Api) -> None:
    await api.create(name="one")
    stranger = await api.tenant("strangers")
    assert (await stranger.http.get(PATH)).status_code == 404
    assert (await stranger.http.get(PATH, params={"projectId": api.own.project_id})).status_code in (403, 404)
    assert (await api.client("").get(PATH)).status_code in (401, 403)


@pytest.mark.parametrize("query", [{"projectId": "../x"}, {"projectId": "p" * 5000}, {"projectId": "none\0"}])
async def test_a_project_that_is_none(api: Api, query: dict[str, str]) -> None:
    await api.create(name="one")
    assert (await api.http.get(PATH, params=query)).status_code in (400, 403, 404)


async def test_what_else_is_asked_for_is_not_looked_at(api: Api) -> None:
    await api.create(name="one")
    answer = await api.http.get(PATH, params={"sessionId": "sbx_other", "after": "-1", "limit": "x"})
    assert answer.json() == (await api.http.get(PATH)).json()


async def test_a_session_that_the_host_has_forgotten_is_404(api: Api) -> None:
    created = await api.create(name="one")
    del api.host.sessions[created["session"]["id"]]
    answer = await api.http.get(PATH)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "session_not_found")


async def test_a_host_that_is_away_is_503(api: Api) -> None:
    await api.create(name="one")
    await api.host.stop()
    assert (await api.http.get(PATH)).status_code == 503
    await api.host.start()


async def test_only_get(api: Api) -> None:
    await api.create(name="one")
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert (await api.http.request(method, PATH)).status_code in (404, 405)
