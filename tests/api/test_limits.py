"""What is allowed at most and at least, and what holds when nothing is said."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from tests.api.conftest import DAY_MS, Api
from tests.api.test_snapshots import refused

pytestmark = pytest.mark.section("18.3")

BAD = (400, "bad_request")


async def test_processors_and_memory_have_bounds(api: Api) -> None:
    for vcpus in (1, 2, 4, 8):
        for resources in ({"vcpus": vcpus}, {"vcpus": vcpus, "memory": vcpus * 2048}):
            made = await api.create(resources=resources)
            for shown in (made["sandbox"], made["session"]):
                assert (shown["vcpus"], shown["memory"]) == (vcpus, vcpus * 2048)
    most = api.services.settings.sandbox.max_vcpus
    for wrong in (
        {"vcpus": 0},
        {"vcpus": 3},
        {"vcpus": -2},
        {"vcpus": 2.5},
        {"vcpus": 2, "memory": 2048},
        {"vcpus": most + 2},
        {},
    ):
        assert await refused(api, "POST", "/v3/sandboxes", json={"resources": wrong}) == BAD, wrong


async def test_what_is_not_said_has_the_documented_default(api: Api) -> None:
    made = await api.create()
    sandbox = made["sandbox"]
    assert (sandbox["timeout"], sandbox["vcpus"], sandbox["memory"], sandbox["region"]) == (300_000, 2, 4096, "iad1")
    assert api.services.settings.sandbox.disk_bytes == 32 * 1024**3
    assert api.host.specs[made["session"]["id"]].disk_bytes is None, "the host's own"


async def test_texts_have_bounds(api: Api) -> None:
    tags = {f"k{number}": "v" * 256 for number in range(5)}
    made = await api.create(name="n" * 128, tags=tags)
    assert (made["sandbox"]["name"], made["sandbox"]["tags"]) == ("n" * 128, tags)
    for wrong in (
        {"name": "n" * 129},
        {"name": ""},
        {"name": "a.b"},
        {"tags": tags | {"one": "more"}},
        {"tags": {"k": "v" * 257}},
        {"tags": {"k": 1}},
        {"image": "i" * 256},
        {"image": ""},
    ):
        assert await refused(api, "POST", "/v3/sandboxes", json=wrong) == BAD, wrong
    # As long as it may be, and unknown.
    assert (await refused(api, "POST", "/v3/sandboxes", json={"image": "i" * 255}))[0] == 404


async def test_numbers_have_bounds(api: Api) -> None:
    session_id = (await api.create(name="one", timeout=1000, snapshotExpiration=DAY_MS))["session"]["id"]
    for good in ({"keepLastSnapshots": {"count": 1}}, {"keepLastSnapshots": {"count": 10}}, {"snapshotExpiration": 0}):
        assert (await api.http.patch("/v2/sandboxes/one", json=good)).status_code == 200, good
    for wrong in (
        {"keepLastSnapshots": {"count": 0}},
        {"keepLastSnapshots": {"count": 11}},
        {"keepLastSnapshots": {"count": 2, "expiration": 1}},
        {"snapshotExpiration": 1},
        {"snapshotExpiration": DAY_MS - 1},
        {"snapshotExpiration": -1},
        {"timeout": 999},
    ):
        assert await refused(api, "PATCH", "/v2/sandboxes/one", json=wrong) == BAD, wrong
    path = f"/v2/sandboxes/sessions/{session_id}"
    for suffix, body in (
        ("/snapshot", {"expiration": DAY_MS - 1}),
        ("/extend-timeout", {"duration": 999}),
        ("/cmd", {"command": "true", "timeout": 99}),
    ):
        assert await refused(api, "POST", path + suffix, json=body) == BAD, suffix
    started = await api.http.post(f"{path}/cmd", json={"command": "wait", "timeout": 100})
    assert started.status_code == 200


async def test_standard_input_has_a_bound(api: Api) -> None:
    session_id = (await api.create())["session"]["id"]
    path = f"/v2/sandboxes/sessions/{session_id}/cmd"
    command = (await api.http.post(path, json={"command": "cat", "attachStdin": True})).json()["command"]["id"]

    async def send(size: int) -> tuple[int, Any]:
        data = base64.b64encode(b"x" * size).decode()
        response = await api.http.post(f"{path}/{command}/stdin", json={"data": data, "offset": 0})
        return response.status_code, response.json()

    # The Python SDK's own pieces.
    assert await send(512 * 1024) == (200, {"bytesWritten": 512 * 1024})
    assert (await send(2 * 1024 * 1024))[0] == 413
