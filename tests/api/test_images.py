"""Images of registries through the API: who may have what pulled, on demand too, and whose names are seen by whom."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from hutch.errors import BadRequestError, ConflictError, HutchError
from hutch.storage.snapshots import held_bytes
from tests.api.conftest import Api
from tests.api.fake_host import FakeHost

OPEN = "registry.example.com"
REFERENCE = f"{OPEN}/team/app:1"


@pytest.fixture
def environment() -> dict[str, str]:
    return {"HUTCH_IMAGE__REGISTRIES": OPEN, "HUTCH_IMAGE__PULL_WAIT_S": "1"}


async def pull(http: Any, **body: Any) -> Any:
    return await http.post("/hutch/v1/images", json=body)


def code(response: Any) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


async def test_an_image_is_pulled_listed_used_and_removed(api: Api, host: FakeHost) -> None:
    pulled = await pull(api.http, reference=REFERENCE, name="mine")
    assert pulled.status_code == 201, pulled.text
    assert pulled.json()["name"] == "mine"
    assert pulled.json()["source"] == REFERENCE
    listed = (await api.http.get("/hutch/v1/images")).json()["images"]
    assert [image["name"] for image in listed] == ["vercel/sandbox/universal:latest", "mine", REFERENCE]
    created = await api.create(image=REFERENCE)
    assert created["sandbox"]["image"] == f"{OPEN}/team/app@{pulled.json()['digest']}"
    assert len(host.pulls) == 1
    assert (await api.http.delete(f"/hutch/v1/images/{REFERENCE}")).status_code == 204
    assert code(await api.http.delete(f"/hutch/v1/images/{REFERENCE}")) == (404, "image_not_found")


@pytest.mark.section("4.6")
async def test_a_project_pulls_from_registries_that_the_settings_name(api: Api, host: FakeHost) -> None:
    tenant = await api.tenant("acme")
    assert (await pull(tenant.http, reference=REFERENCE)).status_code == 201
    assert code(await pull(tenant.http, reference="other.example.com/app")) == (403, "registry_not_allowed")
    assert code(await pull(tenant.http, reference=REFERENCE, shared=True)) == (403, "forbidden")
    refused = await tenant.http.post("/v3/sandboxes", json={"image": "other.example.com/app"})
    assert code(refused) == (404, "not_found")
    assert "hutch image pull other.example.com/app" in refused.json()["error"]["message"]
    assert (await pull(api.http, reference="other.example.com/app")).status_code == 201
    assert [one.operator for one in host.pulls] == [False, True]


async def test_names_belong_to_a_project_or_to_everybody(api: Api) -> None:
    one, other = await api.tenant("one"), await api.tenant("two")
    await pull(one.http, reference=REFERENCE)
    await pull(api.http, reference=f"{OPEN}/shared:1", shared=True)
    seen = [[image["name"] for image in (await who.http.get("/hutch/v1/images")).json()["images"][1:]] for who in (one, other)]
    assert seen == [[REFERENCE, f"{OPEN}/shared:1"], [f"{OPEN}/shared:1"]]
    assert code(await one.http.delete(f"/hutch/v1/images/{OPEN}/shared:1")) == (404, "image_not_found")
    assert code(await one.http.delete(f"/hutch/v1/images/{OPEN}/shared:1?shared=true")) == (403, "forbidden")
    assert (await api.http.delete(f"/hutch/v1/images/{OPEN}/shared:1?shared=true")).status_code == 204


async def test_a_create_pulls_what_is_not_there(api: Api, host: FakeHost) -> None:
    tenant = await api.tenant("acme")
    created = await api.create(tenant.http, image=REFERENCE)
    assert created["sandbox"]["image"].startswith(f"{OPEN}/team/app@sha256:")
    assert [(one.reference, one.project_id) for one in host.pulls] == [(REFERENCE, tenant.project_id)]
    await api.create(tenant.http, image=REFERENCE)
    assert len(host.pulls) == 1


@pytest.mark.section("4.6")
async def test_a_pull_that_takes_long_is_answered_with_when_to_come_again(api: Api, host: FakeHost) -> None:
    host.pull_gate.clear()
    waiting = await api.http.post("/v3/sandboxes", json={"image": REFERENCE, "name": "later"})
    assert code(waiting) == (503, "image_not_ready")
    assert waiting.headers["retry-after"] == "10"
    host.pull_gate.set()
    await api.create(image=REFERENCE, name="later")


@pytest.mark.parametrize(
    "error", [BadRequestError("image_invalid", "The image is refused: x."), ConflictError("image_name_taken", "Taken.")]
)
async def test_what_the_host_refuses_is_answered_and_leaves_no_sandbox(api: Api, host: FakeHost, error: HutchError) -> None:
    host.refuse_pull = error
    assert code(await api.http.post("/v3/sandboxes", json={"image": REFERENCE, "name": "x"})) == (error.status, error.code)
    assert code(await pull(api.http, reference=REFERENCE)) == (error.status, error.code)
    assert (await api.http.get("/v2/sandboxes/x")).status_code == 404
    assert host.specs == {}


async def test_a_fork_keeps_the_image_that_its_source_has_whatever_its_name_means_now(api: Api, host: FakeHost) -> None:
    first = await api.create(image=REFERENCE, name="first", persistent=False)
    await pull(api.http, reference=REFERENCE)
    assert (await api.create(image=REFERENCE))["sandbox"]["image"] != first["sandbox"]["image"]
    # The fake host forgets what a name meant before; a real one keeps it as long as it is needed.
    digest = first["sandbox"]["image"].partition("@")[2]
    before = msgspec.structs.replace(host.images[api.own.project_id, REFERENCE], digest=digest)
    host.images["", f"{OPEN}/team/app:old"] = before
    fork = (await api.http.post("/v2/sandboxes/first/fork", json={})).json()
    assert fork["sandbox"]["image"] == first["sandbox"]["image"]


async def test_a_login_is_sent_to_its_registry_only_and_never_shown(api: Api, host: FakeHost) -> None:
    stored = await api.http.put(f"/hutch/v1/registries/{OPEN}", json={"username": "joe", "password": "s3cret word"})
    assert stored.status_code == 204
    assert [one["name"] for one in (await api.http.get("/hutch/v1/registries")).json()["registries"]] == [OPEN]
    assert "s3cret" not in (await api.http.get("/hutch/v1/registries")).text
    assert (await api.http.get("/hutch/v1/credentials")).json() == {"credentials": []}
    await pull(api.http, reference=REFERENCE)
    await pull(api.http, reference="other.example.com/app")
    assert [(one.username, one.password) for one in host.pulls] == [("joe", "s3cret word"), (None, None)]
    other = await api.tenant("other")
    await pull(other.http, reference=REFERENCE)
    assert host.pulls[-1].password is None
    assert (await api.http.delete(f"/hutch/v1/registries/{OPEN}")).status_code == 204
    assert code(await api.http.delete(f"/hutch/v1/registries/{OPEN}")) == (404, "not_found")


async def test_no_rule_of_a_policy_names_a_login(api: Api) -> None:
    await api.http.put(f"/hutch/v1/registries/{OPEN}", json={"username": "joe", "password": "secret"})
    rule = [{"transform": [{"headers": {"authorization": {"credential": f"registry:{OPEN}"}}}]}]
    refused = await api.http.post("/v3/sandboxes", json={"networkPolicy": {"allow": {"evil.example.com": rule}}})
    assert code(refused) == (400, "invalid_network_policy")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, "bad_request"),
        ({"reference": ""}, "bad_request"),
        ({"reference": 7}, "bad_request"),
        ({"reference": "x" * 256}, "bad_request"),
        ({"reference": "busybox"}, "image_reference_invalid"),
        ({"reference": f"{OPEN}/UPPER"}, "image_reference_invalid"),
        ({"reference": f"{OPEN}/a/../b"}, "image_reference_invalid"),
        ({"reference": f"{OPEN}/a@sha256:xyz"}, "image_reference_invalid"),
        ({"reference": f"{OPEN}/a:b:c"}, "image_reference_invalid"),
        ({"reference": f"user@{OPEN}/a"}, "image_reference_invalid"),
        ({"reference": f"{OPEN}/a?b"}, "image_reference_invalid"),
        ({"reference": REFERENCE, "name": ""}, "bad_request"),
        ({"reference": REFERENCE, "shared": "yes"}, "bad_request"),
    ],
)
async def test_a_pull_that_cannot_be_meant_is_refused(api: Api, host: FakeHost, body: dict[str, Any], expected: str) -> None:
    assert code(await pull(api.http, **body)) == (400, expected)
    assert host.pulls == []


@pytest.mark.parametrize(
    "body",
    [{}, {"username": "a:b", "password": "c"}, {"username": "a", "password": ""}, {"username": 1, "password": "x"}],
)
async def test_a_login_that_cannot_be_meant_is_refused(api: Api, body: dict[str, Any]) -> None:
    assert code(await api.http.put(f"/hutch/v1/registries/{OPEN}", json=body)) == (400, "bad_request")
    assert code(await api.http.put("/hutch/v1/registries/UPPER", json={"username": "a", "password": "b"})) == (400, "bad_request")


async def test_the_vendors_registry_has_this_servers_own_images(api: Api, host: FakeHost) -> None:
    unknown = await api.http.post("/v3/sandboxes", json={"image": "vcr.vercel.com/team/app:1"})
    assert code(unknown) == (404, "not_found")
    assert host.pulls == []
    known = await api.create(image="vercel/sandbox/universal")
    assert known["sandbox"]["image"].startswith("vercel/sandbox/universal@")


async def test_nobody_pulls_without_a_token(api: Api) -> None:
    assert (await pull(api.client(""), reference=REFERENCE)).status_code == 401
    assert (await api.client("").get("/hutch/v1/registries")).status_code == 401


async def test_concurrent_creates_of_one_image_all_succeed(api: Api, host: FakeHost) -> None:
    created = await asyncio.gather(*(api.create(image=REFERENCE) for _ in range(5)))
    assert len({one["sandbox"]["name"] for one in created}) == 5
    assert len(set(host.pulls)) == 1


async def snapshot(api: Api, http: Any = None) -> str:
    """The id of a new snapshot."""
    made = await api.create(http)
    taken = await (http or api.http).post(f"/v2/sandboxes/sessions/{made['session']['id']}/snapshot", json={})
    return str(taken.json()["snapshot"]["id"])


async def build(http: Any, **body: Any) -> Any:
    return await http.post("/hutch/v1/images/from-snapshot", json=body)


async def test_an_image_is_made_of_a_snapshot(api: Api, host: FakeHost) -> None:
    config = {
        "env": {"A": "b"},
        "cwd": "/app",
        "user": {"name": "joe", "uid": 1001, "gid": 1002, "groups": [7], "home": "/home/joe"},
        "labels": {"x": "y"},
        "cmd": ["serve"],
        "entrypoint": [],
    }
    snapshot_id = await snapshot(api)
    made = await build(api.http, snapshotId=snapshot_id, name="app", config=config)
    assert made.status_code == 201, made.text
    assert (made.json()["name"], made.json()["cwd"], made.json()["cmd"]) == ("app:latest", "/app", ["serve"])
    [asked] = host.builds
    assert (asked.snapshot_id, asked.project_id, asked.env, asked.entrypoint) == (snapshot_id, api.own.project_id, {"A": "b"}, [])
    assert asked.user is not None
    assert (asked.user.uid, asked.user.groups) == (1001, [7])
    listed = (await api.http.get("/hutch/v1/images")).json()["images"]
    assert [one["name"] for one in listed[1:]] == ["app:latest"]
    # Only a name is needed; the rest is as in the image below.
    assert (await build(api.http, snapshotId=snapshot_id, name="plain")).status_code == 201
    assert (host.builds[1].user, host.builds[1].cwd, host.builds[1].cmd) == (None, None, None)


async def test_an_image_is_made_of_ones_own_snapshot_only(api: Api, host: FakeHost) -> None:
    tenant = await api.tenant("acme")
    snapshot_id = await snapshot(api)
    assert code(await build(tenant.http, snapshotId=snapshot_id, name="app")) == (404, "not_found")
    own = await snapshot(api, tenant.http)
    assert code(await build(tenant.http, snapshotId=own, name="app", shared=True)) == (403, "forbidden")
    assert (await build(tenant.http, snapshotId=own, name="app")).status_code == 201
    assert (await build(api.http, snapshotId=snapshot_id, name="app", shared=True)).json()["shared"] is True
    assert [one.project_id for one in host.builds] == [tenant.project_id, ""]
    await api.http.delete(f"/v2/sandboxes/snapshots/{snapshot_id}")
    assert code(await build(api.http, snapshotId=snapshot_id, name="app")) == (410, "snapshot_not_found")
    assert (await build(api.client(""), snapshotId=own, name="app")).status_code == 401


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"snapshotId": "x"},
        {"snapshotId": "x", "name": ""},
        {"snapshotId": "x", "name": "a\0"},
        {"snapshotId": "x", "name": "a", "config": {"cwd": "relative"}},
        {"snapshotId": "x", "name": "a", "config": {"cwd": "/a/../b"}},
        {"snapshotId": "x", "name": "a", "config": {"env": {"A=B": "c"}}},
        {"snapshotId": "x", "name": "a", "config": {"env": {"A": "c" * 20_000}}},
        {"snapshotId": "x", "name": "a", "config": {"cmd": "sh"}},
        {"snapshotId": "x", "name": "a", "config": {"user": "joe"}},
        {"snapshotId": "x", "name": "a", "config": {"user": {"name": "joe", "uid": -1, "gid": 0}}},
        {"snapshotId": "x", "name": "a", "config": {"user": {"name": "joe", "uid": 2**32 - 1, "gid": 0}}},
        {"snapshotId": "x", "name": "a", "config": {"user": {"name": "joe", "uid": 1, "gid": 1, "home": "../x"}}},
    ],
)
async def test_an_image_that_cannot_be_meant_is_refused(api: Api, host: FakeHost, body: dict[str, Any]) -> None:
    assert code(await build(api.http, **body)) == (400, "bad_request")
    assert host.builds == []


async def test_images_that_a_project_built_count_with_its_snapshots(api: Api, host: FakeHost) -> None:
    snapshot_id = await snapshot(api)
    limits = api.services.settings.limits
    async with api.services.database.read() as connection:
        held = await held_bytes(connection, api.own.project_id)
    # The fake host's images have two layers of 4096 bytes, the same in each.
    object.__setattr__(limits, "snapshot_bytes_per_project", held + 8192)
    assert (await build(api.http, snapshotId=snapshot_id, name="one")).status_code == 201
    assert code(await build(api.http, snapshotId=snapshot_id, name="two")) == (402, "quota_exceeded")
    await api.http.delete("/hutch/v1/images/one:latest")
    assert (await build(api.http, snapshotId=snapshot_id, name="two")).status_code == 201
