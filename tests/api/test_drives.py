"""Drives: named, listed, mounted by one who writes and many who read, copied, deleted; and what goes wrong on the way."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from hutch.api import drives, host_events
from hutch.errors import UnavailableError
from hutch.host.protocol import DriveMode
from hutch.storage import drives as rows
from tests.api.conftest import Api
from tests.api.test_snapshots import get, refused, stop

pytestmark = pytest.mark.section("12")

GIB = 1024**3
BASE = "/v2/sandboxes/drives"


async def drive(api: Api, name: str, http: httpx.AsyncClient | None = None, **body: Any) -> dict[str, Any]:
    """A new drive."""
    response = await (http or api.http).post(f"{BASE}/{name}", json=body)
    assert response.status_code == 201, response.text
    return dict(response.json()["drive"])


async def shown(api: Api, name: str) -> dict[str, Any]:
    response = await api.http.get(f"{BASE}/{name}")
    assert response.status_code == 200, response.text
    return dict(response.json()["drive"])


def mounts(**drives: str) -> dict[str, dict[str, str]]:
    """`data="d"` → read-write at /data; `data="d:snapshot"` → as it is now."""
    split = {path: value.partition(":") for path, value in drives.items()}
    return {f"/{path}": {"drive": name, "mode": mode or "read-write"} for path, (name, _, mode) in split.items()}


# -- endpoints ---------------------------------------------------------------------------------------


@pytest.mark.section("4.5", "4.6", "5.3")
async def test_one_is_created_once_and_then_got(api: Api) -> None:
    first = await drive(api, "cache", maxSizeBytes=10 * GIB, region="iad1")
    project = api.own.project_id
    assert first.items() >= {"name": "cache", "projectId": project, "region": "iad1", "maxSizeBytes": 10 * GIB}.items()
    assert first["createdAt"] == first["updatedAt"]
    assert api.host.drives[first["id"]].size_bytes == 10 * GIB
    for body in ({}, {"maxSizeBytes": 10 * GIB}, {"region": "iad1"}, {"projectId": project}):
        again = await api.http.post(f"{BASE}/cache", json=body)
        assert (again.status_code, again.json()["drive"]["id"]) == (200, first["id"])
    for body in ({"maxSizeBytes": GIB}, {"region": "sfo1"}):
        assert await refused(api, "POST", f"{BASE}/cache", json=body) == (409, "conflict")
    by_name, by_id = await shown(api, "cache"), await shown(api, first["id"])
    assert by_name == by_id == first | {"usedBytes": len(first["id"])}


async def test_what_is_not_said_is_1_tib_in_the_default_region(api: Api) -> None:
    made = await drive(api, "a" * 64)
    assert (made["maxSizeBytes"], made["region"]) == (1024**4, "iad1")
    assert not made.keys() & {"currentSessionId", "currentSandboxName", "parentDriveId", "rootDriveId"}


async def test_a_drive_without_its_host_is_still_shown(api: Api) -> None:
    made = await drive(api, "cache")
    api.host.refuse_drive = UnavailableError("host_unreachable", "gone")
    assert await shown(api, "cache") == made


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("a" * 65, {}),
        ("with%20space", {}),
        ("a.b", {}),
        ("d%0A", {}),
        ("d%00", {}),
        ("..%2fx", {}),
        ("caf%C3%A9", {}),
        ("d", {"maxSizeBytes": 0}),
        ("d", {"maxSizeBytes": -1}),
        ("d", {"maxSizeBytes": 16 * 1024**4 + 1}),
        ("d", {"maxSizeBytes": 2**70}),
        ("d", {"maxSizeBytes": "1"}),
        ("d", {"maxSizeBytes": 1.5}),
        ("d", {"region": "NOWHERE"}),
        ("d", {"region": ""}),
        ("d", []),
    ],
)
async def test_what_can_not_be_a_drive_is_400_and_makes_none(api: Api, name: str, body: object) -> None:
    status, code = await refused(api, "POST", f"{BASE}/{name}", json=body)
    assert (status, code) in {(400, "bad_request"), (404, "not_found")}
    assert status == 400 or "%2f" in name
    assert api.host.drives == {}
    assert (await api.http.get(BASE)).json()["drives"] == []


@pytest.mark.parametrize("name", ["none", "a" * 200, "drive_none", "d%00", "%2e%2e", "d%0A", "%F0%9F%92%BE"])
async def test_what_there_is_not_is_404(api: Api, name: str) -> None:
    for method, path, body in (("GET", "", None), ("DELETE", "", None), ("POST", "/fork", {"name": "new"})):
        assert (await refused(api, method, f"{BASE}/{name}{path}", json=body))[0] == 404


async def test_the_list_is_sorted_filtered_and_paged(api: Api) -> None:
    for name in ("beta", "alpha-1", "alpha-2", "Zeta", "alpha_3"):
        await drive(api, name)

    async def names(**query: str) -> list[str]:
        found, cursor = [], None
        while True:
            page = (await api.http.get(BASE, params={**query, **({"cursor": cursor} if cursor else {})})).json()
            found += [one["name"] for one in page["drives"]]
            assert page["pagination"]["count"] == len(page["drives"])
            cursor = page["pagination"]["next"]
            if cursor is None:
                return found

    newest = ["alpha_3", "Zeta", "alpha-2", "alpha-1", "beta"]
    assert await names() == await names(limit="2") == newest
    assert await names(sortOrder="asc", sortBy="updatedAt", limit="1") == newest[::-1]
    assert await names(sortBy="name", sortOrder="asc", limit="2") == sorted(newest)
    assert await names(sortBy="name", namePrefix="alpha", limit="1") == ["alpha_3", "alpha-2", "alpha-1"]
    next_page = (await api.http.get(BASE, params={"limit": "1"})).json()["pagination"]["next"]
    for query in (
        {"sortBy": "size"},
        {"sortOrder": "up"},
        {"limit": "0"},
        {"limit": "x"},
        {"namePrefix": "a"},
        {"sortBy": "name", "namePrefix": "a%"},
        {"cursor": "x"},
        {"cursor": next_page, "sortOrder": "asc"},
        {"cursor": next_page, "sortBy": "name"},
    ):
        assert await refused(api, "GET", BASE, params=query) == (400, "bad_request"), query


async def test_others_have_drives_of_their_own(api: Api) -> None:
    mine = await drive(api, "cache")
    other = await api.tenant("other")
    for path in ("cache", mine["id"]):
        assert (await other.http.get(f"{BASE}/{path}")).status_code == 404
        assert (await other.http.delete(f"{BASE}/{path}")).status_code == 404
        assert (await other.http.post(f"{BASE}/{path}/fork", json={"name": "x"})).status_code == 404
    assert (await other.http.get(BASE)).json()["drives"] == []
    assert (await other.http.get(BASE, params={"projectId": api.own.project_id})).status_code == 403
    body = {"projectId": api.own.project_id}
    assert (await other.http.post(f"{BASE}/cache", json=body)).status_code == 403
    for name in ("cache", mine["id"]):
        refusal = await other.http.post("/v3/sandboxes", json={"mounts": mounts(data=name)})
        assert refusal.status_code == 404
    theirs = await drive(api, "cache", other.http)
    assert (theirs["projectId"], theirs["id"] == mine["id"]) == (other.project_id, False)
    for method, path in (("GET", ""), ("GET", "/cache"), ("POST", "/cache"), ("DELETE", "/cache"), ("POST", "/cache/fork")):
        assert (await api.client("").request(method, BASE + path)).status_code == 401


@pytest.mark.section("5.3")
async def test_a_copy_says_what_it_came_from(api: Api) -> None:
    one = await drive(api, "one", maxSizeBytes=GIB)
    assert await refused(api, "POST", f"{BASE}/one/fork", json={"name": "two"}) == (409, "drive_not_initialized")
    await api.create(mounts=mounts(data="one"))
    response = await api.http.post(f"{BASE}/one/fork", json={"name": "two"})
    two = response.json()["drive"]
    assert response.status_code == 200
    assert two.items() >= {"name": "two", "maxSizeBytes": GIB, "parentDriveId": one["id"], "rootDriveId": one["id"]}.items()
    assert "currentSessionId" not in two
    three = (await api.http.post(f"{BASE}/two/fork", json={"name": "three"})).json()["drive"]
    assert (three["parentDriveId"], three["rootDriveId"]) == (two["id"], one["id"])
    assert await refused(api, "POST", f"{BASE}/one/fork", json={"name": "two"}) == (409, "conflict")
    for body in ({}, {"name": ""}, {"name": "a/b"}, {"name": "a" * 65}, {"name": 1}):
        assert await refused(api, "POST", f"{BASE}/one/fork", json=body) == (400, "bad_request")


async def test_a_deleted_one_is_gone_and_its_name_is_free(api: Api) -> None:
    first = await drive(api, "cache", maxSizeBytes=GIB)
    deleted = await api.http.delete(f"{BASE}/cache")
    assert (deleted.status_code, deleted.json()) == (200, {"drive": first})
    assert api.host.drives == {}
    assert await refused(api, "GET", f"{BASE}/cache") == (404, "not_found")
    assert await refused(api, "DELETE", f"{BASE}/cache") == (404, "not_found")
    assert (await drive(api, "cache", maxSizeBytes=2 * GIB))["id"] != first["id"]


# -- mounts ------------------------------------------------------------------------------------------


@pytest.mark.section("12", "18.3")
async def test_as_much_as_is_allowed_is_taken(api: Api) -> None:
    most = await drive(api, "x" * 64, maxSizeBytes=16 * 1024**4)
    assert most["maxSizeBytes"] == 16 * 1024**4
    for name in ("b", "c", "d"):
        await drive(api, name)
    long = "/" + "/".join(["a" * 84] * 3)
    assert len(long) == 255
    given = {long + "a": most["name"], "/b": "b", "/c": "c", "/d": "d"}
    made = await api.create(mounts={path: {"drive": name, "mode": "read-write"} for path, name in given.items()})
    assert {path: mount["drive"] for path, mount in made["sandbox"]["mounts"].items()} == given
    five = {f"/{number}": {"drive": "b"} for number in range(5)}
    assert await refused(api, "POST", "/v3/sandboxes", json={"mounts": five}) == (400, "bad_request")


async def test_many_read_what_one_writes(api: Api) -> None:
    await drive(api, "data")
    writer = (await api.create(mounts=mounts(data="data")))["session"]["id"]
    for _ in range(3):
        reader = await api.create(mounts=mounts(data="data:snapshot"))
        [mount] = api.host.specs[reader["session"]["id"]].mounts
        assert mount.mode is DriveMode.SNAPSHOT
    assert (await shown(api, "data"))["currentSessionId"] == writer


async def test_a_sandbox_that_mounts_is_where_every_sandbox_is_unless_it_says_otherwise(api: Api) -> None:
    await drive(api, "data")
    assert (
        (await api.create(mounts=mounts(data="data")))["sandbox"]["region"] == (await api.create())["sandbox"]["region"] == "iad1"
    )


async def test_a_page_has_20_the_newest_first(api: Api) -> None:
    made = [(await drive(api, f"d{number}"))["id"] for number in range(21)]
    page = (await api.http.get(BASE, params={"projectId": api.own.project_id})).json()
    assert [one["id"] for one in page["drives"]] == made[:0:-1]
    assert page["pagination"]["count"] == 20


@pytest.mark.section("5.1", "5.3", "6.1")
async def test_a_sandbox_has_what_it_mounts(api: Api) -> None:
    data, seen = await drive(api, "data"), await drive(api, "seen")
    await stop(api, (await api.create(mounts=mounts(data="seen")))["session"]["id"])
    body = {"/data//./x/": {"drive": "data"}, "/seen": {"drive": "seen", "mode": "read-only"}}
    made = await api.create(name="one", mounts=body)
    read = {"/data/x": {"drive": "data", "mode": "read-write"}, "/seen": {"drive": "seen", "mode": "snapshot"}}
    assert made["sandbox"]["mounts"] == read
    assert (await get(api, "one"))["sandbox"]["mounts"] == read
    given = api.host.specs[made["session"]["id"]].mounts
    assert [(mount.path, mount.drive_id, mount.mode) for mount in given] == [
        ("/data/x", data["id"], DriveMode.READ_WRITE),
        ("/seen", seen["id"], DriveMode.SNAPSHOT),
    ]
    holder = {"currentSessionId": made["session"]["id"], "currentSandboxName": "one"}
    assert (await shown(api, "data")).items() >= holder.items()
    [listed] = [one for one in (await api.http.get(BASE)).json()["drives"] if one["name"] == "data"]
    assert listed.items() >= holder.items()
    # Who reads does not have it.
    assert "currentSessionId" not in await shown(api, "seen")
    await stop(api, made["session"]["id"])
    assert "currentSessionId" not in await shown(api, "data")


@pytest.mark.section("4.6")
async def test_one_writer_at_a_time(api: Api) -> None:
    await drive(api, "data")
    session = (await api.create(name="one", mounts=mounts(data="data")))["session"]["id"]
    body: dict[str, Any] = {"name": "two", "mounts": mounts(other="data")}
    assert await refused(api, "POST", "/v3/sandboxes", json=body) == (409, "drive_attached")
    # Nothing of the one that was refused is left.
    assert await refused(api, "GET", "/v2/sandboxes/two") == (404, "not_found")
    assert await refused(api, "DELETE", f"{BASE}/data") == (409, "drive_attached")
    assert (await shown(api, "data"))["currentSessionId"] == session
    await api.create(name="three", mounts=mounts(other="data:snapshot"))
    await api.host.end(session)
    await api.create(**body)
    assert await refused(api, "GET", "/v2/sandboxes/one", params={"resume": "true"}) == (409, "drive_attached")
    # It can go on later.
    await stop(api, (await get(api, "two"))["session"]["id"])
    assert (await get(api, "one", resume="true"))["resumed"]


@pytest.mark.section("4.6")
async def test_a_drive_that_nobody_wrote_to_has_nothing_to_read(api: Api) -> None:
    await drive(api, "data")
    body = {"mounts": mounts(data="data:snapshot")}
    assert await refused(api, "POST", "/v3/sandboxes", json=body) == (409, "drive_not_initialized")


@pytest.mark.section("6.4")
async def test_a_resumed_sandbox_mounts_the_same_again_and_an_update_counts_from_then(api: Api) -> None:
    for name in ("a", "b"):
        await drive(api, name)
    first = (await api.create(name="one", mounts=mounts(data="a")))["session"]["id"]
    changed = await api.http.patch("/v2/sandboxes/one", json={"mounts": mounts(data="b")})
    assert changed.json()["sandbox"]["mounts"] == mounts(data="b")
    # Not now: the session has what it has.
    assert (await shown(api, "a"))["currentSessionId"] == first
    await stop(api, first)
    second = (await get(api, "one", resume="true"))["session"]["id"]
    assert (await shown(api, "b"))["currentSessionId"] == second
    assert "currentSessionId" not in await shown(api, "a")
    await api.http.patch("/v2/sandboxes/one", json={"tags": {"k": "v"}, "mounts": None})
    assert (await get(api, "one"))["sandbox"]["mounts"] == mounts(data="b")
    cleared = await api.http.patch("/v2/sandboxes/one", json={"mounts": {}})
    assert "mounts" not in cleared.json()["sandbox"]
    await stop(api, second)
    third = (await get(api, "one", resume="true"))["session"]["id"]
    assert api.host.specs[third].mounts == []
    assert await refused(api, "PATCH", "/v2/sandboxes/one", json={"mounts": mounts(data="none")}) == (404, "not_found")


@pytest.mark.section("6.6")
async def test_a_fork_has_no_mounts_but_its_own(api: Api) -> None:
    for name in ("a", "b"):
        await drive(api, name)
    await api.create(name="one", mounts=mounts(data="a"))
    fork = (await api.http.post("/v2/sandboxes/one/fork", json={"name": "two"})).json()
    assert "mounts" not in fork["sandbox"]
    other = (await api.http.post("/v2/sandboxes/one/fork", json={"mounts": mounts(data="b")})).json()
    assert other["sandbox"]["mounts"] == mounts(data="b")
    body = {"mounts": mounts(data="a")}
    assert await refused(api, "POST", "/v2/sandboxes/one/fork", json=body) == (409, "drive_attached")


async def test_a_drive_that_is_made_anew_is_another_one(api: Api) -> None:
    first = await drive(api, "data")
    session = (await api.create(name="one", mounts=mounts(data="data")))["session"]["id"]
    await stop(api, session)
    assert (await api.http.delete(f"{BASE}/data")).status_code == 200
    assert await refused(api, "GET", "/v2/sandboxes/one", params={"resume": "true"}) == (404, "not_found")
    second = await drive(api, "data")
    resumed = (await get(api, "one", resume="true"))["session"]["id"]
    assert api.host.specs[resumed].mounts[0].drive_id == second["id"] != first["id"]


@pytest.mark.section("6.1")
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"data": {"drive": "d"}}, "is not absolute"),
        ({"": {"drive": "d"}}, "is not absolute"),
        ({"/": {"drive": "d"}}, "is the root directory"),
        ({"/.//": {"drive": "d"}}, "is the root directory"),
        ({"/a/../b": {"drive": "d"}}, "contains '..'"),
        ({"/a\0b": {"drive": "d"}}, "contains control characters"),
        ({"/a\nb": {"drive": "d"}}, "contains control characters"),
        ({"/" + "a" * 256: {"drive": "d"}}, "is longer than 256"),
        ({"/" + "ß" * 200: {"drive": "d"}}, "is longer than 256"),
        ({"/proc": {"drive": "d"}}, "is reserved"),
        ({"/proc/1/root": {"drive": "d"}}, "is reserved"),
        ({"//sys/./fs": {"drive": "d"}}, "is reserved"),
        ({"/dev/shm": {"drive": "d"}}, "is reserved"),
        ({"/run": {"drive": "d"}}, "is reserved"),
        ({"/run/hutch": {"drive": "d"}}, "is reserved"),
        ({"/run/hutch/agent": {"drive": "d"}}, "is reserved"),
        ({"/run/cell": {"drive": "d"}}, "is reserved"),
        ({"/run/vercel/share": {"drive": "d"}}, "is reserved"),
        ({"/etc": {"drive": "d"}}, "is reserved"),
        ({"/etc/resolv.conf": {"drive": "d"}}, "is reserved"),
        ({"/usr": {"drive": "d"}}, "is reserved"),
        ({"/a": {"drive": "d"}, "/a/b": {"drive": "e"}}, "overlap"),
        ({"/a": {"drive": "d"}, "/a/": {"drive": "e"}}, "overlap"),
        ({"/a": {"drive": "d"}, "/b": {"drive": "d", "mode": "snapshot"}}, "a drive twice"),
        ({f"/{n}": {"drive": f"d{n}"} for n in range(5)}, "more than 4"),
        ({"/a": {}}, "required property 'drive'"),
        ({"/a": {"drive": "a/b"}}, "should match pattern"),
        ({"/a": {"drive": "x" * 65}}, "longer than 64"),
        ({"/a": {"drive": "d", "mode": "write"}}, "allowed values"),
        ({"/a": "d"}, "should be object"),
        (["/a"], "should be object"),
    ],
)
async def test_what_can_not_be_mounted_is_400(api: Api, given: object, words: str) -> None:
    await drive(api, "d")
    for method, path in (("POST", "/v3/sandboxes"), ("PATCH", "/v2/sandboxes/one"), ("POST", "/v2/sandboxes/one/fork")):
        response = await api.http.request(method, path, json={"mounts": given})
        if method == "POST" and path == "/v3/sandboxes":
            assert response.status_code == 400, response.text
            assert words in response.json()["error"]["message"]
        assert response.status_code in (400, 404)
    assert api.host.sessions == {}


async def test_what_is_near_a_reserved_path_can_be_mounted(api: Api) -> None:
    for number, path in enumerate(("/procs", "/run/hutch2", "/etc/resolv.conf.d", "/development/x", "/tmp")):
        await drive(api, f"d{number}")
        await api.create(mounts={path: {"drive": f"d{number}"}})


@pytest.mark.section("4.6")
async def test_a_drive_is_mounted_in_its_region_only(api: Api) -> None:
    await drive(api, "far", region="sfo1")
    body: dict[str, Any] = {"mounts": mounts(data="far")}
    assert await refused(api, "POST", "/v3/sandboxes", json=body) == (422, "drive_region_mismatch")
    assert (await api.create(region="sfo1", **body))["sandbox"]["region"] == "sfo1"
    body = {"mounts": mounts(data="far"), "region": "sfo1", "failoverRegions": ["iad1"]}
    assert await refused(api, "POST", "/v3/sandboxes", json=body) == (400, "bad_request")


# -- interruptions -----------------------------------------------------------------------------------


async def test_what_the_host_refuses_is_not_there(api: Api) -> None:
    api.host.refuse_drive = UnavailableError("disk_full", "The host has no room.")
    assert await refused(api, "POST", f"{BASE}/data", json={}) == (503, "disk_full")
    assert await refused(api, "GET", f"{BASE}/data") == (404, "not_found")
    api.host.refuse_drive = None
    await drive(api, "data", maxSizeBytes=GIB)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_one_whose_answer_was_lost_is_made_by_who_asks_next(api: Api, when: str) -> None:
    api.host.break_drive = when
    assert (await refused(api, "POST", f"{BASE}/data", json={"maxSizeBytes": GIB}))[0] == 503
    [known] = (await api.http.get(BASE)).json()["drives"]
    if when == "before":
        assert api.host.drives == {}
        await api.create(mounts=mounts(data="data"))
    else:
        assert (await api.http.post(f"{BASE}/data", json={})).status_code == 200
    assert list(api.host.drives) == [known["id"]]
    if when == "after":
        await api.create(mounts=mounts(data="data"))
    api.host.break_drive = when
    assert (await refused(api, "POST", f"{BASE}/data/fork", json={"name": "copy"}))[0] == 503
    copied = await api.http.post(f"{BASE}/data/fork", json={"name": "copy"})
    assert copied.status_code == 200
    assert set(api.host.drives) == {known["id"], copied.json()["drive"]["id"]}


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_removal_whose_answer_was_lost_is_carried_through(api: Api, when: str) -> None:
    await drive(api, "data")
    api.host.break_drive = when
    assert (await refused(api, "DELETE", f"{BASE}/data"))[0] == 503
    # Nothing new mounts it.
    assert await refused(api, "GET", f"{BASE}/data") == (404, "not_found")
    assert await refused(api, "POST", "/v3/sandboxes", json={"mounts": mounts(data="data")}) == (404, "not_found")
    await host_events.reconcile(api.services)
    assert api.host.drives == {}
    await drive(api, "data")


async def test_one_that_is_being_deleted_is_not_there_and_keeps_its_name(api: Api) -> None:
    made = await drive(api, "data")
    async with api.services.database.write() as connection:
        await rows.set_deleting(connection, made["id"], 1)
    assert (await api.http.get(BASE)).json()["drives"] == []
    assert await refused(api, "GET", f"{BASE}/{made['id']}") == (404, "not_found")
    assert await refused(api, "POST", f"{BASE}/data", json={}) == (409, "conflict")
    # Who asks again carries it through.
    assert (await api.http.delete(f"{BASE}/data")).status_code == 200
    assert api.host.drives == {}


async def test_a_removal_that_turns_out_to_be_refused_is_undone(api: Api) -> None:
    made = await drive(api, "data")
    session = (await api.create(mounts=mounts(data="data")))["session"]["id"]
    async with api.services.database.write() as connection:
        await rows.set_deleting(connection, made["id"], 1)
    await drives.settle(api.services)
    assert (await shown(api, "data"))["currentSessionId"] == session


async def test_one_that_is_deleted_while_it_is_made_is_not_left_on_the_host(api: Api) -> None:
    api.host.drive_gate.clear()
    making = asyncio.create_task(api.http.post(f"{BASE}/data", json={}))
    async with asyncio.timeout(10):
        while "drive.create" not in api.host.calls:
            await asyncio.sleep(0.01)
    assert (await api.http.delete(f"{BASE}/data")).status_code == 200
    api.host.drive_gate.set()
    assert (await making).status_code == 404
    assert api.host.drives == {}
    assert (await api.http.get(BASE)).json()["drives"] == []


async def test_of_many_at_once_one_makes_it(api: Api) -> None:
    answers = await asyncio.gather(*(api.http.post(f"{BASE}/data", json={}) for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] * 7 + [201]
    assert len({answer.json()["drive"]["id"] for answer in answers}) == len(api.host.drives) == 1
