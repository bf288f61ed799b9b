"""Snapshots' copies and archives over the API: verify, export, import, quota, and what a host tells of copies."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from hutch.api import snapshots
from hutch.errors import BadRequestError, ConflictError, UnavailableError
from tests.api.conftest import Api
from tests.api.test_snapshots import stopped, take

BASE = "/hutch/v1/snapshots"
DURABLE_AT, STORED_AT = 1_700_000_000_005, 1_700_000_000_007


async def test_a_copy_is_verified(api: Api) -> None:
    _, snapshot_id = await stopped(api)
    answer = await api.http.post(f"{BASE}/{snapshot_id}/verify")
    assert answer.json() == {"snapshotId": snapshot_id, "manifest": "m", "files": 3, "bytes": 5, "compared": True}
    api.host.refuse_verify = ConflictError("snapshot_damaged", "a chunk is missing")
    refused = await api.http.post(f"{BASE}/{snapshot_id}/verify")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "snapshot_damaged")


async def test_what_is_exported_can_be_imported_and_begun_with(api: Api) -> None:
    _, snapshot_id = await stopped(api)
    exported = await api.http.get(f"{BASE}/{snapshot_id}/export")
    assert exported.content == b"a tar"
    assert exported.headers["content-type"] == "application/x-tar"
    assert exported.headers["content-disposition"] == f'attachment; filename="{snapshot_id}.tar"'
    layout = await api.http.get(f"{BASE}/{snapshot_id}/export", params={"format": "oci"})
    assert layout.content == b"a layout"
    made = await api.http.post(BASE, content=exported.content)
    assert made.status_code == 201
    shown = made.json()["snapshot"]
    assert (shown["sourceSandboxName"], shown["sizeBytes"], shown["creationMethod"]) == ("", 1005, "manual")
    assert api.host.tars[shown["id"]] == b"a tar"
    created = await api.create(name="two", source={"type": "snapshot", "snapshotId": shown["id"]})
    assert api.host.specs[created["session"]["id"]].source_snapshot == shown["id"]
    await snapshots.reconcile(api.services)
    assert shown["id"] in api.host.snapshots


@pytest.mark.parametrize("query", [{"format": "zip"}, {"format": "TAR"}])
async def test_other_formats_are_refused(api: Api, query: dict[str, str]) -> None:
    _, snapshot_id = await stopped(api)
    assert (await api.http.get(f"{BASE}/{snapshot_id}/export", params=query)).status_code == 400


async def test_an_archive_that_the_host_refuses_leaves_nothing(api: Api) -> None:
    api.host.refuse_import = BadRequestError("invalid_archive", "it leads out")
    refused = await api.http.post(BASE, content=b"x" * 3_000_000)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_archive")
    assert (await api.http.get("/v2/sandboxes/snapshots")).json()["snapshots"] == []
    assert (await api.http.post(BASE, params={"image": "none"}, content=b"x")).status_code == 404
    assert api.services.importing == set()


async def test_they_belong_to_their_project(api: Api) -> None:
    _, snapshot_id = await stopped(api)
    stranger = (await api.tenant("other")).http
    for method, path in (("POST", "verify"), ("GET", "export")):
        assert (await stranger.request(method, f"{BASE}/{snapshot_id}/{path}")).status_code == 404
        assert (await api.client("").request(method, f"{BASE}/{snapshot_id}/{path}")).status_code == 401
        for name in ("snap_none", "%00", "x" * 3000):
            assert (await api.http.request(method, f"{BASE}/{name}/{path}")).status_code == 404
    made = (await stranger.post(BASE, content=b"tar")).json()["snapshot"]
    assert (await api.http.get(f"{BASE}/{made['id']}/export")).status_code == 404
    assert (await stranger.get(f"{BASE}/{made['id']}/export")).content == b"tar"
    team_wide = (await api.tenant("third", None)).http
    assert (await team_wide.post(BASE, content=b"tar")).status_code == 400
    await api.http.delete(f"/v2/sandboxes/snapshots/{snapshot_id}")
    assert (await api.http.get(f"{BASE}/{snapshot_id}/export")).status_code == 410


async def test_an_import_that_nobody_wrote_down_is_removed(api: Api) -> None:
    api.host.import_gate.clear()
    importing = asyncio.create_task(api.http.post(BASE, content=b"tar"))
    async with asyncio.timeout(10):
        while not api.host.snapshots:
            await asyncio.sleep(0.01)
    # While it goes on, it stays.
    await snapshots.reconcile(api.services)
    assert len(api.host.snapshots) == 1
    api.services.importing.clear()
    await snapshots.reconcile(api.services)
    assert api.host.snapshots == {}
    api.host.import_gate.set()
    await importing


async def listed(api: Api) -> list[dict[str, Any]]:
    return list((await api.http.get("/v2/sandboxes/snapshots")).json()["snapshots"])


async def test_what_a_host_tells_of_copies_is_shown(api: Api) -> None:
    _, snapshot_id = await stopped(api)
    assert not {"storedAt", "storeError"} & (await listed(api))[0].keys()
    held = api.host.snapshots
    held[snapshot_id] = msgspec.structs.replace(held[snapshot_id], durable_at=DURABLE_AT, store_error="away")
    await snapshots.reconcile(api.services)
    assert (await listed(api))[0]["storeError"] == "away"
    held[snapshot_id] = msgspec.structs.replace(held[snapshot_id], stored_at=STORED_AT, store_error=None, size_bytes=99)
    await snapshots.reconcile(api.services)
    [shown] = await listed(api)
    assert (shown["storedAt"], shown["durableAt"], shown["sizeBytes"]) == (STORED_AT, DURABLE_AT, 99 + 234)
    assert "storeError" not in shown
    # What was said before that comes late, and is no news.
    held[snapshot_id] = msgspec.structs.replace(held[snapshot_id], stored_at=None, size_bytes=1)
    await snapshots.reconcile(api.services)
    assert ((await listed(api))[0]["storedAt"], (await listed(api))[0]["sizeBytes"]) == (STORED_AT, 99 + 234)


class TestQuota:
    @pytest.fixture
    def environment(self) -> dict[str, str]:
        return {"HUTCH_LIMITS__SNAPSHOT_BYTES_PER_PROJECT": "2000"}

    @pytest.mark.section("4.6")
    async def test_beyond_it_none_can_be_asked_for_and_those_of_stops_are_kept(
        self, api: Api, caplog: pytest.LogCaptureFixture
    ) -> None:
        for name in ("one", "two"):
            await stopped(api, name)
        running = await api.create(name="three")
        refused = await api.http.post(f"/v2/sandboxes/sessions/{running['session']['id']}/snapshot", json={})
        assert (refused.status_code, refused.json()["error"]["code"]) == (402, "quota_exceeded")
        # Memory for forks is on the disk too, if not for long.
        assert (await api.http.post("/v2/sandboxes/three/fork", json={"memory": True})).status_code == 402
        # It runs on, and its end keeps its files all the same.
        assert (await api.http.get("/v2/sandboxes/three")).json()["session"]["status"] == "running"
        assert (await api.http.post(BASE, content=b"tar")).status_code == 402
        await api.http.post(f"/v2/sandboxes/sessions/{running['session']['id']}/stop")
        shown = await listed(api)
        assert len(shown) == 3
        for _ in range(2):
            await snapshots.note_quotas(api.services)
        assert caplog.text.count("hold 3000 bytes; 2000 are allowed") == 1
        assert (await api.http.get("/v2/sandboxes/three", params={"resume": "true"})).status_code == 200
        # Others have their own.
        stranger = await api.tenant("other")
        session = (await api.create(stranger.http, name="x"))["session"]["id"]
        assert (await stranger.http.post(f"/v2/sandboxes/sessions/{session}/snapshot", json={})).status_code == 201
        for one in shown[:2]:
            await api.http.delete(f"/v2/sandboxes/snapshots/{one['id']}")
        session = (await api.http.get("/v2/sandboxes/three")).json()["session"]["id"]
        await take(api, session)


async def test_a_host_that_is_away_is_told(api: Api) -> None:
    _, snapshot_id = await stopped(api)
    api.host.refuse_verify = UnavailableError("blob_store_unavailable", "away", retry_after_s=30)
    answer = await api.http.post(f"{BASE}/{snapshot_id}/verify")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "blob_store_unavailable")
